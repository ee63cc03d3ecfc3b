"""Nothing half-written, nothing half-read."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from genflow.errors import InputError
from genflow.files import (
    atomic_folder,
    atomic_path,
    check_output_files,
    check_safetensors,
    fingerprint,
    output_folder,
    write_json,
    write_text,
)


def test_atomic_path_replaces_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    write_text(target, "one")
    with atomic_path(target) as temporary:
        temporary.write_text("two")
        assert temporary.suffix == ".txt"
        assert target.read_text() == "one"
    assert target.read_text() == "two"
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]


def test_atomic_path_leaves_the_old_file_on_failure(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "one")

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        fail()
    assert target.read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_atomic_folder_replaces_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as temporary:
        (temporary / "a").write_text("1")
    with atomic_folder(target) as temporary:
        (temporary / "b").write_text("2")
    assert [path.name for path in target.iterdir()] == ["b"]

    def fail() -> None:
        with atomic_folder(target) as temporary:
            (temporary / "c").write_text("3")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_json_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}


def test_output_folder(tmp_path: Path) -> None:
    assert output_folder("--out", tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"--out: .*file' is a file; a folder is needed"):
            output_folder("--out", folder)


def test_outputs_are_checked_by_the_names_of_their_options(tmp_path: Path) -> None:
    check_output_files(json=tmp_path / "new" / "a.json", plot=None)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--plot: .* is a folder; a file is needed"):
        check_output_files(json=tmp_path / "a.json", plot=tmp_path)
    with pytest.raises(InputError, match=r"--json: .*file' is a file; a folder is needed"):
        check_output_files(json=tmp_path / "file" / "a.json")


def test_check_safetensors(tmp_path: Path) -> None:
    whole = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(10), "y": torch.zeros(3, dtype=torch.float16)}, whole, metadata={"format": "pt"})
    check_safetensors(whole)
    save_file({}, tmp_path / "empty.safetensors")
    check_safetensors(tmp_path / "empty.safetensors")
    data = whole.read_bytes()
    broken = tmp_path / "b.safetensors"
    for content in (b"", data[:4], data[:20], data[:-1], data + b"x", b"\xff" * 64, b"\2" + b"\0" * 7 + b"[]"):
        broken.write_bytes(content)
        with pytest.raises(InputError, match=r"b\.safetensors"):
            check_safetensors(broken)
    with pytest.raises(InputError, match="cannot be read"):
        check_safetensors(tmp_path / "none.safetensors")


def test_fingerprint_sees_weights_and_config_but_not_cards_or_place(tmp_path: Path) -> None:
    def model(folder: Path, value: float, config: str = "{}") -> str:
        (folder / "unet").mkdir(parents=True)
        (folder / "model_index.json").write_text(config)
        (folder / "card.md").write_text(str(folder))
        save_file({"x": torch.full((5,), value)}, folder / "unet" / "w.safetensors")
        return fingerprint(folder)

    first = model(tmp_path / "a", 1.0)
    assert len(first) == 16
    assert model(tmp_path / "b", 1.0) == first
    assert model(tmp_path / "c", 2.0) != first
    assert model(tmp_path / "d", 1.0, '{"steps": 3}') != first
