"""Flows between two sets of images: trained on Gaussians whose flow is known, and the task's parts."""

import itertools
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from genflow.bridges import sample_interpolant
from genflow.data import ImageData
from genflow.errors import InputError
from genflow.interpolants import InterpolantModel, StochasticInterpolant
from genflow.models import NetworkHeads
from genflow.pipelines import TranslationPipeline
from genflow.training import Recipe, Trainer, TwoSidedTask, create_task, train

# two pixels, correlated on one side, at t = 0 and at t = 1
MEANS = torch.tensor([[0.25, -0.1], [-0.3, 0.2]], dtype=torch.float64)
COVARIANCES = torch.tensor([[[0.03, 0.015], [0.015, 0.02]], [[0.015, 0.0], [0.0, 0.04]]], dtype=torch.float64)


def exact(bridge: StochasticInterpolant, t: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """``(W, c)`` with conditional mean ``W x + c`` for independent normal x0 and x1, by kind; ``t`` is ``(B,)``."""
    c0, c1 = COVARIANCES
    a, b, a_dot, b_dot = (f(t)[:, None, None] for f in (bridge.a, bridge.b, bridge.a_dot, bridge.b_dot))
    gamma, product = bridge.gamma.value(t)[:, None, None], bridge.gamma.product(t)[:, None, None]
    eye = torch.eye(2, dtype=torch.float64)
    inverse = torch.linalg.inv(a**2 * c0 + b**2 * c1 + gamma**2 * eye)
    mean, steady = (u[..., 0] * MEANS[0] + v[..., 0] * MEANS[1] for u, v in ((a, b), (a_dot, b_dot)))
    cross = a * a_dot * c0 + b * b_dot * c1

    def affine(offset: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
        return matrix, offset - (matrix @ mean[..., None])[..., 0]

    zero = torch.zeros_like(mean)
    return {
        "velocity": affine(steady, (cross + product * eye) @ inverse),
        "flow": affine(steady, cross @ inverse),
        "denoiser": affine(zero, gamma * inverse),
        "score": affine(zero, -inverse),
    }


class AffineNetwork(ModelMixin, ConfigMixin):
    """Two pixels to ``W(t) x + c(t)`` for each kind: learnt, or exact for ``interpolant``."""

    @register_to_config
    def __init__(
        self,
        learns: list[str],
        interpolant: dict | None = None,
        sample_size: tuple[int, int] = (1, 2),
        in_channels: int = 1,
        out_channels: int = 2,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.coefficients = nn.Sequential(nn.Linear(9, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU())
        self.head = nn.Linear(64, 6 * len(learns))
        self.exact = None if interpolant is None else StochasticInterpolant.from_config(interpolant)

    def weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, kinds, 2, 2)`` and ``(B, kinds, 2)``."""
        kinds = self.config.learns
        if self.exact is not None:
            found = exact(self.exact, t.double())
            return tuple(torch.stack([found[kind][i] for kind in kinds], dim=1) for i in (0, 1))
        features = torch.stack([torch.cos(n * torch.pi * t) for n in range(9)], dim=1).float()
        out = self.head(self.coefficients(features)).unflatten(1, (len(kinds), 3, 2))
        return out[:, :, :2], out[:, :, 2]

    def forward(self, sample: Tensor, timestep: Tensor) -> tuple[Tensor]:
        matrix, offset = self.weights(timestep / 1000)
        x = sample.flatten(1).to(matrix.dtype)
        return (((matrix @ x[:, None, :, None])[..., 0] + offset)[:, :, None, :].to(sample.dtype).contiguous(),)


def draw(side: int, count: int, seed: int = 0) -> Tensor:
    """Samples ``(N, 1, 1, 2)`` of one side, standardised so that their moments are the exact ones."""
    z = torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2 * seed + side))
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.T @ z / count)).T
    return (MEANS[side] + z @ torch.linalg.cholesky(COVARIANCES[side]).T)[:, None, None, :]


def moment_errors(x: Tensor, side: int) -> tuple[float, float]:
    """The largest error of the mean, in units of the deviation, and of the covariance, in units of the variance."""
    x = x.flatten(1).double()
    scale = COVARIANCES[side].diagonal()
    mean = ((x.mean(0) - MEANS[side]).abs() / scale.sqrt()).max().item()
    return mean, ((x.T.cov() - COVARIANCES[side]).abs() / scale.min()).max().item()


def recipe(**changes) -> Recipe:
    values = {
        "data": {"source": "unused"},
        "interpolant": {"source": "unused"},
        "network": {"options": {"block_out_channels": [8], "layers_per_block": 1, "attention_levels": []}},
        "optimizer": {"lr": 0.01},
        "schedule": {"warmup_steps": 0},
        "ema": {"decay": 0.9},
        "budget": {"images": 32},
        "batch_size": 8,
        "precision": "fp32",
        "log": {"every_steps": 1, "sample_every_steps": 0, "checkpoint_every_steps": 1, "keep_checkpoints": 9},
        "sampling": {"steps": 2},
    }
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return Recipe(**values)


def blobs(count: int, shift: int = 0, labels: bool = False, channels: int = 1, names=None) -> ImageData:
    images = torch.randint(0, 200, (count, channels, 4, 4), generator=torch.Generator().manual_seed(shift)) + shift
    return ImageData(images.to(torch.uint8), torch.arange(count) % 2 if labels else None, names)


BRIDGES = [
    {"interpolant": "linear", "gamma": {"name": "brownian", "scale": 0.2}},
    {"interpolant": "trigonometric", "gamma": "parabola"},
    {"interpolant": "encoder-decoder"},
]


def pipeline_of(config: dict, learns: tuple[str, ...] = ("velocity", "denoiser")) -> TranslationPipeline:
    network = AffineNetwork(list(learns), config, out_channels=len(learns))
    pipeline = TranslationPipeline(network, config, list(learns))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run(pipeline: TranslationPipeline, x: Tensor, **options) -> Tensor:
    return pipeline(latents=x.float(), output_type="latent", **options).images


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("epsilon", [0.0, 0.3])
@pytest.mark.parametrize("config", BRIDGES, ids=lambda c: c["interpolant"])
def test_exact_networks_carry_each_side_to_the_other(config: dict, epsilon: float, direction: str) -> None:
    """ODE and SDE agree with the true moments, so with one another, both ways and from the very ends."""
    start, end = (1, 0) if direction == "forward" else (0, 1)
    count = 2000
    x = run(pipeline_of(config), draw(start, count), direction=direction, num_inference_steps=40, epsilon=epsilon,
            generator=torch.Generator().manual_seed(3))  # fmt: skip
    mean, covariance = moment_errors(x, end)
    # by the ODE nothing is drawn, by the SDE at most everything: 4 deviations of the estimates
    assert mean < 0.01 + (0.09 if epsilon else 0.0)
    assert covariance < 0.05 + (0.25 if epsilon else 0.0)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_backward_undoes_forward(solver: str, order: int) -> None:
    """By the ODE, to the order of the solver, for each image."""
    pipeline, x = pipeline_of(BRIDGES[0]), draw(1, 64).float()
    errors = []
    for steps in (8, 16, 32):
        there = run(pipeline, x, num_inference_steps=steps, solver=solver)
        assert (there - x).abs().mean() > 0.2
        back = run(pipeline, there, direction="backward", num_inference_steps=steps, solver=solver)
        errors.append((back - x).abs().max().item())
    rates = [torch.tensor(a / b).log2().item() for a, b in itertools.pairwise(errors)]
    assert min(rates) > order - 0.3, (errors, rates)
    assert errors[-1] < (0.3 if order == 1 else 5e-3)


@pytest.mark.parametrize("learns", [("velocity", "denoiser"), ("flow", "denoiser"), ("flow", "score"), ("velocity",)])
@pytest.mark.parametrize("epsilon", [0.0, 0.4])
def test_the_pipeline_is_the_plain_loop(learns: tuple[str, ...], epsilon: float) -> None:
    """Bit for bit, and for every set of conditional means the same flow."""
    config = BRIDGES[0]
    pipeline, x = pipeline_of(config, learns), draw(0, 5).float()
    if epsilon and learns == ("velocity",):
        with pytest.raises(InputError, match="epsilon: 0.4; allowed: 0"):
            run(pipeline, x, epsilon=epsilon)
        return
    seeds = [torch.Generator().manual_seed(n) for n in range(5)]
    found = run(pipeline, x, direction="backward", epsilon=epsilon, generator=seeds, num_inference_steps=30)
    bridge = StochasticInterpolant.from_config(config)
    network = pipeline.unet

    def mean(kind: str):
        def answer(x: Tensor, t: float) -> Tensor:
            out = network(x, torch.full((len(x),), t * 1000.0))[0]
            return out[:, learns.index(kind)][:, None]

        return answer

    model = InterpolantModel(bridge, **{kind: mean(kind) for kind in learns})
    seeds = [torch.Generator().manual_seed(n) for n in range(5)]
    times = pipeline.times("backward", 30)
    wanted = sample_interpolant(model, x, times, epsilon=epsilon, relative=True, generators=seeds)
    assert torch.equal(found, wanted)
    ends = (0.0, 1.0) if learns != ("flow", "denoiser") else (0.001, 0.999)
    assert (times[0], times[-1]) == ends
    if not epsilon:
        other = run(pipeline_of(config), x, direction="backward", num_inference_steps=30)
        assert (found - other).abs().max() < 0.02


class GaussianTask(TwoSidedTask):
    """The task as it is, with a network that can be exact."""

    def create_network(self) -> nn.Module:
        return AffineNetwork(list(self.section.learns), out_channels=len(self.section.learns))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> GaussianTask:
    """500 steps on Gaussian pixels, by the trainer."""
    sides = [((draw(side, 20_000, 1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8) for side in (0, 1)]
    settings = recipe(
        batch_size=512,
        budget={"images": 512 * 500},
        optimizer={"lr": 0.02},
        schedule={"decay": "cosine"},
        ema={"decay": 0.99},
        interpolant={"gamma": {"name": "brownian", "scale": 0.2}},
        log={"every_steps": 500, "checkpoint_every_steps": 100_000, "sample_every_steps": 0},
    )
    task = GaussianTask(settings, *(ImageData(images) for images in sides))
    folder = Trainer(task, tmp_path_factory.mktemp("gaussians"), progress=False).run()
    network = task.create_network()
    network.load_state_dict(load_file(folder / "unet" / "diffusion_pytorch_model.safetensors"))
    task.pipeline = task.build_pipeline(network)
    task.pipeline.set_progress_bar_config(disable=True)
    return task


@pytest.mark.slow
def test_training_finds_the_conditional_means(trained: GaussianTask) -> None:
    with torch.no_grad():
        matrix, offset = trained.pipeline.unet.weights(torch.linspace(0.02, 0.98, 25))
    wanted = exact(trained.interpolant, torch.linspace(0.02, 0.98, 25, dtype=torch.float64))
    probes = torch.cat([draw(0, 200), draw(1, 200)]).flatten(1)
    for place, kind in enumerate(trained.section.learns):
        ours = probes @ matrix[:, place].double().mT + offset[:, place, None].double()
        theirs = probes @ wanted[kind][0].mT + wanted[kind][1][:, None]
        error = (ours - theirs).square().mean().sqrt() / theirs.square().mean().sqrt()
        assert error < 0.05, (kind, error)  # 0.02, with any of three seeds


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_a_trained_network_carries_each_side_to_the_other(trained, epsilon: float, direction: str) -> None:
    start, end = (1, 0) if direction == "forward" else (0, 1)
    x = run(trained.pipeline, draw(start, 3000, 2), direction=direction, num_inference_steps=30, epsilon=epsilon,
            generator=torch.Generator().manual_seed(5))  # fmt: skip
    mean, covariance = moment_errors(x, end)
    assert mean < 0.06, mean
    assert covariance < 0.2, covariance
    assert moment_errors(draw(start, 100), end)[0] > 1  # what no translation at all would be


# the task's parts


def test_the_loss_by_hand(tmp_path: Path) -> None:
    """Both means of both signs of the latent noise, written out."""
    task = TwoSidedTask(recipe(interpolant={"gamma": "parabola"}), blobs(8), blobs(8, 50))
    trainer = Trainer(task, tmp_path, progress=False)
    network = trainer.bare_network
    nn.init.normal_(network.output.weight, std=0.1)
    batch = task.draw(task.batches, 0, 0)
    t = batch.t[:, None, None, None].float()
    total = 0.0
    for sign in (1, -1):
        x = (1 - t) * batch.x0 + t * batch.x1 + sign * t * (1 - t) * batch.z
        b, eta = network(x, 1000 * batch.t.float()).sample.chunk(2, dim=1)
        slope = batch.x1 - batch.x0 + sign * (1 - 2 * t) * batch.z
        total = total + (b**2 / 2 - slope * b).mean() / 2 + (eta**2 / 2 - sign * batch.z * eta).mean() / 2
    assert task.loss(0, 0).item() == pytest.approx(total.item(), rel=1e-5)


@pytest.mark.parametrize("class_wise", [False, True])
@pytest.mark.parametrize("coupling", ["exact", "sinkhorn-newton"])
def test_couplings_shorten_the_way(coupling: str, class_wise: bool) -> None:
    """The same images at t = 0, those at t = 1 from the same batch, nearer, and of the same class where asked for."""
    torch.manual_seed(1)
    sides = [ImageData(torch.randint(0, 256, (64, 1, 4, 4)).to(torch.uint8), torch.arange(64) % 2) for _ in range(2)]
    batches = []
    for name in ("independent", coupling):
        settings = recipe(coupling={"type": name}, interpolant={"class_wise": class_wise}, batch_size=32)
        task = TwoSidedTask(settings, *sides)
        task.device = torch.device("cpu")
        batches.append(task.draw(task.stream(0, 32, 1), 0, 0))
    plain, coupled = batches
    assert torch.equal(plain.x0, coupled.x0)
    same = (coupled.x1[:, None] == plain.x1[None]).flatten(2).all(2)  # (coupled, plain)
    assert same.any(1).all()
    if coupling == "exact":
        assert same.any(0).all()
    if class_wise:
        partner_labels = plain.labels[same.int().argmax(1)]
        assert torch.equal(partner_labels, coupled.labels)
    cost = [(batch.x0 - batch.x1).square().mean().item() for batch in batches]
    assert cost[1] < 0.9 * cost[0]


def test_a_run_cut_short_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    sides = blobs(20, labels=True), blobs(30, 50, labels=True)
    settings = recipe(interpolant={"class_wise": True}, data={"flip": True})
    whole = Trainer(TwoSidedTask(settings, *sides), tmp_path / "whole", progress=False).run()
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for step in (3, 4):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / f"step-{step:08d}")
    shutil.rmtree(tmp_path / "cut" / "pipeline")
    again = Trainer(TwoSidedTask(settings, *sides), tmp_path / "cut", progress=False).run()
    ours, theirs = (
        load_file(folder / "unet" / "diffusion_pytorch_model.safetensors") for folder in (whole, again)
    )  # fmt: skip
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    pipeline = TranslationPipeline.from_pretrained(again)
    assert pipeline.config.class_names == ["0", "1"]
    assert pipeline.num_classes == 2


def test_pictures_and_dynamics(tmp_path: Path) -> None:
    settings = recipe(
        log={"sample_every_steps": 2},
        dynamics={"enabled": True, "every_steps": 2, "images": 6, "micro_batch": 4, "lanczos_steps": 2, "probes": 0,
                  "max_share": None},
    )  # fmt: skip
    task = TwoSidedTask(settings, blobs(5), blobs(30, 50))
    folder = Trainer(task, tmp_path, progress=False).run()
    with Image.open(tmp_path / "samples" / "step-00000004.png") as sheet:
        assert sheet.size == (12 * (4 * 16 + 2) + 2, 4 * (4 * 16 + 2) + 2)  # 12 across; two pairs of rows
    assert (tmp_path / "dynamics.jsonl").read_text().count("\n") == 3
    assert TranslationPipeline.from_pretrained(folder).config.sides == ["unused", "unused"]


def test_a_mirror_has_one_side(tmp_path: Path) -> None:
    settings = recipe(interpolant={"source": None, "type": "mirror", "learns": ["denoiser"]})
    task = TwoSidedTask(settings, blobs(9), None)
    pipeline = TranslationPipeline.from_pretrained(Trainer(task, tmp_path, progress=False).run())
    pipeline.set_progress_bar_config(disable=True)
    x = torch.rand(2, 1, 4, 4) * 2 - 1
    seeds = [torch.Generator().manual_seed(n) for n in range(2)]
    assert run(pipeline, x, epsilon=0.5, generator=seeds).isfinite().all()


def test_from_folders_to_a_pipeline(tmp_path: Path) -> None:
    """Loaded by the recipe, paired by name, with the classes that it names."""
    for side, level in (("a", 10), ("b", 200)):
        for name, kind in itertools.product(("x", "y", "z"), ("cat", "dog", "owl")):
            folder = tmp_path / side / kind
            folder.mkdir(parents=True, exist_ok=True)
            colour = level + 10 * "xyz".index(name) + ("cat", "dog", "owl").index(kind)
            Image.new("L", (4, 4), colour).save(folder / f"{name}.{'png' if side == 'a' else 'bmp'}")
    settings = recipe(
        data={"source": str(tmp_path / "a"), "classes": ["owl", "cat"]},
        interpolant={"source": str(tmp_path / "b"), "pairing": "paired", "class_wise": True, "classes": ["owl", "cat"]},
        batch_size=6,
    )
    task = create_task(settings)
    task.device = torch.device("cpu")
    x0, x1, labels, _ = task.stream(0, 6, 1).draw(3, 0)
    levels = ((x0 + 1) * 127.5).round()[:, 0, 0, 0].tolist()
    assert sorted(levels) == [10, 12, 20, 22, 30, 32]
    assert (((x1 - x0) * 127.5).round() == 190).all()
    assert [int(level) % 10 for level in levels] == [2 * (1 - label) for label in labels.tolist()]
    pipeline = TranslationPipeline.from_pretrained(train(settings, out=tmp_path / "run", progress=False))
    assert pipeline.config.class_names == pipeline.config.source_class_names == ["owl", "cat"]
    assert pipeline.config.sides == ["owl, cat", "owl, cat"]


@pytest.mark.parametrize(
    ("changes", "data", "source", "message"),
    [
        ({}, blobs(4), blobs(4, channels=3), r"interpolant.source: images of shape \(3, 4, 4\)"),
        ({"interpolant": {"class_wise": True}}, blobs(4), blobs(4), "class_wise: None and None classes"),
        ({"interpolant": {"pairing": "paired"}}, blobs(4), blobs(5), "pairing: 4 images at t = 0 and 5 at t = 1"),
        ({"interpolant": {"learns": ["flow"]}}, blobs(4), blobs(4), "velocity: None"),
        ({"interpolant": {"learns": ["velocity", "velocity"]}}, blobs(4), blobs(4), "stands twice"),
        ({"interpolant": {"learns": []}}, blobs(4), blobs(4), "kinds: none"),
        ({"interpolant": {"gamma": "zero"}}, blobs(4), blobs(4), "'denoiser' with gamma = 0 does not exist"),
        ({"interpolant": {"gamma": "brownion"}}, blobs(4), blobs(4), "did you mean 'brownian'"),
        ({"interpolant": {"type": "trigonometric", "gamma": "sine"}}, blobs(4), blobs(4), "below 1 throughout"),
        ({"sampling": {"guidance_scale": 2}}, blobs(4), blobs(4), "sampling: guidance together with interpolant"),
        ({"interpolant": {"learns": ["flow", "denoiser"], "margin": 0}}, blobs(4), blobs(4), "margin: 0.*> 0"),
    ],
)
def test_refuses_by_name(tmp_path: Path, changes: dict, data: ImageData, source: ImageData, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TwoSidedTask(recipe(**changes), data, source).create_network()


def test_recipes_that_contradict_themselves() -> None:
    with pytest.raises(ValueError, match="path: given together with interpolant"):
        recipe(path={"type": "vp"})
    with pytest.raises(ValueError, match="interpolant.source: None with the 'linear'"):
        recipe(interpolant={"source": None})
    with pytest.raises(ValueError, match="interpolant.source: 'unused' with the 'mirror'"):
        recipe(interpolant={"type": "mirror"})


def test_heads_share_out_the_channels() -> None:
    network = AffineNetwork(["velocity", "denoiser"], BRIDGES[0])
    x = draw(0, 3).float()
    out = network(x, torch.full((3,), 300.0))[0]
    found = NetworkHeads(network, ["velocity", "denoiser"])(x, 0.3)
    assert torch.equal(found["velocity"], out[:, :1])
    assert torch.equal(found["denoiser"], out[:, 1:])
    with pytest.raises(InputError, match="network: 2 output channels; allowed: 1 for each of velocity"):
        NetworkHeads(network, ["velocity"])(x, 0.3)
