"""Reflow from a saved teacher to a saved student: what is trained, what is written, how it resumes and refuses."""

import dataclasses
import json
import math
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from accelerate import PartialState
from diffusers import AutoencoderKL, DDPMScheduler
from safetensors.torch import load_file, save_file

from genflow.cli import main
from genflow.distillation import Pairs, reflow
from genflow.distillation.reflow_recipe import load_reflow_recipe
from genflow.distillation.reflow_task import PairStream, ReflowTask
from genflow.distillation.teacher import ODETeacher
from genflow.errors import InputError, NonFiniteError
from genflow.models import from_function
from genflow.pipelines import ImagePipeline
from genflow.schedulers import EDMFamily, RectifiedFlowScheduler

TINY = [
    "pairs.count=24",
    "pairs.shard_size=16",
    "pairs.steps=4",
    "batch_size=8",
    "budget.images=40",
    "schedule.warmup_steps=0",
    "precision=fp32",
    "measure.samples=6",
    "measure.steps=4",
    "log.every_steps=1",
    "log.checkpoint_every_steps=2",
    "log.sample_every_steps=0",
]


def weights(folder):
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def random_pairs(count=40, labels=True):
    generator = torch.Generator().manual_seed(0)
    noise, images = (torch.randn(count, 1, 8, 8, generator=generator) for _ in range(2))
    return Pairs(noise, images, torch.arange(count) % 3 if labels else None)


def task_of(folder, *settings, pairs=None):
    pairs = random_pairs() if pairs is None else pairs
    return ReflowTask(load_reflow_recipe(None, [*TINY, *settings]), ODETeacher(folder), pairs)


def bound(task, size=8):
    network = task.create_network()
    task.bind(network, network, torch.device("cpu"), size, 1)
    return network


def test_rounds_and_distillation_end_to_end(make_teacher, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(PartialState, "destroy_process_group", None)  # processes may go on together
    teacher = make_teacher(default_guidance_scale=1.5, class_names=["a", "b", "c"])
    out = tmp_path / "out"
    folder = reflow(teacher, out, rounds=2, distill_steps=2, overrides=TINY, progress=False)
    assert folder == out / "pipeline"
    assert sorted(p.name for p in out.iterdir()) == ["distill-2", "pipeline", "reflow.json", "round-1", "round-2"]
    report = json.loads((out / "reflow.json").read_text())
    assert [stage["stage"] for stage in report["stages"]] == ["round-1", "round-2", "distill-2"]
    first, second, last = report["stages"]
    assert first["pairs"]["guidance"]["scale"] == 1.5
    assert second["pairs"]["guidance"] is None  # the first student has it
    assert second["teacher"] == first["student"]
    assert last["teacher"] == second["student"]
    assert second["before"] == first["after"]
    for stage in report["stages"]:
        for when in ("before", "after"):
            assert stage[when]["straightness"] > 0
            assert set(stage[when]["few_step_error"]) == {"1", "2", "4"}
    assert last["distance_to_teacher"]["steps"] == 2

    student = ImagePipeline.from_pretrained(folder)
    assert student.config.default_steps == 2
    assert student.config.default_guidance_scale == 1.0
    assert student.config.class_names == ["a", "b", "c"]
    assert (type(student.scheduler), student.scheduler.config.solver) == (RectifiedFlowScheduler, "euler")
    assert ImagePipeline.from_pretrained(out / "round-1" / "train" / "pipeline").config.default_steps == 1
    assert not all(torch.equal(a, b) for a, b in zip(weights(folder).values(), weights(teacher).values(), strict=True))

    # the same again does nothing, without the pairs too; the command makes images of it
    shutil.rmtree(out / "round-1" / "pairs")
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/train/**/*")}
    arguments = ["distill", "reflow", str(teacher), "--out", str(out), "--rounds", "2", "--distill-steps", "2"]
    assert main.run([*arguments, *(word for setting in TINY for word in ("--set", setting))]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/train/**/*")} == before
    assert not (out / "round-1" / "pairs").exists()
    assert main.run(["generate", "--model", str(folder), "--seeds", "0-2", "--out", str(tmp_path / "images")]) == 0
    assert (tmp_path / "images" / "grid.png").is_file()


def test_interrupted_training_goes_on_to_the_same_weights(make_teacher, tmp_path, monkeypatch):
    teacher = make_teacher()
    whole = reflow(teacher, tmp_path / "whole", overrides=TINY, progress=False)
    loss = ReflowTask.loss

    def stopped(self, step, slot):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(self, step, slot)

    with monkeypatch.context() as patch:
        patch.setattr(ReflowTask, "loss", stopped)
        with pytest.raises(KeyboardInterrupt):
            reflow(teacher, tmp_path / "cut", overrides=TINY, progress=False)
    assert not (tmp_path / "cut" / "reflow.json").exists()
    # what is measured may change in between
    cut = reflow(teacher, tmp_path / "cut", overrides=[*TINY, "measure.samples=0"], progress=False)
    ours, theirs = weights(cut), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert "before" not in json.loads((tmp_path / "cut" / "reflow.json").read_text())["stages"][0]


def test_a_run_of_other_settings_or_another_teacher_is_refused(make_teacher, tmp_path):
    teacher, out = make_teacher(), tmp_path / "out"
    reflow(teacher, out, overrides=TINY, progress=False)
    with pytest.raises(InputError, match="round-1 holds a finished stage with another 'optimizer'.*--restart"):
        reflow(teacher, out, overrides=[*TINY, "optimizer.lr=0.1"], progress=False)
    other = make_teacher("other", default_steps=9)
    with pytest.raises(InputError, match="another 'model'"):
        reflow(other, out, overrides=TINY, progress=False)
    (out / "note.txt").write_text("mine")
    reflow(other, out, overrides=TINY, restart=True, progress=False)
    assert (out / "note.txt").is_file()  # a restart removes what a run makes, and nothing else
    # one more round goes on from the first
    reflow(other, out, rounds=2, overrides=TINY, progress=False)
    assert (out / "round-2" / "stage.json").is_file()
    shutil.rmtree(out / "round-1" / "train")
    with pytest.raises(InputError, match="the student of a finished stage is not there"):
        reflow(other, out, rounds=2, overrides=TINY, progress=False)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rounds": 0}, "rounds: 0 and no distill_steps"),
        ({"rounds": -1}, "rounds: got -1"),
        ({"distill_steps": 0}, "distill_steps: got 0"),
        ({"pairs": 0}, "pairs: got 0"),
        ({"overrides": ["network.type=dit"]}, "network: cannot be set; reflow takes its network"),
        ({"overrides": ["path.type=vp"]}, "path: cannot be set"),
        ({"overrides": ["data.source=x"]}, "pairs.real: 0 with data.source given; allowed: both, or neither"),
        ({"overrides": ["pairs.real=5"]}, "pairs.real: 5 with data.source not given"),
        ({"overrides": ["pairs.real=5", "data.source=./none.npz"]}, "data.source: './none.npz'"),
        ({"overrides": ["objective.type=epsilon"]}, "objective.type: 'epsilon'; allowed in reflow: velocity"),
        ({"overrides": ["pairs.cuont=3"]}, r"reflow: unknown key 'pairs.cuont' \(did you mean 'count'\?\)"),
        ({"overrides": ["objective.times=u-shape"]}, "objective.times"),
        ({"overrides": ["pairs.solver=sde"]}, "pairs.solver: 'sde'"),
        ({"trackers": ["wandbb"]}, "tracker: 'wandbb'"),
    ],
)
def test_bad_settings_are_refused_before_any_work(make_teacher, tmp_path, options, says):
    with pytest.raises(InputError, match=says):
        reflow(make_teacher(), tmp_path / "out", progress=False, **options)
    assert not list((tmp_path / "out").glob("**/*"))


def test_settings_the_teacher_cannot_have_are_refused_before_any_work(make_teacher, tmp_path):
    plain = make_teacher("plain", classes=None)
    with pytest.raises(InputError, match="objective.label_dropout: the teacher has no unconditional class"):
        reflow(plain, tmp_path / "out", overrides=["objective.label_dropout=0.1"], progress=False)
    assert not list((tmp_path / "out").glob("**/*"))
    with pytest.raises(InputError, match="model: "):
        reflow(tmp_path / "nothing", tmp_path / "out", progress=False)


def test_a_recipe_file_changes_what_it_names(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("optimizer: {lr: 0.003}\npairs: {count: 7}\n", encoding="utf-8")
    recipe, default = load_reflow_recipe(file, ["batch_size=64"]), load_reflow_recipe()
    assert (recipe.optimizer.lr, recipe.pairs.count, recipe.batch_size) == (0.003, 7, 64)
    assert recipe.optimizer.options == default.optimizer.options
    assert recipe.objective == default.objective
    assert default.objective.times == "u-shaped"
    file.write_text(recipe.to_yaml(), encoding="utf-8")  # what a run leaves behind makes it again
    assert load_reflow_recipe(file) == recipe


def test_batches_are_the_pairs_themselves_and_a_function_of_the_step(make_teacher):
    pairs = random_pairs()
    stream = PairStream(pairs, seed=3, size=8, slots=2, device=torch.device("cpu"))
    seen = []
    for step, slot in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0)):  # one epoch
        images, noise, labels, _ = stream.draw(step, slot)
        rows = [int((pairs.noise == row).all(dim=(1, 2, 3)).nonzero()) for row in noise]
        assert torch.equal(images, pairs.images[rows])
        assert torch.equal(labels, pairs.labels[rows])
        seen += rows
    assert sorted(seen) == list(range(40))
    again = stream.draw(1, 1)
    assert torch.equal(again[0], stream.draw(1, 1)[0])
    dropping = dataclasses.replace(stream, null_label=3, label_dropout=0.5)
    labels = torch.cat([dropping.draw(step, 0)[2] for step in range(50)])
    assert 0.4 < float((labels == 3).float().mean()) < 0.6
    assert PairStream(random_pairs(labels=False), 0, 4, 1, torch.device("cpu")).draw(0, 0)[2] is None


def test_pairs_of_another_shape_are_refused(make_teacher):
    with pytest.raises(InputError, match="pairs: of .*the teacher makes"):
        task_of(make_teacher(), pairs=Pairs(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)))


@pytest.mark.parametrize("kind", ["flow", "v", "edm", "epsilon"])
def test_a_student_begins_as_its_teacher_where_they_share_a_path(make_teacher, kind):
    """Before the first step the student's eps - x0 is the teacher's, on the teacher's path: nothing is unlearned."""
    scheduler = {
        "flow": None,
        "v": DDPMScheduler(prediction_type="v_prediction"),
        "edm": RectifiedFlowScheduler(**EDMFamily({}).config),
        "epsilon": DDPMScheduler(),
    }[kind]
    folder = make_teacher(scheduler=scheduler)
    task = task_of(folder, "grid_steps=2")
    bound(task)
    teacher = ImagePipeline.from_pretrained(folder).path_model()
    if kind == "epsilon":  # cannot tell x0 at pure noise: a flow on the linear path instead
        assert task.family.name == "flow"
        return
    assert task.path == teacher.path
    x, t = torch.randn(4, 1, 8, 8), torch.tensor([1.0, 0.9, 0.5, 0.1], dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        ours, theirs = (m.predict(x, t, class_labels=labels).flow_prediction for m in (task.model, teacher))
    torch.testing.assert_close(ours, theirs)
    grid = task.objective.grid
    assert grid[0] == 1.0
    assert len(grid) == 2
    batch = task.draw(task.batches, 0, 0)
    assert set(batch.t.tolist()) <= set(grid)
    # and where the student is asked is where it is trained
    pipeline = task.build_pipeline(task.model.network)
    pipeline.scheduler.set_timesteps(2)
    assert tuple(pipeline.scheduler.times.tolist()) == grid


@pytest.mark.parametrize("kind", ["flow", "v", "edm"])
def test_the_loss_is_the_error_on_the_line_of_each_pair(make_teacher, kind):
    scheduler = {
        "flow": None,
        "v": DDPMScheduler(prediction_type="v_prediction"),
        "edm": RectifiedFlowScheduler(**EDMFamily({}).config),
    }[kind]
    task = task_of(make_teacher(scheduler=scheduler))
    bound(task)
    batch = task.draw(task.batches, 4, 0)
    assert float(batch.t.max()) <= 1
    # by hand: u is U-shaped on every path, and the state is the line's point in the path's scale
    path, shape = task.path, (-1, 1, 1, 1)
    alpha, sigma = path.alpha(batch.t), path.sigma(batch.t)
    u = (sigma / (alpha + sigma)).view(shape).float()
    line = (1 - u) * batch.images + u * batch.noise
    x = (alpha + sigma).view(shape).float() * line
    with torch.no_grad():
        v = task.model.predict(x, batch.t, class_labels=batch.labels).flow_prediction
        expected = (v - (batch.noise - batch.images)).square().mean()
        torch.testing.assert_close(task.loss(4, 0), expected, rtol=1e-3, atol=1e-5)
    straight = from_function(lambda *_, **__: batch.noise - batch.images, path, "flow_prediction")
    assert float(task._loss(straight, batch)) < 1e-9


def test_real_images_join_the_pairs(make_teacher, tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 8, 8), generator=generator, dtype=torch.uint8).numpy()
    np.savez(tmp_path / "real.npz", arr_0=images, labels=np.arange(12) % 3)
    settings = [*TINY, "pairs.real=10", f"data.source={tmp_path / 'real.npz'}"]
    reflow(make_teacher(), tmp_path / "out", overrides=settings, progress=False)
    stage = json.loads((tmp_path / "out" / "reflow.json").read_text())["stages"][0]
    assert stage["pairs"]["count"] == 34
    assert len(list((tmp_path / "out" / "round-1" / "real").glob("*.safetensors"))) == 1


def test_a_teacher_in_latents_gives_a_student_in_latents(make_teacher, tmp_path):
    torch.manual_seed(0)
    vae = AutoencoderKL(in_channels=3, out_channels=3, latent_channels=1, block_out_channels=(8,), norm_num_groups=4)
    teacher = make_teacher(vae=vae)
    folder = reflow(teacher, tmp_path / "out", overrides=TINY, progress=False)
    student = ImagePipeline.from_pretrained(folder)
    assert student.vae.config.latent_channels == 1
    assert student(class_labels=[0, 1], output_type="pt").images.shape == (2, 3, 8, 8)
    with pytest.raises(InputError, match="'lpips-huber' is for pixels"):
        reflow(teacher, tmp_path / "other", overrides=[*TINY, "objective.error=lpips-huber"], progress=False)
    assert not list((tmp_path / "other").glob("**/*"))


def test_a_network_that_never_moved_is_measured_too(make_teacher, tmp_path):
    """An untrained teacher's velocity is 0: no length to compare, and the report is JSON all the same."""
    teacher = ODETeacher(make_teacher())
    for parameter in teacher.pipeline.unet.parameters():
        parameter.zero_()
    found = json.loads(json.dumps(teacher.measure(4, 3), allow_nan=False))
    assert found["detour"] is None
    assert found["straightness"] == found["transport_cost"] == 0


def test_pictures_and_dynamics_while_training_in_half_precision(make_teacher, tmp_path, capsys):
    settings = ["log.sample_every_steps=2", "dynamics.enabled=true", "dynamics.images=4", "dynamics.micro_batch=4"]
    settings += ["dynamics.every_steps=3", "dynamics.lanczos_steps=2", "precision=bf16", "pairs.dtype=float16"]
    reflow(make_teacher(), tmp_path / "out", overrides=[*TINY, *settings, "pairs.precision=bf16"])
    train = tmp_path / "out" / "round-1" / "train"
    assert (train / "samples" / "step-00000002.png").is_file()
    assert (train / "dynamics.jsonl").is_file()
    told = capsys.readouterr().out
    assert "round-1: 24 pairs" in told
    assert "straightness" in told


def test_a_student_that_diverges_stops_and_keeps_its_last_good_checkpoint(make_teacher, tmp_path, monkeypatch):
    loss = ReflowTask.loss
    monkeypatch.setattr(ReflowTask, "loss", lambda self, n, slot: loss(self, n, slot) * (1 if n < 3 else math.nan))
    with pytest.raises(NonFiniteError, match=r"the loss is nan between steps 4 and 4; .*step-00000002"):
        reflow(make_teacher(), tmp_path / "out", overrides=TINY, progress=False)
    assert not (tmp_path / "out" / "round-1" / "stage.json").exists()
    assert not (tmp_path / "out" / "pipeline").exists()


def test_a_teacher_that_gives_nan_is_named_before_a_shard_is_written(make_teacher, tmp_path):
    folder = make_teacher()
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    broken = {name: torch.full_like(value, math.nan) for name, value in load_file(file).items()}
    save_file(broken, file, metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match="the network gave NaN or infinity at step 1 of 4"):
        reflow(folder, tmp_path / "out", overrides=TINY, progress=False)
    assert not list((tmp_path / "out").glob("**/*.safetensors"))


def test_students_learn_their_pairs(make_teacher, tmp_path):
    """Few pairs, many steps: one evaluation gives back each pair's image, which the teacher's does not."""
    teacher = make_teacher(classes=None)
    settings = [s for s in TINY if not s.startswith(("budget", "pairs.count", "log.checkpoint"))]
    settings += ["pairs.count=8", "budget.images=1600", "optimizer.lr=3e-3", "ema.decay=0.9", "measure.samples=0"]
    folder = reflow(teacher, tmp_path / "out", rounds=0, distill_steps=1, overrides=settings, progress=False)
    stored = load_file(tmp_path / "out" / "distill-1" / "pairs" / "shard-00000.safetensors")

    def error(path):
        pipeline = ImagePipeline.from_pretrained(path)
        made = pipeline(latents=stored["noise"], num_inference_steps=1, output_type="latent").images
        return float((made - stored["images"]).square().mean().sqrt())

    assert error(folder) < 0.3 * error(teacher)


@pytest.mark.slow
def test_two_processes_make_the_student_of_one(make_teacher, launch, tmp_path):
    teacher = make_teacher()
    # times are drawn for each micro-batch: two processes draw those of one that takes two in turn
    one = reflow(teacher, tmp_path / "one", overrides=[*TINY, "accumulate=2"], progress=False)
    words = [word for setting in TINY for word in ("--set", setting)]
    launch("-m", "genflow", "distill", "reflow", teacher, "--out", tmp_path / "two", *words)
    ours, theirs = weights(tmp_path / "two" / "pipeline"), weights(one)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=2e-4)
    shards = [tmp_path / run / "round-1" / "pairs" / "shard-00001.safetensors" for run in ("one", "two")]
    assert shards[0].read_bytes() == shards[1].read_bytes()
