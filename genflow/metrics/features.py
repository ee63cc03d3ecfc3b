"""From images to feature vectors, in batches, with a record of exactly which network made them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from genflow.errors import InputError, check_number
from genflow.metrics.classifier import ImageClassifier, load_classifier

__all__ = ["Extractor", "FeatureExtractor", "Features", "content_hash"]


def content_hash(network: nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers: names, shapes, dtypes and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Features:
    """``values`` ``(N, D)`` float32; of a network that classifies, also what it thinks of each image.

    ``predicted`` ``(N,)`` int64 is the likeliest class, ``logits`` ``(N, K)`` float32 is what the Inception Score takes;
    None of a network without classes.
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


class FeatureExtractor:
    """Penultimate features and classes of images by an :class:`~genflow.metrics.classifier.ImageClassifier`.

    Batches have one size, the last filled up, so that a feature does not depend on how many images came with it.
    """

    def __init__(
        self, network: ImageClassifier, name: str, *, batch_size: int = 500, device: str | torch.device = "cpu"
    ) -> None:
        check_number("batch_size", batch_size, at_least=1, integer=True)
        self.network = network.eval().to(device)
        self.name = name
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.sha256 = content_hash(network)

    @classmethod
    def from_folder(cls, folder: str | Path, **options) -> "FeatureExtractor":
        """The extractor around the classifier kept in ``folder``, named after it."""
        return cls(load_classifier(folder), Path(folder).name, **options)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images it takes."""
        config = self.network.config
        return config.in_channels, config.sample_size, config.sample_size

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes it knows, where they are recorded."""
        return self.network.config.class_names

    @torch.no_grad()
    def __call__(self, images: Tensor, progress: Callable[[int], None] | None = None) -> Features:
        """Features of uint8 images ``(N, C, H, W)``. ``progress`` is called with the number of images just done.

        Raises InputError on images of another dtype or size.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != self.image_shape:
            shape = "x".join(map(str, images.shape[1:]))
            allowed = "x".join(map(str, self.image_shape))
            raise InputError(f"images: got {images.dtype} {shape}; {self.name} takes torch.uint8 {allowed}")
        values = torch.empty(len(images), self.network.num_features)
        predicted = torch.empty(len(images), dtype=torch.int64)
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            count = len(batch)
            filled = batch.new_zeros(self.batch_size, *batch.shape[1:])
            filled[:count] = batch
            features = self.network.features(filled.to(self.device).float() / 127.5 - 1)
            values[start : start + count] = features[:count].float().cpu()
            predicted[start : start + count] = self.network.head(features)[:count].argmax(1).cpu()
            if progress:
                progress(count)
        return Features(values, predicted)
