"""Training with PFGM++'s noise: which noise each step sees, and that interrupting a run changes nothing."""

from pathlib import Path

import pytest
import torch

from genflow.data import load_images
from genflow.errors import InputError
from genflow.models import LeanUNet2DModel, from_diffusers
from genflow.pipelines import ImagePipeline
from genflow.schedulers import PFGMPlusPlusScheduler
from genflow.training.image_task import ImageTask
from genflow.training.recipe import Recipe, load_recipe
from genflow.training.run import train
from genflow.training.trainer import Trainer

SLICE = Path(__file__).parents[2] / "data" / "fashion-1k-images-idx3-ubyte.gz"
SMALL = {
    "data": {"source": str(SLICE)},
    "network": {"options": {"block_out_channels": [16, 32], "layers_per_block": 1, "attention_head_dim": 16}},
    "objective": {"type": "pfgm++", "times": "log-normal", "times_mean": -1.2, "times_std": 1.2},
    "schedule": {"warmup_steps": 0, "decay": "constant"},
    "budget": {"images": 64},
    "batch_size": 16,
    "precision": "fp32",
    "log": {"every_steps": 1, "sample_every_steps": 0, "checkpoint_every_steps": 2, "keep_checkpoints": 100},
    "sampling": {"scheduler": "heun", "steps": 3},
}


def recipe(**options):
    return Recipe(**SMALL, path={"type": "pfgm++", "options": options})


def weights(run):
    return torch.cat([parameter.detach().flatten() for parameter in run.bare_network.parameters()])


@pytest.fixture(scope="module")
def data():
    return load_images(SLICE)


def test_noise_is_a_function_of_seed_and_step(data, tmp_path, monkeypatch):
    run = Trainer(ImageTask(recipe(D=3.5), data), tmp_path, progress=False)
    seen = []
    loss = type(run.task.objective).loss
    monkeypatch.setattr(
        type(run.task.objective), "loss", lambda self, *a, **k: (seen.append(a[2]), loss(self, *a, **k))[1]
    )
    run._train_step()
    run._train_step()
    for step, noise in enumerate(seen):
        images, _, generator = run.task.batches.draw(step, 0)
        run.task.objective.draw_times(len(images), generator)
        normal = torch.randn(images.shape, generator=generator)
        assert torch.equal(noise, run.task.path.noise(normal, generator))
        factors = (noise / normal).flatten(1)
        torch.testing.assert_close(factors, factors[:, :1].expand_as(factors), rtol=1e-4, atol=0)
        assert factors[:, 0].unique().numel() == 16


def test_an_interrupted_run_ends_the_same(data, tmp_path):
    whole = Trainer(ImageTask(recipe(D=3.5), data), tmp_path / "whole", progress=False)
    whole.run()
    half = Trainer(ImageTask(recipe(D=3.5), data), tmp_path / "half", progress=False)
    half._stop.asked = True  # after one step, as a signal does
    with pytest.raises(KeyboardInterrupt):
        half.run()
    assert half.step == 1
    again = Trainer(ImageTask(recipe(D=3.5), data), tmp_path / "half", progress=False)
    assert again.step == 1
    again.run()
    assert torch.equal(weights(whole), weights(again))
    gaussian = Trainer(ImageTask(recipe(D="inf"), data), tmp_path / "inf", progress=False)
    gaussian.run()
    assert not torch.equal(weights(whole), weights(gaussian))
    with pytest.raises(InputError, match="another 'path'"):
        Trainer(ImageTask(recipe(D=4), data), tmp_path / "half", progress=False)


def test_without_augmentation_it_trains_as_edm(data, tmp_path):
    edm = Recipe(**{**SMALL, "path": {"type": "edm"}, "objective": {**SMALL["objective"], "type": "edm"}})
    runs = [
        Trainer(ImageTask(r, data), tmp_path / str(n), progress=False) for n, r in enumerate((recipe(D="inf"), edm))
    ]
    for run in runs:
        run._train_step()
        run._train_step()
    assert torch.equal(*map(weights, runs))


def test_infinity_as_yaml_writes_it(data, tmp_path):
    recipe_file = tmp_path / "mine.yaml"
    recipe_file.write_text(recipe(D="inf").to_yaml().replace("D: inf", "D: .inf"))
    assert ".inf" in recipe_file.read_text()
    loaded = load_recipe(recipe_file)
    folder = train(loaded, out=tmp_path / "run", progress=False)
    assert ImagePipeline.from_pretrained(folder).scheduler.path.noise_law == "Gaussian"
    Trainer(
        ImageTask(loaded, data), tmp_path / "run", progress=False
    )  # the recipe in the folder is seen to be the same


def test_the_shipped_recipe_trains_and_samples(tmp_path):
    few = ["batch_size=4", "budget.images=8", "log.sample_every_steps=0", "precision=fp32"]
    few += ["network.options.block_out_channels=[16,16]", "network.options.layers_per_block=[1,1]"]
    few += ["network.options.attention_head_dim=16", "path.options.D=2048"]
    folder = train("fashion-mnist-pfgmpp", [*few, f"data.source={SLICE}"], out=tmp_path, progress=False)
    pipeline = ImagePipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.scheduler, PFGMPlusPlusScheduler)
    assert (pipeline.scheduler.path.D, pipeline.scheduler.config.solver) == (2048, "heun")
    images = pipeline(class_labels=[0, 9], num_inference_steps=2, output_type="pt").images
    assert images.shape == (2, 1, 28, 28)
    assert torch.isfinite(images).all()


def test_sigma_data_is_one_number_in_training_and_sampling(data, tmp_path):
    run = Trainer(ImageTask(recipe(sigma_data=0.3), data), tmp_path, progress=False)
    assert run.task.path.D == 128
    x, labels = torch.randn(2, 1, 28, 28), torch.tensor([0, 1])
    run._train_step()
    wrapped = from_diffusers(run.bare_network, run.task.path, "epsilon", sigma_data=0.3)
    assert isinstance(run.bare_network, LeanUNet2DModel)
    mine = run.task.model.predict(x, 0.01, class_labels=labels).x0
    assert torch.equal(mine, wrapped.predict(x, 0.01, class_labels=labels).x0)
    assert run.task.objective.weight(0.5) == wrapped.preconditioning.loss_weight(0.5)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"D": 0}, "D: got 0"), ({"D": "many"}, "D: got 'many'"), ({"d": 3}, "path.options: unknown key 'd'")],
)
def test_faults(data, tmp_path, options, says):
    with pytest.raises(InputError, match=says):
        Trainer(ImageTask(recipe(**options), data), tmp_path, progress=False)


def test_edm_takes_no_dimension(data, tmp_path):
    values = {**SMALL, "objective": {**SMALL["objective"], "type": "edm"}}
    with pytest.raises(InputError, match="path.options: unknown key 'D'"):
        Trainer(ImageTask(Recipe(**values, path={"type": "edm", "options": {"D": 4}}), data), tmp_path, progress=False)
