"""``genflow evaluate features``: what it writes, what it says, and what it refuses with one line and status 2."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from genflow.cli.main import run
from genflow.evaluate.extraction import extract
from genflow.evaluate.feature_set import load_feature_set
from genflow.evaluate.sources import open_source
from genflow.evaluate.statistics_files import load_statistics
from genflow.metrics import create_extractor


@pytest.fixture
def images(tmp_path: Path) -> Path:
    array = np.random.default_rng(0).integers(0, 256, (12, 28, 28), np.uint8)
    np.save(tmp_path / "images.npy", array)
    return tmp_path / "images.npy"


def command(*words: object) -> int:
    words = (*words, "--features", "fashion-mnist")
    if "--device" not in words:
        words += ("--device", "cpu")
    if "--batch-size" not in words:
        words += ("--batch-size", 4)  # the network fills its batches up
    return run(["evaluate", "features", *map(str, words)])


def refused(capsys: pytest.CaptureFixture, message: str, *words: object) -> None:
    assert command(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("genflow: error: ")
    assert error.count("\n") == 1
    assert message in error


def test_features_are_written_and_described(images, tmp_path, capsys) -> None:
    out = tmp_path / "new" / "f.safetensors"
    assert command(images, "--out", out) == 0
    text = capsys.readouterr().out
    assert f"{out}: features and statistics of 12 images, 128 dimensions of fashion-mnist-classifier" in text
    assert "images/s" in text
    assert "MiB of at most 8 GiB" in text
    found = load_feature_set(out)
    expected = extract(open_source(images), create_extractor("fashion-mnist", batch_size=4), cache=False)
    assert torch.equal(found.features, expected.features)
    assert torch.equal(found.statistics.covariance, expected.statistics.covariance)
    assert found.protocol == expected.protocol
    assert command(images, "--out", out) == 0  # its own file may be replaced
    text = capsys.readouterr().out
    assert "12 images' features from the cache" in text
    assert "images/s" not in text
    assert torch.equal(load_feature_set(out).features, expected.features)


def test_statistics_a_draw_half_precision_and_no_cache(images, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("GENFLOW_CACHE", str(tmp_path / "cache"))
    options = ("--no-cache", "--count", 6, "--seed", 3)
    assert command(images, "--out", tmp_path / "s.npz", *options) == 0
    assert command(images, "--out", tmp_path / "h.safetensors", *options, "--half") == 0
    assert "cache" not in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()
    found = load_feature_set(tmp_path / "h.safetensors")
    assert (found.protocol["count"], found.protocol["available"], found.protocol["seed"]) == (6, 12, 3)
    assert torch.equal(found.features, found.features.half().float())
    statistics = load_statistics(tmp_path / "s.npz").statistics
    assert torch.equal(statistics.covariance, found.statistics.covariance)


def test_a_bad_image_is_named_then_left_out(images, tmp_path, capsys) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for index, image in enumerate(np.load(images)):
        Image.fromarray(image).save(folder / f"{index:02d}.png")
    (folder / "03.png").write_bytes(b"")
    out = tmp_path / "f.safetensors"
    refused(capsys, "03.png", folder, "--out", out)
    assert not out.exists()
    assert command(folder, "--out", out, "--skip-bad") == 0
    assert f"left out, unreadable: {folder / '03.png'}" in capsys.readouterr().out
    assert load_feature_set(out).statistics.count == 11


def test_what_cannot_be_done_is_one_line(images, tmp_path, capsys) -> None:
    refused(capsys, "has to end in .safetensors (features) or .npz", images, "--out", tmp_path / "f.pt")
    refused(capsys, "--half", images, "--out", tmp_path / "f.npz", "--half")
    refused(capsys, "is a file; a folder is needed", images, "--out", images / "f.npz")
    (tmp_path / "d.npz").mkdir()
    refused(capsys, "is a folder; a file is needed", images, "--out", tmp_path / "d.npz")
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    np.savez(tmp_path / "pictures.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    np.savez(tmp_path / "adm.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8), mu=np.zeros(2), sigma=np.eye(2))
    for name in ("model.safetensors", "pictures.npz", "adm.npz"):
        before = (tmp_path / name).read_bytes()
        refused(capsys, f"{name}' is there and holds something else than features", images, "--out", tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    out = tmp_path / "f.safetensors"
    refused(capsys, "neither a folder nor a file", tmp_path / "absent.npy", "--out", out)
    refused(capsys, "there are 12 samples", images, "--out", out, "--count", 13)
    refused(capsys, "1 of", images, "--out", out, "--count", 1)
    assert command(images, "--out", out) == 0
    refused(capsys, "f.safetensors holds features or statistics already", out, "--out", tmp_path / "g.safetensors")
    out.unlink()
    refused(capsys, "samples: none given", "--out", out)
    refused(capsys, "num", "--out", out, "--model", "fashion-mnist")
    refused(capsys, "--batch-size: got 0", images, "--out", out, "--batch-size", 0)
    refused(capsys, "--workers: got -1", images, "--out", out, "--workers", -1)
    refused(capsys, "--device: 'tpu9'", images, "--out", out, "--device", "tpu9")
    refused(capsys, "resize", images, "--out", out, "--resize", "cleen")
    assert not out.exists()


def test_a_models_samples_without_a_file_between(tmp_path, capsys) -> None:
    out = tmp_path / "f.safetensors"
    assert command("--model", "fashion-mnist-onestep", "--num", 5, "--out", out) == 0
    found = load_feature_set(out)
    assert found.statistics.count == 5
    assert found.protocol["sampling"]["model"] == "fashion-mnist-onestep"
    assert found.protocol["sampling"]["seeds"] == "0-4"
    assert found.labels.tolist() == [0, 1, 2, 3, 4]
    assert command("--model", "fashion-mnist-onestep", "--num", 5, "--out", out) == 0
    assert "5 images' features from the cache" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.safetensors"]


def test_ctrl_c_is_130_and_keeps_what_was_done(images, tmp_path, capsys, monkeypatch) -> None:
    network = type(create_extractor("fashion-mnist"))
    original, seen = network.__call__, []

    def stopped(self, batch, progress=None):
        seen.append(len(batch))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return original(self, batch, progress)

    monkeypatch.setattr(network, "__call__", stopped)
    out = tmp_path / "f.safetensors"
    assert command(images, "--out", out, "--batch-size", 4) == 130
    assert not out.exists()
    assert command(images, "--out", out, "--batch-size", 4) == 0
    assert seen == [4, 4, 4, 4]
    assert "8 images' features from the cache" in capsys.readouterr().out


def test_help_is_quick_and_shows_examples(capsys) -> None:
    assert run(["evaluate", "features", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    example = "genflow evaluate features photos/ --out photos.safetensors"
    for words in ("--out", "--half", "--no-cache", example, "at most 8 GiB", "Remove the folder to clear it"):
        assert words in text
