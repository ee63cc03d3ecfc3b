"""The Frechet distance class by class, and intra-FID, its mean over classes."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from genflow.errors import InputError, check_number
from genflow.metrics.frechet import frechet_report

__all__ = ["ClassFrechet", "class_frechet_distances"]


@dataclass(frozen=True)
class ClassFrechet:
    """Frechet distances of classes.

    Attributes:
        intra: their unweighted mean (intra-FID, Miyato and Koyama 2018); None where a class had to be left out, as a
            mean over other classes cannot be compared: :attr:`partial` is that mean.
        partial: mean over the classes that have a distance.
        distances: by class.
        biases: what the finite samples add to each, see :func:`~genflow.metrics.frechet.frechet_bias`.
        counts: (real, generated) samples of every class of either set.
        left_out: why a class has no distance.
        unlabelled: (real, generated) samples of no known class.
    """

    intra: float | None
    partial: float
    distances: dict[int, float]
    biases: dict[int, float] = field(repr=False)
    counts: dict[int, tuple[int, int]] = field(repr=False)
    left_out: dict[int, str]
    unlabelled: tuple[int, int]


def class_frechet_distances(
    real: Tensor,
    real_labels: Tensor | None,
    generated: Tensor,
    generated_labels: Tensor | None,
    *,
    minimum: int = 2,
) -> ClassFrechet:
    """Frechet distance of each class of ``generated`` ``(M, D)`` to the same class of ``real`` ``(N, D)``.

    Labels are integers ``(N,)`` and ``(M,)``, negative where the class is not known; a classifier's opinion will do
    for unlabelled samples, and is then part of the measure. A class with fewer than ``minimum`` samples on a side is
    named in ``left_out``. With few samples a class the distances are mostly bias: read ``biases`` beside them.

    Raises InputError where labels are missing or do not fit, or no class has samples enough on both sides.
    """
    check_number("minimum", minimum, at_least=2, integer=True)
    groups, unlabelled = [], []
    for name, features, labels in (("real", real, real_labels), ("generated", generated, generated_labels)):
        if labels is None:
            raise InputError(f"{name}_labels: missing; a distance per class needs a class for the {name} samples")
        if features.ndim != 2 or features.shape[1] != real.shape[-1]:
            raise InputError(f"{name}: got shape {tuple(features.shape)}; allowed: (N, D), one D for both")
        if labels.shape != features.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
            raise InputError(
                f"{name}_labels: got {labels.dtype} {tuple(labels.shape)}; allowed: integers ({len(features)},)"
            )
        groups.append(_by_class(labels))
        unlabelled.append(len(labels) - sum(map(len, groups[-1].values())))
    known = sorted(groups[0].keys() | groups[1].keys())
    nothing = torch.empty(0, dtype=torch.int64)
    counts, reports, left_out = {}, {}, {}
    for label in known:
        rows = [group.get(label, nothing) for group in groups]
        counts[label] = (len(rows[0]), len(rows[1]))
        if min(counts[label]) < minimum:
            left_out[label] = "{} real and {} generated samples; at least {} are needed".format(*counts[label], minimum)
        else:
            reports[label] = frechet_report(real[rows[0]], generated[rows[1]])
    if not reports:
        raise InputError(f"labels: no class has {minimum} samples on both sides; classes found: {known}")
    distances = {label: report.distance for label, report in reports.items()}
    mean = sum(distances.values()) / len(distances)
    return ClassFrechet(
        intra=None if left_out else mean,
        partial=mean,
        distances=distances,
        biases={label: report.bias for label, report in reports.items()},
        counts=counts,
        left_out=left_out,
        unlabelled=(unlabelled[0], unlabelled[1]),
    )


def _by_class(labels: Tensor) -> dict[int, Tensor]:
    """The places of each class that is not negative, in their order."""
    order = labels.argsort(stable=True)
    classes, counts = labels[order].unique_consecutive(return_counts=True)
    places = order.split(counts.tolist())
    return {int(label): rows for label, rows in zip(classes, places, strict=True) if label >= 0}
