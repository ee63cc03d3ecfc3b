"""Batches that grow while training: by the statistics of the very gradients, no image twice, resumable to the byte."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from genflow import data as data_module
from genflow.errors import InputError
from genflow.optim import gradient_statistics
from genflow.optim.batch_size import required_batch_size
from genflow.training.checkpoints import latest_checkpoint
from genflow.training.growth import BatchGrowth
from genflow.training.image_task import ImageTask
from genflow.training.recipe import Recipe
from genflow.training.trainer import Trainer

SLICE = Path(__file__).parents[2] / "data" / "fashion-1k-images-idx3-ubyte.gz"


@pytest.fixture(scope="module")
def data():
    return data_module.load_images(SLICE)


def recipe(growth=(), **changes):
    values = {
        "data": {"source": str(SLICE)},
        "network": {"options": {"block_out_channels": [16, 32], "layers_per_block": 1, "attention_head_dim": 16}},
        "optimizer": {"name": "sgd", "lr": 0.01},
        "schedule": {"warmup_steps": 0, "decay": "constant"},
        "budget": {"images": 160},
        "batch_size": 16,
        "accumulate": 4,
        "precision": "fp32",
        "log": {"every_steps": 1, "sample_every_steps": 0, "checkpoint_every_steps": 1, "keep_checkpoints": 100},
        "sampling": {"scheduler": "euler", "steps": 2},
        "batch_growth": {"every_steps": 2, "eta": 0.05, "max_batch_size": 48, **dict(growth)},
    }
    return Recipe(**{**values, **changes})


def trainer(wanted, data, folder):
    return Trainer(ImageTask(wanted, data), folder, progress=False)


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_batch_grows_and_images_are_counted(data, tmp_path):
    run = trainer(recipe(), data, tmp_path)
    run.run()
    found = rows(tmp_path)
    assert run.growth.controller.history[-1][1] == 48
    assert [row["images"] for row in found] == [16, 64, 112, 160]
    assert {row["batch_size"] for row in found} == {48}
    assert run.accelerator.gradient_accumulation_steps == run.growth.accumulate == 12


def test_every_image_comes_once_an_epoch_whatever_the_batch(data, tmp_path, monkeypatch):
    """1,000 images in micro-batches of 4: those of the run are 0 to 39 of the stream, in order."""
    run = trainer(recipe(), data, tmp_path)
    places = []
    loss = run.task.loss
    monkeypatch.setattr(run.task, "loss", lambda step, slot: places.append((step, slot)) or loss(step, slot))
    run.run()
    assert places == [(index, 0) for index in range(40)]


def test_statistics_are_those_of_the_micro_batches(data, tmp_path, monkeypatch):
    run = trainer(recipe({"max_batch_size": 10**6}), data, tmp_path)
    gradients = []
    for micro in range(4):
        run.bare_network.zero_grad()
        run.task.loss(*run._place(micro)).backward()
        gradients.append([p.grad.clone() for p in run.bare_network.parameters()])
    run.bare_network.zero_grad()
    expected = gradient_statistics([torch.stack(parts) for parts in zip(*gradients, strict=True)], 4)
    needed = required_batch_size(expected, "norm", eta=0.05)
    asked = []
    update = run.growth.controller.update
    monkeypatch.setattr(run.growth.controller, "update", lambda found: asked.append(found) or update(found))
    run._train_step()
    assert asked[0].samples == 16
    assert asked[0].variance == pytest.approx(expected.variance, rel=1e-3)
    assert asked[0].norm_square == pytest.approx(expected.norm_square, rel=1e-3)
    assert run.growth.batch_size == pytest.approx(needed, abs=4 + 1e-3 * needed)


def test_a_test_that_holds_leaves_the_batch_alone(data, tmp_path):
    run = trainer(recipe({"eta": 1e3}), data, tmp_path)
    run.run()
    assert [row["images"] for row in rows(tmp_path)] == list(range(16, 161, 16))
    assert run.growth.controller.history == [(0, 16)]


def test_many_micro_batches_are_gathered_into_few_gradients(data, tmp_path):
    wanted = recipe({"every_steps": 1, "max_batch_size": 400}, batch_size=80, accumulate=40)
    run = trainer(wanted, data, tmp_path)
    kept = []
    record = run.growth._gradients.record
    run.growth._gradients.record = lambda scale: kept.append(scale) or record(scale)
    run._train_step()
    assert kept == [20.0] * 20  # groups of two; the loss was divided by forty


def test_an_interrupted_run_goes_on_to_the_same_bytes(data, tmp_path):
    trainer(recipe(), data, tmp_path).run()
    newest = latest_checkpoint(tmp_path / "checkpoints")
    whole, logged = (newest / "network.safetensors").read_bytes(), [row["images"] for row in rows(tmp_path)]
    assert newest.name == "step-00000004"
    for step in (2, 3, 4):
        shutil.rmtree(tmp_path / "checkpoints" / f"step-0000000{step}")
    run = trainer(recipe(), data, tmp_path)
    assert (run.images, run.growth.accumulate) == (16, 12)
    run.run()
    assert (newest / "network.safetensors").read_bytes() == whole
    assert [row["images"] for row in rows(tmp_path)] == logged


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 1}, "accumulate: 1 with batch_growth; allowed: at least 2"),
        ({"growth": {"max_batch_size": 8}}, "batch_growth.max_batch_size: 8; allowed: at least batch_size, 16"),
    ],
)
def test_what_cannot_grow_is_refused_before_training(data, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        trainer(recipe(**changes), data, tmp_path)


def test_several_processes_are_refused():
    class Two:
        num_processes = 2

    with pytest.raises(InputError, match="batch_growth: 2 processes; allowed: one"):
        BatchGrowth(recipe(), [], Two())
