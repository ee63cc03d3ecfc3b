"""``genflow train``: what the words come to, and one short run from data to pictures."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genflow.images import read_metadata

Run = Callable[..., tuple[int, str, str]]
DATA = Path(__file__).resolve().parents[2] / "data"

RECIPE = """
data: {source: data.npz}
network:
  type: lean-unet
  options: {block_out_channels: [16, 32], layers_per_block: 1, attention_head_dim: 16, time_embed_dim: 32}
budget: {images: 64}
batch_size: 16
log: {every_steps: 2, checkpoint_every_steps: 2, sample_every_steps: 0}
sampling: {scheduler: euler, steps: 2}
"""


def test_train_then_generate(genflow: Run) -> None:
    with gzip.open(DATA / "fashion-1k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)[:64]
    np.savez("data.npz", images=images, labels=np.arange(64) % 2)
    Path("mine.yaml").write_text(RECIPE)
    status, _, err = genflow("train", "mine.yaml", "--set", "optimizer.lr=3e-4", "--out", "runs/mine")
    assert status == 0, err
    folder = err.splitlines()[-1].split("genflow generate --model ")[1]
    assert (Path(folder) / "model_index.json").is_file()
    assert "lr: 0.0003" in Path("runs/mine/recipe.yaml").read_text()
    status, _, err = genflow("generate", "--model", folder, "--seeds", "0-1")
    assert status == 0, err
    record = read_metadata("out/000001.png")
    assert (record["class"], record["steps"], record["scheduler"]) == (1, 2, "euler")


def test_train_hands_its_words_on(genflow: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def fake(*arguments: Any, **options: Any) -> Path:
        seen.update(arguments=arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr("genflow.training.train", fake, raising=False)
    words = ("train", "r", "--set", "a=1", "--set", "b=2", "--out", "o", "--restart", "--skip-bad")
    status, _, err = genflow(*words, "--tracker", "tensorboard")
    assert status == 130
    assert err.endswith("genflow: stopped\n")
    assert seen == {
        "arguments": ("r", ["a=1", "b=2"], Path("o")),
        "restart": True,
        "skip_bad": True,
        "trackers": ["tensorboard"],
    }
    genflow("train", "r", "--resume")
    assert seen["arguments"] == ("r", [], None)
    assert seen["restart"] is False
    genflow("train", "r", "--dynamics", "--set", "dynamics.every_steps=5")
    assert seen["arguments"] == ("r", ["dynamics.every_steps=5", "dynamics.enabled=true"], None)
