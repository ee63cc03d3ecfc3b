"""From images to feature vectors, in batches, with a record of exactly which network made them."""

import functools
import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from genflow import precision
from genflow.errors import InputError, check_choice, check_number
from genflow.metrics.classifier import ImageClassifier, load_classifier
from genflow.metrics.resize import RESIZE_MODES, Preparation

__all__ = [
    "DTYPES",
    "Extractor",
    "FeatureExtractor",
    "Features",
    "NetworkExtractor",
    "Scaling",
    "content_hash",
    "resolve_dtype",
]

DTYPES = ("float32", "bfloat16", "auto")


def content_hash(network: nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers: names, shapes, dtypes and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@dataclass(frozen=True)
class Features:
    """``values`` ``(N, D)`` float32; of a network that classifies, also what it thinks of each image.

    ``predicted`` ``(N,)`` int64 is the likeliest class, ``logits`` ``(N, K)`` float32 is what the Inception Score
    takes; None of a network without classes.
    """

    values: Tensor
    predicted: Tensor | None = None
    logits: Tensor | None = None


class Extractor(Protocol):
    """A feature network with all that its features depend on.

    Attributes:
        name: of the network, as users choose it or the name of its file.
        sha256: of its weights.
        dimensions: D.
        class_names: of the classes that it knows, where it has names for them.
    """

    name: str
    sha256: str
    dimensions: int
    class_names: tuple[str, ...] | None

    def prepare(self, image: np.ndarray) -> Tensor:
        """One image, uint8 ``(H, W, C)`` with C 1 or 3, resized as this network wants it: ``(C', H', W')``, uint8 or
        float32. Runs in the workers that decode. Raises InputError on a size that it does not take."""

    def __call__(self, images: Tensor, progress: Callable[[int], None] | None = None) -> Features:
        """Features of a stack of what :meth:`prepare` returned, whatever its length."""

    def describe(self) -> dict[str, Any]:
        """What features depend on, for JSON: features, features_sha256, dimensions, resize, dtype, ...; two sets of
        features can be compared when these are equal."""


@dataclass(frozen=True)
class Scaling:
    """From levels 0..255 to what a network takes: ``(x - offset) / divisor``, one pair for all channels or one each."""

    offset: tuple[float, ...]
    divisor: tuple[float, ...]

    @classmethod
    def by_mean_and_std(cls, mean: tuple[float, ...], std: tuple[float, ...]) -> "Scaling":
        """``(x / 255 - mean) / std``, as image processors write it."""
        return cls(tuple(255 * m for m in mean), tuple(255 * s for s in std))

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 or float ``(B, C, H, W)`` to float32."""
        offset, divisor = (_channels(values, images.device) for values in (self.offset, self.divisor))
        return (images - offset).div_(divisor)

    def __str__(self) -> str:
        return f"(x - {_figures(self.offset)}) / {_figures(self.divisor)}"


@functools.lru_cache(maxsize=16)
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Kept, since sending it to a GPU would make the host wait in every batch."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)


def _figures(values: tuple[float, ...]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else f"[{', '.join(f'{value:g}' for value in values)}]"


def resolve_dtype(dtype: str, device: str | torch.device) -> str:
    """``float32`` or ``bfloat16``; ``auto`` is bfloat16 where :func:`genflow.precision.probe` finds that it is faster.

    Raises InputError for an unknown name.
    """
    check_choice("dtype", dtype, DTYPES)
    if dtype != "auto":
        return dtype
    return "bfloat16" if precision.probe(torch.device(device).type).name == "bf16" else "float32"


class NetworkExtractor:
    """Features by any network: images are prepared, scaled, filled up to whole batches and sent through.

    Batches have one size, the last filled up, so that a feature does not depend on how many images came with it.

    Args:
        network: in evaluation mode or not; it is set so, and moved to ``device``.
        name: of the network.
        forward: ``(B, C, H, W)`` to features ``(B, D)`` and logits ``(B, K)``, or None for the latter.
        prepare: what becomes of each image before.
        scaling: of the levels 0..255; None hands the network the levels themselves.
        dimensions: D.
        class_names: of the K classes.
        batch_size: images a batch.
        dtype: ``float32``, ``bfloat16`` (autocast: weights and features stay float32), or ``auto``.
        sha256: of the network's weights; :func:`content_hash` of it by default.
        published: whether the weights are those that figures in the literature are of, bit for bit.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        *,
        forward: Callable[[Tensor], tuple[Tensor, Tensor | None]],
        prepare: Preparation,
        scaling: Scaling | None,
        dimensions: int,
        class_names: tuple[str, ...] | None = None,
        batch_size: int,
        device: str | torch.device = "cpu",
        dtype: str = "float32",
        sha256: str | None = None,
        published: bool = False,
    ) -> None:
        check_number("batch_size", batch_size, at_least=1, integer=True)
        check_choice("resize", prepare.mode, RESIZE_MODES)
        self.device = torch.device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        self.network = network.eval().to(self.device)
        self.name = name
        self.dimensions = dimensions
        self.class_names = class_names
        self.batch_size = batch_size
        self.prepare = prepare
        self.scaling = scaling
        self.sha256 = sha256 or content_hash(network)
        self.published = published
        self._forward = forward

    def describe(self) -> dict[str, Any]:
        """What features depend on, safe for JSON: network, weights, size, resize mode, scaling and number format."""
        return {
            "features": self.name,
            "features_sha256": self.sha256,
            "dimensions": self.dimensions,
            "resize": self.prepare.mode,
            "size": self.prepare.size,
            "channels": self.prepare.channels,
            "scaling": "levels 0..255" if self.scaling is None else str(self.scaling),
            "dtype": self.dtype,
        }

    def _check(self, images: Tensor) -> None:
        size, channels = self.prepare.size, self.prepare.channels
        dtypes = (torch.uint8,) if self.prepare.mode == "none" else (torch.uint8, torch.float32)
        right = images.dtype in dtypes and images.ndim == 4 and images.shape[1] == channels
        if right and self.prepare.mode == "none" and size is not None:
            right = tuple(images.shape[2:]) == (size, size)
        if not right:
            shape = "x".join(map(str, images.shape[1:]))
            allowed = f"{channels}x{size}x{size}" if size else f"{channels}xHxW"
            kinds = " or ".join(str(kind) for kind in dtypes)
            raise InputError(f"images: got {images.dtype} {shape}; {self.name} takes {kinds} {allowed}")

    @torch.no_grad()
    def __call__(self, images: Tensor, progress: Callable[[int], None] | None = None) -> Features:
        """Features of ``(N, C, H, W)``: a stack of what ``prepare`` returned, or uint8 images of one size.

        The latter are resized on the device; only where ``prepare`` needs pillow must they have the network's size.
        ``progress`` is called with the number of images just done.

        Raises:
            InputError: images of another dtype, size or number of channels.
        """
        self._check(images)
        with precision.whole_float32() if self.device.type == "cuda" else nullcontext():
            return self._extract(images, progress)

    def _extract(self, images: Tensor, progress: Callable[[int], None] | None) -> Features:
        values, logits = [], []
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size].to(self.device)
            count = len(batch)
            if count < self.batch_size:
                batch = torch.cat([batch, batch.new_zeros(self.batch_size - count, *batch.shape[1:])])
            batch = self.prepare.resize(batch)
            if self.scaling is not None:
                batch = self.scaling(batch)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
                found, scores = self._forward(batch)
            values.append(found[:count].float())
            if scores is not None:
                logits.append(scores[:count].float())
            if progress:
                progress(count)
        features = torch.cat(values).cpu() if values else torch.empty(0, self.dimensions)
        if not logits:
            return Features(features)
        scores = torch.cat(logits).cpu()
        return Features(features, scores.argmax(1), scores)


class FeatureExtractor(NetworkExtractor):
    """Penultimate features and classes of images by an :class:`~genflow.metrics.classifier.ImageClassifier`.

    ``resize`` is a mode of :mod:`genflow.metrics.resize`; by default images must have the classifier's size.
    """

    def __init__(
        self,
        network: ImageClassifier,
        name: str,
        *,
        batch_size: int = 500,
        device: str | torch.device = "cpu",
        dtype: str = "float32",
        resize: str = "none",
    ) -> None:
        check_choice("resize", resize, RESIZE_MODES)
        config = network.config

        def forward(images: Tensor) -> tuple[Tensor, Tensor]:
            features = network.features(images)
            return features, network.head(features)

        super().__init__(
            network,
            name,
            forward=forward,
            prepare=Preparation(name, resize, config.sample_size, config.in_channels),
            scaling=Scaling((127.5,), (127.5,)),
            dimensions=network.num_features,
            class_names=config.class_names,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
        )

    @classmethod
    def from_folder(cls, folder: str | Path, **options) -> "FeatureExtractor":
        """The extractor around the classifier kept in ``folder``, named after it."""
        return cls(load_classifier(folder), Path(folder).name, **options)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images it takes."""
        config = self.network.config
        return config.in_channels, config.sample_size, config.sample_size
