"""``genflow train`` and ``genflow evaluate``: what the words come to, and one short run from data to pictures."""

import gzip
import json
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


def test_evaluate_prints_a_table_and_writes_json(genflow: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    result = {"metrics": {"fd": 1.25}, "protocol": {"count": 3}}

    def fake(*arguments: Any, **options: Any) -> dict[str, Any]:
        seen.update(arguments=arguments, **options)
        return result

    monkeypatch.setattr("genflow.evaluate.run.evaluate", fake)
    monkeypatch.setattr("genflow.evaluate.run.print_table", lambda result: print("table", result["metrics"]["fd"]))
    words = ("evaluate", "here", "--reference", "r", "--count", "3", "--seed", "5", "--skip-bad", "--device", "cpu")
    status, out, _ = genflow(*words, "--json", "deep/scores.json")
    assert (status, out) == (0, "table 1.25\n")
    assert json.loads(Path("deep/scores.json").read_text()) == result
    assert seen.pop("arguments") == ("here", "r")
    assert str(seen.pop("device")) == "cpu"
    assert seen == {"count": 3, "seed": 5, "skip_bad": True, "progress": True}


def test_evaluate_refuses_what_is_not_there(genflow: Run) -> None:
    status, out, err = genflow("evaluate", "out/", "--reference", "nothing")
    assert (status, out) == (2, "")
    assert "nothing" in err
    assert err.count("\n") == 1
