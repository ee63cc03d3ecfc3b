"""A set of samples as evaluation sees it: features, labels, figures of the images, and how all of them came about."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from genflow.metrics.statistics import FeatureStatistics

__all__ = ["FeatureSet"]


@dataclass(frozen=True)
class FeatureSet:
    """What is known of N samples.

    Attributes:
        statistics: float64 mean, covariance and count; of a statistics file this is all there is.
        protocol: for JSON: what the features depend on (``Extractor.describe()``), and where the samples came from
            (``source``, ``count``, ``available``, ``seed``, ``skipped``, ``content_sha256``).
        features: ``(N, D)`` float32.
        labels: int64 ``(N,)``, -1 where the class is not known; None where no class is.
        class_names: names of the labels.
        predicted: int64 ``(N,)``, the feature network's own opinion.
        logits: float32 ``(N, K)``, the same before the softmax.
        names: one a sample: the file, or the place in an array.
        images: figures of single images (``saturation``, ``contrast``, ...), float32 ``(N,)`` each.
    """

    statistics: FeatureStatistics
    protocol: dict[str, Any]
    features: Tensor | None = None
    labels: Tensor | None = None
    class_names: tuple[str, ...] | None = None
    predicted: Tensor | None = None
    logits: Tensor | None = None
    names: tuple[str, ...] | None = None
    images: dict[str, Tensor] = field(default_factory=dict)
