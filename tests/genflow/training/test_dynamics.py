"""``--dynamics``: what is written, that training does not feel it, that it goes on after a stop, and what it costs."""

import json
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from genflow import data as data_module
from genflow.errors import InputError
from genflow.optim.dynamics import Hessian, largest_eigenvalue
from genflow.training.checkpoints import latest_checkpoint
from genflow.training.dynamics import TrainingDynamics, plot_dynamics
from genflow.training.image_task import ImageTask
from genflow.training.recipe import Recipe, load_recipe
from genflow.training.trainer import Trainer

SLICE = Path(__file__).parents[2] / "data" / "fashion-1k-images-idx3-ubyte.gz"
ON = {"enabled": True, "every_steps": 2, "images": 12, "micro_batch": 8, "lanczos_steps": 4, "max_share": None}


def recipe(**changes):
    values = {
        "data": {"source": str(SLICE)},
        "network": {
            "options": {
                "block_out_channels": [8, 16],
                "layers_per_block": 1,
                "attention_head_dim": 16,
                "patch_size": 4,
                "dropout": 0.2,
            }
        },
        "optimizer": {"lr": 0.002},
        "schedule": {"warmup_steps": 0},
        "budget": {"images": 40},
        "batch_size": 8,
        "precision": "fp32",
        "log": {"every_steps": 1, "sample_every_steps": 0, "checkpoint_every_steps": 1, "keep_checkpoints": 100},
        "sampling": {"scheduler": "euler", "steps": 2},
    }
    return Recipe(**{**values, **changes})


@pytest.fixture(scope="module")
def data():
    return data_module.load_images(SLICE)


def trainer(data, folder, **changes):
    return Trainer(ImageTask(recipe(**changes), data), folder, progress=False)


def rows(folder, drop=("seconds", "total_seconds", "share")):
    lines = (folder / "dynamics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in drop} for line in lines]


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.bare_network.parameters()])


@pytest.fixture
def _unplotted(monkeypatch):
    """A picture takes a second."""
    monkeypatch.setattr(TrainingDynamics, "plot", lambda self: None)


@pytest.fixture(scope="module")
def measured(data, tmp_path_factory):
    """A run of five steps with measurements, and its folder."""
    folder = tmp_path_factory.mktemp("dynamics")
    run = trainer(data, folder, dynamics=ON)
    run.run()
    return run, folder


def test_what_is_written(measured):
    _, folder = measured
    found = rows(folder, drop=())
    assert [row["step"] for row in found] == [0, 2, 4, 5]
    assert [row["images"] for row in found] == [0, 16, 32, 40]
    assert found[0]["ratio"] is None  # Adam has no preconditioner before its first step
    for row in found[1:]:
        assert row["ratio"] > 0
        assert row["threshold"] >= 38 / 0.002 * 0.99
        assert row["preconditioned_sharpness"] == pytest.approx(row["ratio"] * row["threshold"])
    for row in found:
        assert row["sharpness"] > 0
        assert row["batch_sharpness"] is not None
        assert row["spectrum"]["size"] == len(weights(measured[0]))
        assert 0 < row["products"] <= 3 * 4 + 2
        assert 0 < row["seconds"] <= row["total_seconds"]
        assert 0 < row["share"] <= 1
    assert found[-1]["total_seconds"] == pytest.approx(sum(row["seconds"] for row in found), rel=0.2)
    with Image.open(folder / "dynamics.png") as picture:
        assert picture.width > 500


def test_training_does_not_feel_it(data, measured, tmp_path):
    run, folder = measured
    plain = trainer(data, tmp_path)
    plain.run()
    assert torch.equal(weights(plain), weights(run))
    assert not (tmp_path / "dynamics.jsonl").exists()  # off by default
    for step in (2, 4, 5):
        name = f"checkpoints/step-{step:08d}/optimizer.safetensors"
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()
    keys = ("step", "loss", "grad_norm", "lr")
    logs = [
        [[json.loads(line)[key] for key in keys] for line in (place / "metrics.jsonl").read_text().splitlines()]
        for place in (folder, tmp_path)
    ]
    assert logs[0] == logs[1]


@pytest.mark.usefixtures("_unplotted")
@pytest.mark.parametrize("stop", [2, 3])
def test_it_goes_on_after_a_stop(data, measured, tmp_path, monkeypatch, stop):
    first = trainer(data, tmp_path, dynamics=ON)
    original = first._train_step

    def stopping():
        result = original()
        first._stop.asked = first.step == stop
        return result

    monkeypatch.setattr(first, "_train_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    assert latest_checkpoint(first.checkpoints).name.endswith(str(stop))
    assert [row["step"] for row in rows(tmp_path)] == [0, 2]
    # a measurement beyond the checkpoint, as a kill would leave one, is made again
    with (tmp_path / "dynamics.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": 4, "total_seconds": 0.0}) + "\n")
    trainer(data, tmp_path, dynamics=ON).run()
    assert rows(tmp_path) == rows(measured[1])


@pytest.mark.usefixtures("_unplotted")
def test_it_may_begin_later_and_a_restart_forgets(data, tmp_path):
    trainer(data, tmp_path)._save()
    run = trainer(data, tmp_path, dynamics=ON)  # the section may differ in a run that goes on
    run._measure(ends=False)
    assert [row["step"] for row in rows(tmp_path)] == [0]
    Trainer(ImageTask(recipe(dynamics=ON), data), tmp_path, restart=True, progress=False)
    assert rows(tmp_path) == []


@pytest.mark.usefixtures("_unplotted")
def test_the_sharpness_is_that_of_the_training_loss(data, tmp_path):
    run = trainer(data, tmp_path, dynamics=ON | {"lanczos_steps": 15, "probes": 0})
    run._train_step()
    run._measure(ends=True)
    (row,) = rows(tmp_path)
    assert row["spectrum"] is None
    network = run.bare_network.eval()
    images, noise, t, labels = (torch.cat([batch[i] for batch in run.dynamics.batches]) for i in range(4))
    assert len(images) == 12

    def loss():
        x = torch.lerp(images, noise, t[:, None, None, None].float())
        return F.mse_loss(network(x, 1000 * t.float(), labels).sample, noise - images)

    top = largest_eigenvalue(Hessian(loss, network.parameters()), steps=40, tolerance=1e-3)
    assert row["loss"] == pytest.approx(loss().item(), rel=1e-4)
    assert row["sharpness"] == pytest.approx(top.value, rel=0.04)


@pytest.mark.usefixtures("_unplotted")
def test_measurements_are_made_in_float32(data, measured, tmp_path):
    run = trainer(data, tmp_path, dynamics=ON, precision="bf16")
    run._measure(ends=False)
    assert rows(tmp_path)[0]["sharpness"] == pytest.approx(rows(measured[1])[0]["sharpness"], rel=1e-6)
    assert run.bare_network.training
    image = torch.zeros(1, 1, 28, 28)
    assert run.network(image, torch.zeros(1), torch.zeros(1, dtype=torch.long)).sample.dtype == torch.float32
    assert run.bare_network.__dict__["forward"] is not run.bare_network._original_forward


@pytest.mark.usefixtures("_unplotted")
def test_the_cost_is_bounded_and_no_part_of_the_budget(data, tmp_path, monkeypatch):
    run = trainer(data, tmp_path, dynamics=ON | {"max_share": 0.1}, budget={"cpu_minutes": 1.0})
    monkeypatch.setattr(run, "_progress", lambda: run.step / 7)
    original = run.dynamics.measure

    def slow(step, seconds):
        end = time.process_time() + 1.0
        while time.process_time() < end:
            pass
        run.dynamics.seconds += 60.0
        return original(step, seconds)

    monkeypatch.setattr(run.dynamics, "measure", slow)
    started = time.process_time()
    run.run()
    assert [row["step"] for row in rows(tmp_path)] == [0]  # the rest would have been beyond its share
    assert run.cpu_seconds <= time.process_time() - started - 1.0
    assert "at most" in run.dynamics.describe()
    assert run.dynamics.affordable(601.0)


@pytest.mark.usefixtures("_unplotted")
def test_a_diverged_network_leaves_no_row(data, tmp_path):
    run = trainer(data, tmp_path, dynamics=ON)
    with torch.no_grad():
        next(run.bare_network.parameters()).fill_(float("nan"))
    assert run.dynamics.measure(0, 1.0) == {}
    assert rows(tmp_path) == []


@pytest.mark.usefixtures("_unplotted")
def test_trackers_get_the_numbers(data, tmp_path, monkeypatch):
    run = trainer(data, tmp_path, dynamics=ON)
    seen = []
    monkeypatch.setattr(run.accelerator, "log", lambda values, step: seen.append((step, values)))
    run._measure(ends=False)
    ((step, values),) = seen
    assert step == 0
    assert values["dynamics/sharpness"] > 0
    assert all(isinstance(value, float) for value in values.values())


def test_plot_of_whatever_there_is(tmp_path):
    plot_dynamics([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    keys = ("preconditioned_sharpness", "threshold", "ratio", "batch_sharpness", "trace", "spectrum")
    row = {"step": 1, "sharpness": -1.0, "gradient_norm": 0.0, **dict.fromkeys(keys)}
    plot_dynamics([row], tmp_path / "bare.png")
    assert (tmp_path / "bare.png").stat().st_size > 1000


def test_bad_recipes(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("data: {source: x}\nbudget: {images: 1}\ndynamics: {every: 5}\n")
    with pytest.raises(InputError, match=r"unknown key 'dynamics.every' .did you mean 'every_steps'"):
        load_recipe(path)
    path.write_text("data: {source: x}\nbudget: {images: 1}\n")
    for words in ("dynamics.every_steps=0", "dynamics.probes=-1", "dynamics.max_share=2"):
        with pytest.raises(InputError, match=words.split("=")[0]):
            load_recipe(path, [words])
    assert load_recipe(path).dynamics.enabled is False
