"""f-distill's loop on tiny networks: every teacher, resumption to the same bytes, and each way of going wrong."""

import copy
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from diffusers import UNet2DModel
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from genflow.cli import main
from genflow.data import ImageData
from genflow.distillation import FDistillRecipe, create_divergence, f_distill
from genflow.distillation.f_distill_run import FDistiller
from genflow.errors import DivergedError, InputError, NonFiniteError
from genflow.models.unet import LeanUNet2DModel
from genflow.pipelines import ImagePipeline, OneStepPipeline
from genflow.schedulers import PFGMPlusPlusScheduler, RectifiedFlowScheduler
from genflow.training.checkpoints import latest_checkpoint

NETWORKS = ("student", "fake", "discriminator", "ema", "ratio", "student_optimizer")
BETA = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS = {
    "flow": lambda: RectifiedFlowScheduler(),
    "shifted flow": lambda: RectifiedFlowScheduler(shift=3.0),
    "epsilon": lambda: RectifiedFlowScheduler(**BETA),
    "v_prediction": lambda: RectifiedFlowScheduler(prediction_type="v_prediction", **BETA),
    "edm": lambda: RectifiedFlowScheduler(sigma_data=0.5, sigma_min=0.002, sigma_max=80.0),
    "trigonometric": lambda: RectifiedFlowScheduler(interpolant="trigonometric", prediction_type="v_prediction"),
}


OFTEN = {"checkpoint_every_steps": 2}


def teacher(scheduler: str = "flow", num_classes: int | None = 3, scale: float = 1.5) -> ImagePipeline:
    """An 8x8 network with random weights everywhere."""
    torch.manual_seed(0)
    network = LeanUNet2DModel(
        sample_size=8, num_classes=num_classes, block_out_channels=(8, 16), layers_per_block=1, attention_head_dim=16,
        time_embed_dim=16,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape) * 0.05)
    names = ["cat", "dog", "owl"] if num_classes else None
    return ImagePipeline(network, SCHEDULERS[scheduler](), class_names=names, default_guidance_scale=scale)


@pytest.fixture(scope="module")
def data() -> ImageData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 1, 8, 8), generator=generator).to(torch.uint8)
    return ImageData(images, torch.arange(40) % 3, ("cat", "dog", "owl"))


def recipe(**changes) -> FDistillRecipe:
    values = {
        "teacher": {"model": "teacher"},
        "data": {"source": "images"},
        "student_every": 2,
        "optimizer": {"lr": 1e-3},
        "fake_optimizer": {"lr": 1e-3},
        "discriminator_optimizer": {"lr": 1e-3},
        "schedule": {"warmup_steps": 2, "decay": "cosine"},
        "ema": {"decay": 0.5},
        "iterations": 6,
        "batch_size": 8,
        "precision": "fp32",
        "log": {"every_steps": 2, "sample_every_steps": 0, "checkpoint_every_steps": 100, "keep_checkpoints": 9},
    }
    for key, value in changes.items():
        merge = isinstance(value, dict) and isinstance(values.get(key), dict)
        values[key] = {**values[key], **value} if merge else value
    return FDistillRecipe(**values)


def make(folder: Path, images: ImageData | None, pipeline: ImagePipeline | None = None, **changes) -> FDistiller:
    chosen = recipe(**changes)
    rule = create_divergence(chosen.divergence)
    return FDistiller(chosen, pipeline or teacher(), images, rule, folder, progress=False)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path, names=NETWORKS) -> dict[str, bytes]:
    newest = latest_checkpoint(folder / "checkpoints")
    return {name: (newest / f"{name}.safetensors").read_bytes() for name in names}


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_whole_run_and_its_files(data, tmp_path, monkeypatch):
    monkeypatch.setattr(PartialState, "destroy_process_group", None)  # processes may go on together
    run = make(tmp_path, data, log={"sample_every_steps": 3})
    before = copy.deepcopy(run.networks.pipeline.unet.state_dict())
    folder = run.run()
    found = rows(tmp_path)
    assert [row["step"] for row in found] == [2, 4, 6]
    assert {"student_loss", "gan_loss", "fake_loss", "discriminator_loss", "saturated", "images_per_second"} <= {
        *found[0]
    }
    assert (tmp_path / "loss.png").is_file()
    assert len(list((tmp_path / "samples").glob("*.png"))) == 2
    assert same(before, run.networks.pipeline.unet.state_dict())
    pipeline = OneStepPipeline.from_pretrained(folder)
    assert (pipeline.config.default_steps, pipeline.scheduler.config.student_times) == (1, [1.0])
    averaged = load_file(latest_checkpoint(tmp_path / "checkpoints") / "ema.safetensors")
    assert all(torch.equal(averaged[name], value) for name, value in pipeline.unet.named_parameters())
    assert any(not torch.equal(before[name], value) for name, value in averaged.items())
    # the same again changes nothing: the run is over
    assert make(tmp_path, data).run() == folder
    assert len(rows(tmp_path)) == 3


def test_two_time_scales(data, tmp_path):
    """Of student_every iterations the last moves the student, and only it; the others the rest, and only that."""
    run = make(tmp_path, data, student_every=3)
    parts = {"student": run.networks.student, "fake": run.networks.fake, "heads": run.networks.discriminator}
    moved = []
    for _ in range(6):
        before = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
        run._train_step()
        moved.append({name for name, part in parts.items() if not same(before[name], part.state_dict())})
    assert moved == 2 * [{"fake", "heads"}, {"fake", "heads"}, {"student"}]
    assert run.ema.optimization_step == 2


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 2])
def test_every_teacher(scheduler, steps, data, tmp_path):
    run = make(tmp_path, data, teacher(scheduler), steps=steps, iterations=4)
    pipeline = OneStepPipeline.from_pretrained(run.run())
    pipeline.set_progress_bar_config(disable=True)
    levels = pipeline.scheduler.config.student_times
    assert levels[0] == 1
    assert len(levels) == steps
    assert pipeline.scheduler.family.config == run.networks.scheduler.family.config
    images = pipeline(class_labels=[0, 1], output_type="pt").images
    assert torch.isfinite(images).all()


@pytest.mark.parametrize("divergence", ["reverse-kl", "forward-kl", "neyman", "jeffreys"])
@pytest.mark.parametrize("times", ["karras", "uniform", "log-normal"])
def test_divergences_and_times(divergence, times, data, tmp_path):
    run = make(tmp_path, data, divergence=divergence, times={"distribution": times}, iterations=2)
    run.run()
    t = run.networks.times.draw(1000, torch.Generator().manual_seed(0))
    level = run.networks.path.noise_level(t)
    assert run.networks.times.lowest * 0.999 <= level.min() < level.max() <= run.networks.times.highest * 1.001


def test_unconditional_teacher_takes_labelled_images(data, tmp_path):
    folder = make(tmp_path, data, teacher(num_classes=None), gan={"r1_weight": 10.0}).run()
    assert rows(tmp_path)[-1]["r1_loss"] >= 0
    assert len(OneStepPipeline.from_pretrained(folder)(batch_size=2).images) == 2


def test_a_network_of_diffusers(data, tmp_path):
    network = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    pipeline = ImagePipeline(network, SCHEDULERS["epsilon"]())
    folder = make(tmp_path, data, pipeline, gan={"features": ["mid_block", "up_blocks.0"]}, iterations=2).run()
    assert type(OneStepPipeline.from_pretrained(folder).unet) is UNet2DModel


def test_without_data(tmp_path):
    run = make(tmp_path, None, data=None, divergence="reverse-kl")
    assert run.networks.discriminator is None
    run.run()
    assert "discriminator_loss" not in rows(tmp_path)[-1]
    labels = torch.cat([run.draws.draw(step, 0, False).labels for step in range(40)])
    assert torch.bincount(labels, minlength=3).min() > 80


def test_without_data_weights_cannot_be_had():
    with pytest.raises(InputError, match="data.source: None; divergence 'js' weighs.*allowed without: reverse-kl"):
        f_distill("nowhere", out="x")


def test_backward_simulation(data, tmp_path):
    """A student of two levels is trained at each, on states of its own making, as the pipeline makes them."""
    run = make(tmp_path, data, steps=2, student_times=[1.0, 0.4])
    depths = [run.draws.depth(step) for step in range(200)]
    assert 60 < sum(depths) < 140
    assert depths == [run.draws.depth(step) for step in range(200)]
    draw = run.draws.draw(depths.index(1), 0, False)
    generated = run.networks.generate(draw)
    assert generated.requires_grad
    model, path = run.networks.pipeline.path_model(run.networks.student), run.networks.path
    x0 = model.predict(draw.normal, 1.0, **draw.conditioning).x0
    x = path.alpha(0.4) * x0 + path.sigma(0.4) * draw.renewed[0]
    torch.testing.assert_close(generated, model.predict(x, 0.4, **draw.conditioning).x0)


def test_student_loss_by_hand(data, tmp_path):
    """Loss of a student step: DMD's normalised difference with guidance in the teacher, and the GAN's."""
    from genflow.guidance import CFG, GuidedModel

    run = make(tmp_path, data, divergence="forward-kl", gan={"weight": 0.1})
    for _ in range(3):
        run._train_step()
    networks = run.networks
    draw = run.draws.draw(3, 0, False)
    before = copy.deepcopy(networks.ratio)
    losses = networks.student_losses(draw)
    generated = networks.generate(draw)
    x = networks.path.perturb(generated, draw.noise, draw.t)
    guided = GuidedModel(networks.teacher, CFG(scale=1.5)).predict(x, draw.t, **draw.conditioning).x0
    fake = networks.pipeline.path_model(networks.fake).predict(x, draw.t, **draw.conditioning).x0
    logits = networks.discriminator(networks._features.features(x, draw.t, **draw.conditioning))
    ratio = before(logits, networks.path.noise_level(draw.t))
    h = ratio / ratio.mean()
    scale = (generated - guided).abs().mean((1, 2, 3))
    step = (h / scale)[:, None, None, None] * (fake - guided)
    expected = 0.5 * step.square().mean() + 0.1 * torch.nn.functional.softplus(-logits).mean()
    torch.testing.assert_close(losses["total"], expected, rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(losses["total"], networks.student.output.weight)
    wanted = (step.detach() * generated).sum() / generated.numel()
    wanted = wanted + 0.1 * torch.nn.functional.softplus(-logits).mean()
    (by_hand,) = torch.autograd.grad(wanted, networks.student.output.weight)
    torch.testing.assert_close(gradient, by_hand, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2])
def test_an_interrupted_run_is_the_run_that_never_stopped(steps, data, tmp_path):
    changes = {"steps": steps, "iterations": 7, "gan": {"r1_weight": 1.0}}
    make(tmp_path / "whole", data, **changes).run()
    for stop in (1, 3, 6):  # before the student has moved at all; between; in the middle of two reports
        run = make(tmp_path / "parts", data, **changes)
        step = run._train_step

        def stopped(run=run, step=step, stop=stop):
            if run.step + 1 == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return step()

        run._train_step = stopped
        with pytest.raises(KeyboardInterrupt):
            run.run()
        assert latest_checkpoint(tmp_path / "parts" / "checkpoints").name == f"step-0000000{stop}"
    make(tmp_path / "parts", data, **changes).run()
    names = (*NETWORKS, "fake_optimizer", "discriminator_optimizer")
    assert weights(tmp_path / "parts", names) == weights(tmp_path / "whole", names)


def test_another_recipe_does_not_go_on(data, tmp_path):
    make(tmp_path, data, iterations=2).run()
    with pytest.raises(InputError, match="interrupted run with another 'divergence'.*--restart"):
        make(tmp_path, data, iterations=2, divergence="forward-kl")
    chosen = recipe(iterations=2, divergence="forward-kl")
    rule = create_divergence("forward-kl")
    FDistiller(chosen, teacher(), data, rule, tmp_path, progress=False, restart=True).run()


@pytest.mark.parametrize(
    ("part", "at", "message"),
    [
        ("student", 4, r"the student gave nan \(generated\) at step 5; .*step-00000004"),
        ("fake", 4, r"the fake score gave nan \(fake_loss\) at step 5; .*step-00000004"),
        ("fake", 5, r"the fake score gave nan \(fake_x0\) at step 6; .*step-00000004"),
        ("discriminator", 4, r"the discriminator gave nan \(fake_logit\) at step 5; .*step-00000004"),
        ("discriminator", 5, r"the discriminator gave nan \(student_fake_logit\) at step 6; .*step-00000004"),
    ],
)
def test_nan_names_the_step_and_the_part(part, at, message, data, tmp_path):
    run = make(tmp_path, data, iterations=10, log=OFTEN)
    step = run._train_step

    def poisoned():
        if run.step == at:
            with torch.no_grad():
                list(run._bare[part].parameters())[-1].fill_(float("nan"))
        return step()

    run._train_step = poisoned
    with pytest.raises(NonFiniteError, match=message):
        run.run()
    assert latest_checkpoint(tmp_path / "checkpoints").name == "step-00000004"


def test_a_collapsed_discriminator_stops_the_run(data, tmp_path):
    """Its bias drives all logits out of range from step 5 on: after three reports in a row the run ends, and no
    checkpoint was written since."""
    run = make(tmp_path, data, iterations=40, collapse_reports=3, log=OFTEN)
    step = run._train_step

    def certain():
        if run.step >= 4:
            with torch.no_grad():
                run.networks.discriminator.heads[0].out.bias.fill_(50.0)
        return step()

    run._train_step = certain
    with pytest.raises(DivergedError, match="collapsed at step 10: for 3 reports 100 %.*step-00000004.*r1_weight"):
        run.run()
    assert latest_checkpoint(tmp_path / "checkpoints").name == "step-00000004"
    assert rows(tmp_path)[-1]["step"] == 10


@pytest.mark.parametrize(
    ("changes", "pipeline", "message"),
    [
        ({}, lambda: teacher(num_classes=2, scale=1.0), "data.source: 3 classes; allowed for this teacher: labels of"),
        ({"teacher": {"guidance_scale": 2.0}}, lambda: teacher(num_classes=None), "a teacher without a null"),
        ({"gan": {"features": ["middle"]}}, teacher, "'middle' is no module"),
        ({"times": {"latest": 1.0, "distribution": "karras"}}, teacher, "times: 0.001 to 1.0, of noise level"),
        ({"optimizer": {"name": "sgd", "options": {"momentun": 0.9}}}, teacher, "unknown key 'momentun'"),
    ],
)
def test_bad_input(changes, pipeline, message, data, tmp_path):
    found = pipeline()
    if found.num_classes:
        found.register_to_config(class_names=None)
    with pytest.raises(InputError, match=message):
        make(tmp_path, data, found, **changes)


def test_images_that_the_teacher_does_not_make(data, tmp_path):
    with pytest.raises(InputError, match=r"data.source: images give states of shape \(1, 4, 4\)"):
        make(tmp_path, ImageData(data.images[:, :, :4, :4], data.labels, data.class_names))
    with pytest.raises(InputError, match="data.source: no labels"):
        make(tmp_path, ImageData(data.images))
    pfgmpp = ImagePipeline(teacher(num_classes=None).unet, PFGMPlusPlusScheduler(D=128))
    with pytest.raises(InputError, match="adds Gaussian noise"):
        make(tmp_path, data, pfgmpp)


def test_a_divergence_of_ones_own(data, tmp_path):
    teacher().save_pretrained(tmp_path / "teacher")
    small = ["data.source=images", "iterations=2", "batch_size=4", "log.sample_every_steps=0", "precision=fp32"]
    folder = f_distill(
        str(tmp_path / "teacher"), small, tmp_path / "run", divergence=lambda r: r**-0.5, data=data, progress=False
    )
    assert "divergence: user" in (tmp_path / "run" / "recipe.yaml").read_text()
    assert len(OneStepPipeline.from_pretrained(folder)(class_labels=[0]).images) == 1
    with pytest.raises(InputError, match="'user', and none was handed over"):
        f_distill(str(tmp_path / "teacher"), [*small, "divergence=user"], tmp_path / "other", data=data)


def test_command(data, tmp_path, capsys):
    """From the command line on folders, and on to images."""
    teacher().save_pretrained(tmp_path / "teacher")
    from genflow.images import save_png, to_pil

    for index, image in enumerate(to_pil(data.images[:12] / 127.5 - 1)):
        save_png(image, tmp_path / "photos" / ("cat", "dog", "owl")[index % 3] / f"{index}.png")
    settings = [f"data.source={tmp_path / 'photos'}", "iterations=2", "student_every=2", "batch_size=4"]
    settings += ["precision=fp32", "log.sample_every_steps=0"]
    settings = [word for setting in settings for word in ("--set", setting)]
    command = ["distill", "f-distill", str(tmp_path / "teacher"), "--divergence", "forward-kl", "--steps", "2"]
    assert main.run([*command, "--out", str(tmp_path / "run"), *settings]) == 0
    text = (tmp_path / "run" / "recipe.yaml").read_text()
    assert "divergence: forward-kl" in text
    assert "steps: 2" in text
    student = str(tmp_path / "run" / "pipeline")
    assert main.run(["generate", "--model", student, "--seeds", "0-2", "--out", str(tmp_path / "images")]) == 0
    assert len(list((tmp_path / "images").glob("0*.png"))) == 3
    assert main.run([*command, "--out", str(tmp_path / "run"), "--set", "divergance=js"]) == 2
    assert "did you mean 'divergence'" in capsys.readouterr().err
    assert main.run(["distill", "f-distill", str(tmp_path / "teacher"), "--out", str(tmp_path / "run")]) == 2
    assert "data.source" in capsys.readouterr().err


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("divergence", ["js", "reverse-kl"])
def test_no_loss_waits_for_the_device(scheduler, divergence):
    """On the meta device any read of a value raises; nor is a Python number copied there."""
    from genflow.distillation.f_distill_batches import Draw
    from genflow.distillation.f_distill_networks import Networks

    chosen = recipe(steps=2, divergence=divergence, gan={"r1_weight": 1.0})
    networks = Networks(chosen, teacher(scheduler).to("meta"), create_divergence(divergence))
    images = [torch.empty(8, 1, 8, 8, device="meta") for _ in range(4)]
    t, labels = torch.empty(8, device="meta", dtype=torch.float64), torch.empty(8, device="meta", dtype=torch.int64)
    draw = Draw(images[0], (images[1],), t, images[2], labels, images[3])
    networks.path.noise_level(t)  # a table of betas goes to the device once
    for losses in (networks.student_losses, networks.other_losses):
        with Copies() as copies:
            found = losses(draw)
            found["total"].backward()
        assert not copies.names
        assert all(value.device.type == "meta" for value in found.values())
    assert networks.student.output.weight.grad is not None


class Copies(TorchDispatchMode):
    """Notes operations that bring something from the host."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        host = any(isinstance(arg, torch.Tensor) and arg.device.type == "cpu" for arg in args)
        if name in ("_to_copy", "copy_", "lift_fresh") and host and result.device.type != "cpu":
            self.names.append(name)
        if name == "lift_fresh" and result.device.type != "cpu":
            self.names.append(name)
        return result


@pytest.mark.slow
def test_two_processes(launch, data, tmp_path):
    """Each has its share of the batch, both the same networks and ratio; a run that goes on ends in the same bytes."""
    teacher().save_pretrained(tmp_path / "teacher")
    from genflow.images import save_png, to_pil

    for index, image in enumerate(to_pil(data.images[:12] / 127.5 - 1)):
        save_png(image, tmp_path / "photos" / ("cat", "dog", "owl")[index % 3] / f"{index}.png")
    settings = [f"data.source={tmp_path / 'photos'}", "batch_size=8", "student_every=2", "steps=2", "precision=fp32"]
    settings += ["log.sample_every_steps=0", "log.checkpoint_every_steps=3", "log.every_steps=1", "optimizer.lr=1e-3"]
    settings = [word for setting in settings for word in ("--set", setting)]
    command = ["-m", "genflow", "distill", "f-distill", tmp_path / "teacher", *settings, "--set", "iterations=6"]
    launch(*command, "--out", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-00000006")
    launch(*command, "--out", tmp_path / "again")
    assert weights(tmp_path / "again") == weights(tmp_path / "whole")
    found = rows(tmp_path / "whole")
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    # the fake score's first loss is that of the two shares, each drawn as its own
    run = make(tmp_path / "alone", data, batch_size=4, steps=2)
    from genflow.data import load_images
    from genflow.distillation.f_distill_batches import DrawStream

    images = load_images(tmp_path / "photos")
    stream = DrawStream(run.recipe, run.networks.pipeline, run.networks.times, images, run.device, 4, 2)
    losses = [run.networks.other_losses(stream.draw(0, slot, True))["fake_loss"].item() for slot in range(2)]
    assert found[0]["fake_loss"] == pytest.approx(sum(losses) / 2, rel=1e-4)


def test_a_transformer_in_the_latents_of_a_vae(data, tmp_path):
    """Real images are encoded, the student keeps the VAE; a learned variance beside the prediction is left out."""
    from diffusers import AutoencoderKL, DiTTransformer2DModel

    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        sample_size=4, in_channels=4, out_channels=8, num_layers=2, num_attention_heads=2, attention_head_dim=8,
        num_embeds_ada_norm=3, norm_num_groups=4, patch_size=2,
    )  # fmt: skip
    vae = AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=4, block_out_channels=(8, 8), norm_num_groups=4, sample_size=8,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.5,
    )  # fmt: skip
    pipeline = ImagePipeline(network, SCHEDULERS["epsilon"](), vae=vae, default_guidance_scale=2.0)
    run = make(tmp_path, data, pipeline, iterations=4)
    draw = run.draws.draw(0, 0, True)
    assert draw.real.shape == draw.noise.shape == (8, 4, 4, 4)
    assert torch.equal(draw.real, run.draws.draw(0, 0, True).real)
    images, _, _ = run.draws.images.draw(0, 0)
    law = vae.encode(images).latent_dist
    standard = (draw.real / 0.5 - law.mean) / law.std
    assert standard.std().item() == pytest.approx(1.0, abs=0.1)
    student = OneStepPipeline.from_pretrained(run.run())
    assert student.vae is not None
    assert student(class_labels=[0, 2], output_type="pt").images.shape == (2, 1, 8, 8)
    with pytest.raises(InputError, match="data.source: 3 channels; the teacher's VAE takes 1"):
        make(tmp_path / "grey", ImageData(data.images.repeat(1, 3, 1, 1), data.labels), pipeline)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("level", [1.0, 0.4])
def test_training_makes_the_images_that_the_pipeline_makes(scheduler, level, data, tmp_path):
    """From the same noise, also where the first level is not pure noise (DMD2's SDXL student begins at 0.4)."""
    run = make(tmp_path, data, teacher(scheduler), student_times=[level])
    draw = run.draws.draw(0, 0, False)
    pipeline = run.networks.build_pipeline(run.networks.student)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(class_labels=draw.labels, latents=draw.normal, output_type="latent").images
    torch.testing.assert_close(run.networks.generate(draw).detach(), images, rtol=1e-4, atol=1e-4)
