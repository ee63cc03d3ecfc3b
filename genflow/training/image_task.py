"""Training on a Gaussian path between images and noise: every objective of the recipes but two-sided ones."""

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from genflow.data import ImageData
from genflow.errors import InputError
from genflow.models import from_diffusers
from genflow.training import finish
from genflow.training.batches import BatchStream
from genflow.training.dynamics import TrainingDynamics, fixed_batches
from genflow.training.networks import create_network
from genflow.training.objectives import create_objective
from genflow.training.perceptual import create_lpips
from genflow.training.recipe import ObjectiveSection, Recipe
from genflow.training.task import Task
from genflow.transport import create_coupling

__all__ = ["ImageBatch", "ImageTask", "objective_options"]


def objective_options(section: ObjectiveSection, channels: int) -> dict[str, Any]:
    """What ``section`` says to :func:`create_objective`, for images of so many channels."""
    perceptual = create_lpips(channels) if section.error == "lpips-huber" else None
    return {
        "times": section.times,
        "mean": section.times_mean,
        "std": section.times_std,
        "shape": section.times_shape,
        "error": section.error,
        "perceptual": perceptual,
    }


class ImageBatch(NamedTuple):
    """One micro-batch: images and noise ``(B, C, H, W)``, times ``(B,)``, labels int64 ``(B,)`` or None."""

    images: Tensor
    noise: Tensor
    t: Tensor
    labels: Tensor | None


class ImageTask(Task):
    """A recipe on a set of images."""

    def __init__(self, recipe: Recipe, data: ImageData) -> None:
        """Raises InputError for a path or an objective that does not exist or does not fit the other, or a coupling by
        classes of images that have none."""
        self.recipe, self.data = recipe, data
        coupling = recipe.coupling
        self.coupling = create_coupling(coupling.type, class_wise=coupling.class_wise, **coupling.options)
        if coupling.class_wise is True and data.labels is None:
            raise InputError("coupling.class_wise: True for images without labels; allowed: auto, False")
        self.family = finish.training_family(recipe)
        self.path = self.family.path
        self._edm = {"sigma_data": self.family.config["sigma_data"]} if self.family.name == "edm" else {}
        options = objective_options(recipe.objective, data.images.shape[1])
        self.objective = create_objective(recipe.objective.type, self.path, **options, **self._edm)

    def create_network(self) -> nn.Module:
        *_, height, width = self.data.images.shape
        return create_network(
            self.recipe.network.type,
            size=(height, width),
            channels=self.data.images.shape[1],
            num_classes=self.data.num_classes,
            options=self.recipe.network.options,
        )

    def bind(self, network: nn.Module, prepared: nn.Module, device: torch.device, size: int, slots: int) -> None:
        self.device = device
        self.batches = self.stream(self.recipe.seed, size, slots)
        self.model: Any = from_diffusers(
            network, self.path, self.family.prediction_type, num_classes=self.data.num_classes, **self._edm
        )
        self.model.network = prepared

    def stream(self, seed: int, size: int, slots: int) -> BatchStream:
        """The images in the order of ``seed``."""
        recipe = self.recipe
        return BatchStream(
            self.data, seed, size, slots, self.device, recipe.data.flip, recipe.objective.label_dropout
        )  # fmt: skip

    def draw(self, batches: BatchStream, step: int, slot: int) -> ImageBatch:
        """Micro-batch ``slot`` of step ``step``: all its random draws."""
        images, labels, generator = batches.draw(step, slot)
        t = self.objective.draw_times(len(images), generator)
        noise = self.objective.draw_noise(images, generator)
        if self.coupling.name != "independent":
            # by the classes as they are, before labels are dropped: see genflow.transport.couplings
            _, noise, _ = self.coupling.pair(images, noise, generator, batches.classes(step, slot))
        return ImageBatch(images, noise, t, labels)

    def _loss(self, model: Any, batch: ImageBatch) -> Tensor:
        conditioning = {} if batch.labels is None else {"class_labels": batch.labels}
        return self.objective.loss(model, batch.images, batch.noise, batch.t, **conditioning).mean()

    def loss(self, step: int, slot: int) -> Tensor:
        return self._loss(self.model, self.draw(self.batches, step, slot))

    def sample_grid(self, network: nn.Module, path: Path) -> None:
        finish.sample_grid(finish.build_pipeline(network, self.recipe, self.data), path)

    def save_pipeline(self, network: nn.Module, folder: Path) -> None:
        finish.save_pipeline(finish.build_pipeline(network, self.recipe, self.data), folder)

    def dynamics(self, network: nn.Module, optimizer: Optimizer, out: Path, resume_at: int) -> TrainingDynamics:
        batches = fixed_batches(self.recipe, self.stream, self.draw)
        model = copy.copy(self.model)
        model.network = network  # without accelerate's wrapper
        return TrainingDynamics(
            self.recipe, lambda batch: self._loss(model, batch), batches, network, optimizer, out, resume_at
        )
