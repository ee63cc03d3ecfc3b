"""Pairs of noise and image: what they are, that they resume to the same bytes, and that damage is named."""

import tempfile
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from genflow.data import ImageData
from genflow.distillation import Pairs, load_pairs, make_pairs
from genflow.distillation.shards import ShardStore
from genflow.distillation.teacher import ODETeacher
from genflow.errors import InputError
from genflow.models import from_function
from genflow.pipelines import ImagePipeline
from genflow.schedulers import (
    EDMFamily,
    GHVBScheduler,
    PFGMPlusPlusScheduler,
    RectifiedFlowScheduler,
    StochasticInterpolantScheduler,
    create_scheduler,
)

MEANS, STD = (-0.4, 0.1, 0.6), 0.5
SMALL = {"count": 10, "shard_size": 4, "progress": False, "device": "cpu"}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pairs_are_the_closed_form_of_a_gaussian(gaussian_teacher, tmp_path):
    make_pairs(gaussian_teacher, tmp_path / "p", count=300, shard_size=128, progress=False)
    pairs = load_pairs(tmp_path / "p")
    assert len(pairs) == 300
    assert pairs.labels.tolist() == [row % 3 for row in range(300)]
    means = torch.tensor(MEANS)[pairs.labels].view(-1, 1, 1, 1)
    torch.testing.assert_close(pairs.images, means + STD * pairs.noise, rtol=0, atol=1e-5)
    # standard normal noise, each its own
    assert abs(float(pairs.noise.mean())) < 4 / 4800**0.5
    assert abs(float(pairs.noise.std()) - 1) < 4 / (2 * 4800) ** 0.5
    assert len({row.numpy().tobytes() for row in pairs.noise}) == 300


@pytest.mark.parametrize("solver", [None, "ghvb", "dpm++"])
def test_pairs_are_what_the_pipeline_makes_guidance_included(make_teacher, tmp_path, solver):
    folder = make_teacher(default_guidance_scale=2.0, default_guidance_interval=[0.1, 5.0])
    make_pairs(folder, tmp_path / "p", solver=solver, **SMALL)
    pairs = load_pairs(tmp_path / "p")
    pipeline = ImagePipeline.from_pretrained(folder)
    if solver is not None:
        pipeline.scheduler = create_scheduler(solver, pipeline.scheduler.config)
    made = pipeline(class_labels=pairs.labels, latents=pairs.noise, output_type="latent").images
    torch.testing.assert_close(pairs.images, made, rtol=1e-5, atol=1e-5)
    plain = pipeline(class_labels=pairs.labels, latents=pairs.noise, guidance_scale=1.0, output_type="latent").images
    assert float((pairs.images - plain).abs().max()) > 1e-3


def test_noise_does_not_depend_on_batch_or_on_how_many_there_are(make_teacher, tmp_path):
    folder = make_teacher()
    make_pairs(folder, tmp_path / "a", **SMALL)
    make_pairs(folder, tmp_path / "b", **{**SMALL, "count": 8}, batch_size=3)
    a, b = load_pairs(tmp_path / "a"), load_pairs(tmp_path / "b")
    assert torch.equal(a.noise[:8], b.noise)
    torch.testing.assert_close(a.images[:8], b.images, rtol=1e-5, atol=1e-5)
    make_pairs(folder, tmp_path / "c", **SMALL, seed=1)
    assert not torch.isin(load_pairs(tmp_path / "c").noise, a.noise).any()


def test_only_missing_shards_are_made_and_to_the_same_bytes(make_teacher, tmp_path, monkeypatch):
    folder, target = make_teacher(), tmp_path / "p"
    make_pairs(folder, target, **SMALL)
    before = contents(target)
    assert sorted(before) == ["manifest.json", *(f"shard-0000{i}.safetensors" for i in range(3))]
    (target / "shard-00001.safetensors").unlink()
    stamps = {name: (target / name).stat().st_mtime_ns for name in contents(target)}
    solved = []
    solve = ODETeacher.solve
    monkeypatch.setattr(
        ODETeacher, "solve", lambda self, noise, *a: solved.append(len(noise)) or solve(self, noise, *a)
    )
    make_pairs(folder, target, **SMALL)
    assert solved == [4]
    assert contents(target) == before
    assert all((target / name).stat().st_mtime_ns == stamp for name, stamp in stamps.items())


def test_an_interrupted_run_goes_on_to_the_same_bytes(make_teacher, tmp_path, monkeypatch):
    folder = make_teacher()
    make_pairs(folder, tmp_path / "whole", **SMALL, batch_size=2)
    solve, calls = ODETeacher.solve, []

    def interrupted(self, noise, *arguments):
        calls.append(len(noise))
        if len(calls) == 4:  # in the middle of the second shard
            raise KeyboardInterrupt
        return solve(self, noise, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ODETeacher, "solve", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_pairs(folder, tmp_path / "cut", **SMALL, batch_size=2)
    assert sorted(contents(tmp_path / "cut")) == ["manifest.json", "shard-00000.safetensors"]
    with pytest.raises(InputError, match="shard-00001.safetensors: 2 of 3 shards are missing"):
        load_pairs(tmp_path / "cut")
    make_pairs(folder, tmp_path / "cut", **SMALL, batch_size=2)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_half_precision_pairs_belong_to_the_noise_that_is_stored(gaussian_teacher, tmp_path):
    make_pairs(gaussian_teacher, tmp_path / "p", **SMALL, dtype="float16")
    pairs = load_pairs(tmp_path / "p")
    assert pairs.noise.dtype == pairs.images.dtype == torch.float16
    means = torch.tensor(MEANS)[pairs.labels].view(-1, 1, 1, 1)
    exact = means + STD * pairs.noise.float()
    # half a unit in the last place of the image, and the solver's error
    assert bool(((pairs.images.float() - exact).abs() <= exact.abs() * 2**-11 + 2e-5).all())


def test_a_damaged_shard_is_named(make_teacher, tmp_path):
    folder, target = make_teacher(), tmp_path / "p"
    make_pairs(folder, target, **SMALL)
    shard = target / "shard-00001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-7])
    for use in (load_pairs, lambda path: make_pairs(folder, path, **SMALL)):
        with pytest.raises(InputError, match=r"shard-00001.safetensors: damaged shard .*remove it"):
            use(target)
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    shard.write_bytes(flipped)
    with pytest.raises(InputError, match=r"shard-00001.safetensors: damaged shard \(its bytes have changed\)"):
        load_pairs(target)
    save_file(load_file(target / "shard-00000.safetensors"), shard)
    with pytest.raises(InputError, match="shard-00001.safetensors: not a shard of this manifest"):
        load_pairs(target)
    shard.unlink()
    make_pairs(folder, target, **SMALL)
    assert shard.read_bytes() == whole


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"count": 11}, "count"),
        ({"seed": 5}, "seed"),
        ({"steps": 9}, "evaluations"),
        ({"guidance_scale": 3.0}, "guidance"),
    ],
)
def test_pairs_of_other_settings_are_refused(make_teacher, tmp_path, changes, key):
    folder = make_teacher()
    make_pairs(folder, tmp_path / "p", **SMALL)
    with pytest.raises(InputError, match=f"its '{key}' is .*--restart"):
        make_pairs(folder, tmp_path / "p", **{**SMALL, **changes})


def test_another_teacher_is_refused(make_teacher, tmp_path):
    make_pairs(make_teacher(), tmp_path / "p", **SMALL)
    other = make_teacher("other", classes=None)
    with pytest.raises(InputError, match="its .* is .*allowed: the same"):
        make_pairs(other, tmp_path / "p", **SMALL)
    make_pairs(other, tmp_path / "q", **SMALL)
    assert load_pairs(tmp_path / "q").labels is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"count": 0}, "pairs.count: got 0"),
        ({"shard_size": 0}, "pairs.shard_size: got 0"),
        ({"batch_size": 0}, "pairs.batch_size: got 0"),
        ({"dtype": "bfloat16"}, "pairs.dtype: 'bfloat16'"),
        ({"precision": "fp8"}, "precision: 'fp8'"),
        ({"solver": "hein"}, "scheduler: 'hein' is not known .did you mean 'heun'"),
        ({"solver": "sde"}, "pairs.solver: 'sde'; allowed: a scheduler of genflow's that draws no noise"),
        ({"solver": "DDIMScheduler"}, "DDIMScheduler"),
        ({"solver_options": {"order": 3}}, "'order' is not known"),
        ({"steps": 0}, "pairs.steps: got 0"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(make_teacher, tmp_path, options, says):
    with pytest.raises(InputError, match=says):
        make_pairs(make_teacher(), tmp_path / "p", **{**SMALL, **options})
    assert not (tmp_path / "p" / "manifest.json").exists()


def test_teachers_that_have_no_ode_of_gaussian_noise(make_teacher, tmp_path):
    student_t = make_teacher("pfgm", PFGMPlusPlusScheduler(D=64))
    with pytest.raises(InputError, match="noise; allowed: Gaussian"):
        make_pairs(student_t, tmp_path / "p", **SMALL)
    plain = make_teacher("plain", classes=None)
    with pytest.raises(InputError, match="pairs.guidance_scale: 2"):
        make_pairs(plain, tmp_path / "p", **SMALL, guidance_scale=2.0)
    # a stochastic sampler of the teacher's gives way to Heun, and a few-step one to 16 steps of it
    noisy = ODETeacher(make_teacher("sde", StochasticInterpolantScheduler()))
    assert (noisy.describe()["config"]["solver"], noisy.steps) == ("heun", 8)
    quick = ODETeacher(make_teacher("quick", GHVBScheduler(), default_steps=2))
    assert (quick.describe()["config"]["solver"], quick.steps, quick.describe()["evaluations"]) == ("heun", 16, 31)
    told = ODETeacher(make_teacher("told", GHVBScheduler(), default_steps=2), steps=2)
    assert (told.describe()["solver"], told.steps) == ("GHVBScheduler", 2)


def some_images(count=30, classes=3, size=4):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, size, size), generator=generator, dtype=torch.uint8)
    return ImageData(images, torch.arange(count) % classes if classes else None)


def test_real_images_are_carried_to_the_noise_of_the_closed_form(gaussian_teacher, tmp_path):
    images = some_images()
    options = {**SMALL, "count": 20, "steps": 200, "images": images}
    make_pairs(gaussian_teacher, tmp_path / "p", **options)
    pairs = load_pairs(tmp_path / "p")
    rows = [int((images.images.float() / 127.5 - 1 == row).all(dim=(1, 2, 3)).nonzero()) for row in pairs.images]
    assert len(set(rows)) == 20
    assert torch.equal(pairs.labels, images.labels[rows])
    means = torch.tensor(MEANS)[pairs.labels].view(-1, 1, 1, 1)
    torch.testing.assert_close(pairs.noise, (pairs.images - means) / STD, rtol=0, atol=1e-3)
    before = contents(tmp_path / "p")
    (tmp_path / "p" / "shard-00002.safetensors").unlink()
    make_pairs(gaussian_teacher, tmp_path / "p", **options)
    assert contents(tmp_path / "p") == before
    with pytest.raises(InputError, match="its 'images' is"):
        make_pairs(gaussian_teacher, tmp_path / "p", **{**options, "images": None})


def on_path(kind):
    """A scheduler of each kind of path and prediction."""
    return {
        "flow": RectifiedFlowScheduler(solver="heun"),
        "epsilon": RectifiedFlowScheduler.from_config(DDPMScheduler().config, solver="heun"),
        "v": RectifiedFlowScheduler.from_config(DDPMScheduler(prediction_type="v_prediction").config, solver="heun"),
        "edm": RectifiedFlowScheduler(solver="heun", **EDMFamily({}).config),
    }[kind]


@pytest.mark.parametrize("kind", ["flow", "epsilon", "v", "edm"])
def test_inversion_is_the_exact_flow_of_a_gaussian(make_teacher, gaussian_flow, kind):
    teacher = ODETeacher(make_teacher(scheduler=on_path(kind), classes=None), steps=64)
    path = teacher.scheduler.path

    def flow(x, t):  # E[eps - x0 | x] for data normal(0.7, 0.5^2)
        alpha, sigma = path.alpha(t), path.sigma(t)
        return (sigma - alpha * 0.25) / (alpha**2 * 0.25 + sigma**2) * (x - alpha * 0.7) - 0.7

    teacher.pipeline.path_model = lambda: from_function(flow, path, "flow_prediction")
    images = 0.7 + 0.5 * torch.randn(5, 1, 8, 8)
    start = path.time(0.002) if kind in ("epsilon", "edm") else 0.0
    exact = gaussian_flow(path, path.alpha(start) * images, start, float(teacher.times[0]))
    found = teacher.invert(images, None) * path.sigma(float(teacher.times[0]))
    torch.testing.assert_close(found, exact, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kind", ["flow", "v", "edm"])
def test_a_teacher_carries_inverted_images_back(make_teacher, kind):
    """One guided map and its inverse, by networks that nobody trained."""
    teacher = ODETeacher(make_teacher(scheduler=on_path(kind), default_guidance_scale=1.5), steps=60)
    images = some_images(size=8).images[:6].float() / 127.5 - 1
    seen = []
    noise = teacher.invert(images, teacher.labels(6), seen.append)
    assert seen == list(range(60))
    back = teacher.solve(noise, teacher.labels(6))
    assert float((back - images).square().mean().sqrt()) < 0.03


def test_images_that_do_not_fit_the_teacher(gaussian_teacher, tmp_path):
    for images, says in (
        (some_images(size=5), r"\(1, 5, 5\) in pixels; allowed: \(1, 4, 4\)"),
        (some_images(5), "10 asked for, 5 there"),
        (some_images(classes=4), "4 classes; the teacher knows 3"),
        (some_images(classes=None), "None classes; the teacher knows 3"),
    ):
        with pytest.raises(InputError, match=says):
            make_pairs(gaussian_teacher, tmp_path / "p", **SMALL, images=images)


def test_pairs_of_shapes_that_do_not_fit():
    with pytest.raises(InputError, match="pairs: noise"):
        Pairs(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(InputError, match="labels: shape"):
        Pairs(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64))
    labelled = Pairs(torch.zeros(3, 2), torch.ones(3, 2), torch.arange(3))
    with pytest.raises(InputError, match="labels: only one"):
        labelled.join(Pairs(torch.zeros(3, 2), torch.zeros(3, 2)))
    assert labelled.join(labelled).labels.tolist() == [0, 1, 2, 0, 1, 2]


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 40),
    size=st.integers(1, 17),
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.int64]),
    missing=st.integers(0, 39),
)
def test_any_rows_come_back_from_their_shards(count, size, shape, dtype, missing):
    with tempfile.TemporaryDirectory() as folder:
        manifest = {"count": count, "shard_size": size}
        store = ShardStore(Path(folder), manifest, count, size)
        store.begin()
        whole = (torch.randn(count, *shape) * 100).to(dtype)
        assert [row for index in range(len(store)) for row in store.rows(index)] == list(range(count))
        left_out = missing % len(store)
        for index in range(len(store)):
            if index != left_out:
                store.write(index, {"values": whole[store.rows(index)]})
        assert store.missing() == [left_out]
        store.write(left_out, {"values": whole[store.rows(left_out)]})
        again = ShardStore.open(Path(folder))
        assert again == store
        assert torch.equal(again.read()["values"], whole)


def test_no_pairs_there(tmp_path):
    with pytest.raises(InputError, match=r"manifest.json: cannot be read"):
        load_pairs(tmp_path)


@pytest.mark.slow
def test_two_processes_share_the_shards(make_teacher, launch, tmp_path):
    folder = make_teacher()
    make_pairs(folder, tmp_path / "one", **SMALL)
    code = f"import sys; from genflow.distillation import make_pairs; make_pairs(sys.argv[1], sys.argv[2], **{SMALL!r})"
    launch(code, folder, tmp_path / "two")
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
