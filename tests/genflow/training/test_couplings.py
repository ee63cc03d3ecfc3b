"""Couplings in training: on every path, by the classes as they are, resumable, and as a recipe says them."""

import shutil
from pathlib import Path

import pytest
import torch

from genflow.data import ImageData, load_images
from genflow.errors import InputError
from genflow.training.checkpoints import latest_checkpoint
from genflow.training.image_task import ImageTask
from genflow.training.recipe import CouplingSection, Recipe, build_recipe, load_recipe
from genflow.training.trainer import Trainer

SLICE = Path(__file__).parents[2] / "data" / "fashion-1k-images-idx3-ubyte.gz"
PATHS = {
    "linear": {},
    "trigonometric": {},
    "vp": {"objective": {"type": "epsilon", "times": "uniform"}},
    "edm": {"objective": {"type": "edm", "times": "log-normal"}},
    "pfgm++": {"objective": {"type": "pfgm++", "times": "log-normal"}},
}


def recipe(path="linear", label_dropout=0.1, **changes):
    values = {
        "data": {"source": str(SLICE)},
        "network": {"options": {"block_out_channels": [16, 32], "layers_per_block": 1, "attention_head_dim": 16}},
        "path": {"type": path},
        "objective": {**PATHS[path].get("objective", {}), "label_dropout": label_dropout},
        "schedule": {"warmup_steps": 0},
        "budget": {"images": 96},
        "batch_size": 32,
        "precision": "fp32",
        "log": {"every_steps": 1, "sample_every_steps": 0, "checkpoint_every_steps": 1, "keep_checkpoints": 100},
        "sampling": {"scheduler": "euler", "steps": 2},
    }
    return Recipe(**{**values, **changes})


@pytest.fixture(scope="module")
def data():
    return load_images(SLICE)


def drawn(recipe, data, step=0, slot=0, size=32, slots=1):
    """What a task draws, and the classes of its images as they are."""
    task = ImageTask(recipe, data)
    task.device = torch.device("cpu")
    batches = task.stream(recipe.seed, size, slots)
    return task.draw(batches, step, slot), batches.classes(step, slot)


def rows_of(paired, noise):
    """Which row of ``noise`` each row of ``paired`` is."""
    same = (paired.flatten(1)[:, None] == noise.flatten(1)[None]).all(-1)
    assert (same.sum(1) == 1).all()
    return same.int().argmax(1)


@pytest.mark.parametrize("name", ["exact", "sinkhorn-newton"])
@pytest.mark.parametrize("path", PATHS)
def test_on_every_path_noise_changes_places_within_classes_and_nothing_else_changes(data, path, name):
    plain, classes = drawn(recipe(path), data)
    coupled, same_classes = drawn(recipe(path, coupling=name), data)
    assert torch.equal(plain.images, coupled.images)
    assert torch.equal(plain.labels, coupled.labels)
    assert torch.equal(plain.t, coupled.t)
    assert torch.equal(classes, same_classes)
    partners = rows_of(coupled.noise, plain.noise)
    assert torch.equal(classes[partners], classes)
    assert (partners != torch.arange(32)).sum() > 8
    # what couplings are for: products of images and noise grow, and with them distances shrink
    products = [(batch.images * batch.noise).sum() for batch in (plain, coupled)]
    assert products[1] > products[0]


def test_images_whose_label_is_dropped_stay_with_their_class(data):
    plain, classes = drawn(recipe(label_dropout=0.6), data, size=300)
    coupled, _ = drawn(recipe(label_dropout=0.6, coupling="exact"), data, size=300)
    dropped = coupled.labels == data.num_classes
    assert 100 < int(dropped.sum()) < 250
    assert torch.equal(coupled.labels[~dropped], classes[~dropped])
    partners = rows_of(coupled.noise, plain.noise)
    assert torch.equal(classes[partners], classes)
    # noise moves between those whose label is kept and those whose label is not
    assert (dropped[partners] != dropped).sum() > 50


def test_classes_can_be_coupled_together_and_images_without_labels_are(data):
    plain, classes = drawn(recipe(), data, size=100)
    whole, _ = drawn(recipe(coupling="exact:class_wise=false"), data, size=100)
    assert (classes[rows_of(whole.noise, plain.noise)] != classes).sum() > 30
    unlabelled = ImageData(data.images)
    batch, none = drawn(recipe(coupling="exact"), unlabelled, size=100)
    assert none is None
    assert batch.labels is None
    assert len(rows_of(batch.noise, drawn(recipe(), unlabelled, size=100)[0].noise).unique()) == 100
    with pytest.raises(InputError, match=r"coupling\.class_wise: True for images without labels"):
        ImageTask(recipe(coupling={"type": "exact", "class_wise": True}), unlabelled)


def test_every_micro_batch_is_coupled_by_itself(data):
    for slot in (0, 1):
        plain, _ = drawn(recipe(), data, 3, slot, 16, 2)
        coupled, _ = drawn(recipe(coupling="exact"), data, 3, slot, 16, 2)
        assert sorted(rows_of(coupled.noise, plain.noise).tolist()) == list(range(16))


def test_an_interrupted_run_goes_on_to_the_same_bytes(data, tmp_path):
    wanted = recipe(coupling="sinkhorn-newton:reg=0.2", accumulate=2)
    Trainer(ImageTask(wanted, data), tmp_path, progress=False).run()
    newest = latest_checkpoint(tmp_path / "checkpoints")
    whole = (newest / "network.safetensors").read_bytes()
    assert newest.name == "step-00000003"
    for step in (2, 3):
        shutil.rmtree(tmp_path / "checkpoints" / f"step-0000000{step}")
    Trainer(ImageTask(wanted, data), tmp_path, progress=False).run()
    assert (newest / "network.safetensors").read_bytes() == whole
    with pytest.raises(InputError, match="coupling"):
        Trainer(ImageTask(recipe(accumulate=2), data), tmp_path, progress=False)


@pytest.mark.parametrize(
    ("override", "section"),
    [
        ("coupling=sinkhorn-newton", {"type": "sinkhorn-newton"}),
        ("coupling=sinkhorn:reg=5e-2", {"type": "sinkhorn", "options": {"reg": 0.05}}),
        ("coupling=exact:class_wise=false", {"type": "exact", "class_wise": False}),
        ("coupling.type=exact", {"type": "exact"}),
    ],
)
def test_a_recipe_says_its_coupling_in_a_word_or_in_full(override, section):
    read = load_recipe("fashion-mnist", [override])
    assert read.coupling == CouplingSection(**section)
    assert load_recipe("fashion-mnist").coupling.type == "independent"


def test_a_recipe_with_a_coupling_reads_back_what_it_wrote(tmp_path):
    first = load_recipe("fashion-mnist", ["coupling=sinkhorn-newton:reg=0.05:class_wise=false"])
    (tmp_path / "recipe.yaml").write_text(first.to_yaml())
    assert load_recipe(tmp_path / "recipe.yaml") == first


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("coupling=sinkhorn-newtn", r"coupling\.type: got 'sinkhorn-newtn'"),
        ("coupling=sinkhorn:rge=1", "did you mean 'reg'"),
        ("coupling=sinkhorn:reg=0", "reg: got 0"),
        ("coupling=exact:reg=0.1", "option 'reg' is not known"),
        ("coupling=sinkhorn:reg", "not of the form key=value"),
        ("coupling=[1]", "coupling: got"),
        ("coupling.options={class_wise: true}", "a key of its own"),
        ("coupling.class_wse=true", "did you mean 'class_wise'"),
    ],
)
def test_a_coupling_that_is_none_is_refused_before_any_work(override, message):
    with pytest.raises(InputError, match=message):
        load_recipe("fashion-mnist", [override])


@pytest.mark.parametrize(
    ("interpolant", "override", "message"),
    [
        ({"source": "b", "pairing": "paired"}, "coupling=exact", "coupling: 'exact'; allowed for a mirror or paired"),
        ({"type": "mirror"}, "coupling=sinkhorn", "coupling: 'sinkhorn'; allowed for a mirror or paired"),
        ({"source": "b"}, "coupling=exact:class_wise=true", "coupling.class_wise: True, and interpolant.class_wise is"),
    ],
)
def test_an_interpolant_whose_pairs_are_given_is_not_coupled(interpolant, override, message):
    with pytest.raises(InputError, match=message):
        build_recipe({"data": {"source": "a"}, "interpolant": interpolant, "budget": {"images": 1}}, [override])
