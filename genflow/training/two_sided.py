"""Training a flow between two sets of images, on a stochastic interpolant."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from genflow.data import ImageData, load_images
from genflow.errors import InputError
from genflow.images import to_pil
from genflow.interpolants import JointModel, JointObjective, StochasticInterpolant
from genflow.models import NetworkHeads
from genflow.training import finish
from genflow.training.dynamics import TrainingDynamics, fixed_batches
from genflow.training.networks import create_network
from genflow.training.pairing import PairStream, align_classes, match_images
from genflow.training.recipe import DataSection, InterpolantSection, Recipe
from genflow.training.records import save_grid
from genflow.training.task import Task
from genflow.transport import create_coupling

if TYPE_CHECKING:
    from genflow.pipelines import TranslationPipeline

__all__ = ["PairBatch", "TwoSidedTask", "load_two_sided"]

_SHOWN = 12  # images of each side in a sample sheet


class PairBatch(NamedTuple):
    """One micro-batch: images ``(B, C, H, W)`` at t = 0 and, but for a mirror interpolant, at t = 1, latent noise like
    them, times ``(B,)``, labels int64 ``(B,)`` or None."""

    x0: Tensor
    x1: Tensor | None
    z: Tensor
    t: Tensor
    labels: Tensor | None


class TwoSidedTask(Task):
    """A recipe with an ``interpolant`` on two sets of images; see :func:`load_two_sided`.

    One network learns all conditional means that the recipe names, by the sum of their objectives.
    """

    def __init__(self, recipe: Recipe, data: ImageData, source: ImageData | None) -> None:
        """``data`` stands at t = 0, ``source`` at t = 1; None for a mirror interpolant, which has but one side.

        Raises InputError for images of two shapes, classes or pairs that do not correspond, or conditional means that
        the interpolant does not have or that do not determine its velocity.
        """
        section = recipe.interpolant
        if section is None:
            raise InputError("interpolant: None; allowed: a recipe with this section")
        if recipe.sampling.guidance_scale != 1 or recipe.sampling.guidance_interval is not None:
            raise InputError("sampling: guidance together with interpolant; allowed: guidance_scale 1, no interval")
        if source is not None and source.images.shape[1:] != data.images.shape[1:]:
            shapes = [tuple(side.images.shape[1:]) for side in (source, data)]
            raise InputError(f"interpolant.source: images of shape {shapes[0]} where data has {shapes[1]}")
        if section.class_wise and source is not None:
            source = align_classes(data, source, None not in (recipe.data.classes, section.classes))
        elif section.class_wise and data.labels is None:
            raise InputError("interpolant.class_wise: the images have no classes; allowed: false")
        if section.pairing == "paired":
            if source is None:
                raise InputError("interpolant.pairing: 'paired' with a mirror interpolant; allowed: independent")
            match_images(data, source)
        self.recipe, self.section, self.data, self.source = recipe, section, data, source
        coupling, gamma = recipe.coupling, section.gamma
        self.coupling = create_coupling(coupling.type, class_wise=coupling.class_wise, **coupling.options)
        self.interpolant = StochasticInterpolant.from_config({"interpolant": section.type, "gamma": gamma})
        self.objective = JointObjective(self.interpolant, tuple(section.learns), section.antithetic, section.margin)
        JointModel(self.interpolant, lambda x, t: {}, section.learns)  # whether they determine the velocity

    @property
    def num_classes(self) -> int | None:
        """How many classes the network is told of, or None."""
        return self.data.num_classes if self.section.class_wise else None

    def create_network(self) -> nn.Module:
        channels, height, width = self.data.images.shape[1:]
        network = create_network(
            self.recipe.network.type,
            size=(height, width),
            channels=channels,
            num_classes=self.num_classes,
            options=self.recipe.network.options,
            out_channels=channels * len(self.section.learns),
        )
        self.build_pipeline(network)  # what that refuses is refused before the training
        return network

    def bind(self, network: nn.Module, prepared: nn.Module, device: torch.device, size: int, slots: int) -> None:
        self.device = device
        self.batches = self.stream(self.recipe.seed, size, slots)
        self.heads = NetworkHeads(prepared, self.section.learns)

    def stream(self, seed: int, size: int, slots: int) -> PairStream:
        """The pairs of images in the order of ``seed``."""
        section, flip = self.section, self.recipe.data.flip
        paired = section.pairing == "paired"
        return PairStream(
            self.data, self.source, seed, size, slots, self.device, flip, paired, section.class_wise
        )  # fmt: skip

    def draw(self, batches: PairStream, step: int, slot: int) -> PairBatch:
        """Micro-batch ``slot`` of step ``step``: all its random draws."""
        x0, x1, labels, generator = batches.draw(step, slot)
        if self.coupling.name != "independent":
            _, x1, _ = self.coupling.pair(x0, x1, generator, labels)
        t = self.objective.draw_times(len(x0), generator)
        z = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        return PairBatch(x0, x1, z, t, labels)

    def _loss(self, heads: NetworkHeads, batch: PairBatch) -> Tensor:
        conditioning = {} if batch.labels is None else {"class_labels": batch.labels}
        return self.objective.loss(heads, batch.x0, batch.x1, batch.z, batch.t, **conditioning).mean()

    def loss(self, step: int, slot: int) -> Tensor:
        return self._loss(self.heads, self.draw(self.batches, step, slot))

    def build_pipeline(self, network: nn.Module) -> "TranslationPipeline":
        """The pipeline that runs ``network`` with the recipe's defaults."""
        from genflow.pipelines import TranslationPipeline

        section, sampling = self.section, self.recipe.sampling
        here = _side_name(self.recipe.data)
        names = [None, None]
        if section.class_wise:
            sides = (self.data, self.source or self.data)
            names = [list(side.class_names or map(str, range(side.num_classes))) for side in sides]
        return TranslationPipeline(
            unet=network,
            interpolant=self.interpolant,
            learns=section.learns,
            sides=[here, here if self.source is None else _side_name(section)],
            class_names=names[0],
            source_class_names=names[1],
            margin=section.margin,
            default_steps=sampling.steps,
            default_solver=sampling.scheduler,
            default_epsilon=section.epsilon,
        )

    def sample_grid(self, network: nn.Module, path: Path) -> None:
        """Images at t = 1 above what becomes of them, then images at t = 0 above what becomes of those."""
        pipeline = self.build_pipeline(network)
        pipeline.set_progress_bar_config(disable=True)
        rows, columns = [], 0
        for side, direction in ((self.source or self.data, "forward"), (self.data, "backward")):
            columns = min(_SHOWN, len(side))
            places = torch.linspace(0, len(side) - 1, columns).long()
            before = side.images[places].float() / 127.5 - 1
            labels = side.labels[places] if self.num_classes else None
            generators = [torch.Generator().manual_seed(seed) for seed in range(columns)]
            after = pipeline(
                latents=before, direction=direction, class_labels=labels, generator=generators, output_type="latent"
            ).images
            blank = torch.ones(_SHOWN - columns, *before.shape[1:])
            rows += [before, blank, after.cpu(), blank]
        save_grid(to_pil(torch.cat(rows)), path, _SHOWN)

    def save_pipeline(self, network: nn.Module, folder: Path) -> None:
        finish.save_pipeline(self.build_pipeline(network), folder)

    def dynamics(self, network: nn.Module, optimizer: Optimizer, out: Path, resume_at: int) -> TrainingDynamics:
        batches = fixed_batches(self.recipe, self.stream, self.draw)
        heads = copy.copy(self.heads)
        heads.network = network  # without accelerate's wrapper
        return TrainingDynamics(
            self.recipe, lambda batch: self._loss(heads, batch), batches, network, optimizer, out, resume_at
        )


def _side_name(section: DataSection | InterpolantSection) -> str:
    """What people call the images of a section: their classes, else where they come from."""
    return ", ".join(map(str, section.classes)) if section.classes else Path(str(section.source)).stem


def load_two_sided(recipe: Recipe, *, skip_bad: bool = False) -> TwoSidedTask:
    """The task of a recipe with an ``interpolant``, with the images of both sides loaded."""
    sides: list[Any] = [recipe.data, recipe.interpolant]
    loaded = [
        None if side.source is None else load_images(side.source, side.split, skip_bad=skip_bad, classes=side.classes)
        for side in sides
    ]
    return TwoSidedTask(recipe, *loaded)
