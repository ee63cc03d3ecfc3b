"""A feature network in whole numbers, whose features are exact in any order of summation, and images for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genflow.evaluate.feature_set import FeatureSet
from genflow.evaluate.sources.arrays import ArraySource
from genflow.metrics.features import Features

SIZE, DIMENSIONS = 6, 5


def tiny_images(count: int, seed: int = 0) -> np.ndarray:
    """uint8 ``(count, 6, 6, 1)``."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 1), np.uint8)


def tiny_source(count: int, seed: int = 0, **options: Any) -> ArraySource:
    return ArraySource(tiny_images(count, seed), "tiny", **options)


class TinyExtractor:
    """Counts what it has seen; ``after`` is called with that number, before each batch, and may raise."""

    name, sha256, dimensions, class_names = "tiny", "0" * 64, DIMENSIONS, ("even", "odd")

    def __init__(
        self, resize: str = "none", batch_size: int = 8, after: Callable[[int], None] | None = None, broken: int = -1
    ) -> None:
        self.resize, self.batch_size, self.after, self.broken = resize, batch_size, after, broken
        self.seen = self.batches = 0
        self.weights = torch.randint(-3, 4, (SIZE * SIZE, DIMENSIONS), generator=torch.Generator().manual_seed(3))

    @staticmethod
    def prepare(image: np.ndarray) -> Tensor:
        return torch.from_numpy(image.transpose(2, 0, 1).copy())

    def __call__(self, images: Tensor, progress: Callable[[int], None] | None = None) -> Features:
        if self.after is not None:
            self.after(self.seen)
        values = (images.flatten(1).long() @ self.weights).float()
        if self.seen <= self.broken < self.seen + len(images):
            values[self.broken - self.seen, 2] = torch.nan
        self.seen += len(images)
        self.batches += 1
        return Features(values, images[:, 0, 0, 0].long() % 2, values[:, :2].clone())

    def describe(self) -> dict[str, Any]:
        return {
            "features": self.name,
            "features_sha256": self.sha256,
            "dimensions": DIMENSIONS,
            "resize": self.resize,
            "dtype": "float32",
        }


def kept_files(folder: Path) -> list[str]:
    """Everything below a folder of caches, by name."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def same(first: FeatureSet, second: FeatureSet) -> bool:
    """Whether two sets agree in every bit."""
    tensors = [
        {
            "mean": given.statistics.mean,
            "covariance": given.statistics.covariance,
            "features": given.features,
            "predicted": given.predicted,
            "logits": given.logits,
            **given.images,
        }
        for given in (first, second)
    ]
    return (
        tensors[0].keys() == tensors[1].keys()
        and all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
        and (first.names, first.protocol) == (second.names, second.protocol)
        and (first.labels is None) == (second.labels is None)
        and (first.labels is None or torch.equal(first.labels, second.labels))
    )


def stop_after(images: int):
    """An extractor's ``after`` that is Ctrl-C once so many images were seen."""

    def stop(seen: int) -> None:
        if seen >= images:
            raise KeyboardInterrupt

    return stop
