"""Tensors kept with a record, and the bar of evaluation's commands."""

import time

import pytest
import torch
from safetensors.torch import save_file

from genflow.evaluate import console
from genflow.evaluate.cache import cached_tensors, read_tensors, write_tensors


def test_the_record_and_the_bytes_decide(tmp_path) -> None:
    path, record = tmp_path / "a" / "t.safetensors", {"b": 1, "a": [2.5, None]}
    pair = torch.arange(8.0)
    tensors = {
        "first": pair[:4],
        "second": pair[4:],
        "x": torch.arange(6.0).reshape(2, 3).T,
        "empty": torch.empty(0, 4),
        "yes": torch.tensor(True),
    }
    assert read_tensors(path, record) is None
    written = write_tensors(path, record, tensors)
    found = read_tensors(path, {"a": [2.5, None], "b": 1})
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and torch.equal(written[name], found[name]) for name in found)
    assert read_tensors(path, {**record, "b": 2}) is None
    (tmp_path / "any").touch()
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode
    whole = path.read_bytes()
    for position in (-1, -20):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[len(whole) + position + 1 :])
        assert read_tensors(path, record) is None
    path.write_bytes(whole[:-1])
    assert read_tensors(path, record) is None


def test_tensors_are_made_once_and_files_without_a_digest_still_count(tmp_path) -> None:
    calls = []

    def make() -> dict[str, torch.Tensor]:
        calls.append(1)
        return {"x": torch.ones(2)}

    path = tmp_path / "t.safetensors"
    for _ in range(2):
        assert torch.equal(cached_tensors(path, {"v": 1}, make)["x"], torch.ones(2))
    assert len(calls) == 1
    save_file({"x": torch.full((2,), 7.0)}, path, {"record": '{"v": 1}'})  # of genflow's first format
    assert torch.equal(cached_tensors(path, {"v": 1}, make)["x"], torch.full((2,), 7.0))
    assert len(calls) == 1
    with pytest.raises(ValueError, match="JSON"):
        cached_tensors(path, {"v": float("nan")}, make)


def test_the_bar_comes_late_and_says_how_fast(capsys, monkeypatch) -> None:
    with console.progress_bar("features", 40, delay=0.0, unit="images") as advance:
        advance(40)
    assert capsys.readouterr().err == ""  # no terminal
    monkeypatch.setenv("FORCE_COLOR", "1")  # which rich takes for one
    with console.progress_bar("features", 40, delay=0.0, unit="images") as advance:
        for _ in range(40):
            time.sleep(0.005)
            advance(1)
    assert "images/s" in capsys.readouterr().err
    with console.progress_bar("features", 40, unit="images") as advance:
        advance(40)
    with console.progress_bar("features", 40, enabled=False, delay=0.0, unit="images") as advance:
        advance(40)
    assert capsys.readouterr().err == ""
    assert [console.rate(speed) for speed in (0.123456, 9.876, 98.76, 123.4, 45678.9)] == [
        "0.123",
        "9.88",
        "98.8",
        "123",
        "45,679",
    ]
