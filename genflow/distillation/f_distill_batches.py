"""What a step of f-distill draws: a function of the seed and the step alone."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from genflow.data import ImageData
from genflow.distillation.f_distill_recipe import FDistillRecipe
from genflow.distillation.f_distill_times import TimeSampler
from genflow.errors import InputError
from genflow.pipelines import ImagePipeline
from genflow.training.batches import BatchStream, mixed_seed

__all__ = ["Draw", "DrawStream", "image_shape"]

_ON_DEVICE = 4 * 2**30  # bytes of images up to which they are kept there: a copy from the host waits for it
_DEPTH_STREAM = 11


class Draw(NamedTuple):
    """One process's share of a step.

    Attributes:
        normal: the student's first noise, standard normal ``(B, C, H, W)``.
        renewed: fresh noise for the levels after the first, up to that of this step; empty for the first.
        t: times ``(B,)`` at which student and teacher are compared.
        noise: the path's noise of the comparison, in ``normal``'s shape.
        labels: int64 ``(B,)``, or None.
        real: real images (latents of a teacher with a VAE), or None.
    """

    normal: Tensor
    renewed: tuple[Tensor, ...]
    t: Tensor
    noise: Tensor
    labels: Tensor | None
    real: Tensor | None

    @property
    def conditioning(self) -> dict[str, Tensor]:
        """What the networks are told besides."""
        return {} if self.labels is None else {"class_labels": self.labels}


def image_shape(pipeline: ImagePipeline) -> tuple[int, int, int]:
    """Channels, height and width of the pipeline's states."""
    size = pipeline.unet.config.sample_size
    if size is None:
        raise InputError("teacher.model: its network does not tell its sample_size")
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return pipeline.unet.config.in_channels, height, width


class DrawStream:
    """The draws of a run.

    Labels are those of the real images, or even over the teacher's classes where there are none.

    Raises:
        InputError: images that the teacher does not make: another size, other channels, no labels for its classes.
    """

    def __init__(
        self,
        recipe: FDistillRecipe,
        pipeline: ImagePipeline,
        times: TimeSampler,
        data: ImageData | None,
        device: torch.device,
        size: int,
        slots: int,
    ) -> None:
        self.recipe, self.pipeline, self.times, self.device, self.size = recipe, pipeline, times, device, size
        self.shape = image_shape(pipeline)
        self.images: BatchStream | None = None
        if data is not None:
            data = self._on_device(data)
            flip = recipe.data is not None and recipe.data.flip
            self.images = BatchStream(data, recipe.seed, size, slots, device, flip)
            found = tuple(self._encoded(self.images.data.images[:1].to(device).float() / 127.5 - 1).shape[1:])
            if found != self.shape:
                raise InputError(f"data.source: images give states of shape {found}; the teacher's are {self.shape}")

    def _on_device(self, data: ImageData) -> ImageData:
        classes = self.pipeline.num_classes
        if classes is None:
            data = replace(data, labels=None, class_names=None)
        elif data.labels is None or data.num_classes > classes:
            got = "no labels" if data.labels is None else f"{data.num_classes} classes"
            raise InputError(f"data.source: {got}; allowed for this teacher: labels of its {classes} classes")
        if data.images.numel() > _ON_DEVICE:
            return data
        labels = None if data.labels is None else data.labels.to(self.device)
        return replace(data, images=data.images.to(self.device), labels=labels)

    @torch.no_grad()
    def _encoded(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        vae = self.pipeline.vae
        if vae is None:
            return images
        if images.shape[1] != vae.config.in_channels:
            raise InputError(
                f"data.source: {images.shape[1]} channels; the teacher's VAE takes {vae.config.in_channels}"
            )
        encoded = vae.encode(images.to(vae.dtype))
        law = getattr(encoded, "latent_dist", None)
        latents = encoded.latents if law is None else law.sample(generator)
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        return (latents.float() - shift) * (getattr(vae.config, "scaling_factor", None) or 1.0)

    def depth(self, step: int) -> int:
        """Which of the student's levels step ``step`` trains, from 0: one for the whole batch, each as often."""
        levels = self.recipe.steps
        return int(np.random.default_rng([self.recipe.seed, step, _DEPTH_STREAM]).integers(levels)) if levels > 1 else 0

    def draw(self, step: int, slot: int, with_real: bool) -> Draw:
        """The draws of process ``slot`` in step ``step``; real images only where asked for."""
        real, labels = None, None
        if self.images is not None:
            real, labels, generator = self.images.draw(step, slot)
        else:
            generator = torch.Generator(self.device).manual_seed(mixed_seed(self.recipe.seed, step, slot))
            if self.pipeline.num_classes is not None:
                options: dict[str, Any] = {"generator": generator, "device": self.device}
                labels = torch.randint(self.pipeline.num_classes, (self.size,), **options)

        def normal() -> Tensor:
            return torch.randn((self.size, *self.shape), generator=generator, device=self.device)

        first, renewed = normal(), tuple(normal() for _ in range(self.depth(step)))
        t = self.times.draw(self.size, generator)
        noise = self.times.path.noise(normal(), generator)
        real = self._encoded(real, generator) if with_real and real is not None else None
        return Draw(first, renewed, t, noise, labels, real)
