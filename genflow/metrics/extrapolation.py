"""The Frechet distance at infinitely many samples, from its fall with their number (Chong and Forsyth 2020).

Of finite samples the distance is too large by something proportional to 1/N at first, which differs from model to
model: distances at several N, fitted by a line in 1/N, give its value at 1/N = 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.errors import InputError, check_number
from genflow.metrics.frechet import FrechetReference
from genflow.metrics.statistics import FeatureStatistics

__all__ = ["Extrapolation", "fd_infinity"]


@dataclass(frozen=True)
class Extrapolation:
    """A line through Frechet distances over 1/N.

    Attributes:
        value: where it meets 1/N = 0, the estimate; below zero only by noise.
        standard_error: of the value, by the scatter of the points about the line. The points share samples and the
            reference, so it is a little small.
        slope: distance per 1/N: the bias at N samples is ``slope / N``.
        sizes: the numbers of samples, rising, ``(P,)`` int64.
        distances: at those, float64 ``(P,)``.
    """

    value: float
    standard_error: float
    slope: float
    sizes: Tensor
    distances: Tensor


def fd_infinity(
    reference: FeatureStatistics | Tensor,
    generated: Tensor,
    *,
    points: int = 15,
    smallest: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Extrapolation:
    """FD-infinity of ``generated`` ``(N, D)`` features against a reference: its features or statistics.

    The reference stays as it is: its own bias, smaller where it is larger, is in every point. The line holds where
    all sizes are well above D; with fewer than about 5 D samples it is too steep, and the value too low, even negative.

    Args:
        reference: real features ``(M, D)``, or their statistics.
        generated: features of the samples.
        points: how many numbers of samples, evenly spaced up to all; 15 in the paper.
        smallest: the least of them. By default N / 10, at most 5,000, which is the paper's code at its 50,000; but 2 D
            at least, as far as N / 2 allows: below that points bend away from the line.
        seed: of the draws, each without replacement and independent of the others.
        progress: called with 1 after each point.

    Raises:
        InputError: shapes that do not fit, NaN, fewer than 3 points, or fewer samples than make different points.
    """
    check_number("points", points, at_least=3, integer=True)
    distance = FrechetReference(reference, generated)
    count, points = len(distance), int(points)
    width = generated.shape[1]
    least = max(2, min(5000, count // 10), min(2 * width, count // 2)) if smallest is None else smallest
    check_number("smallest", least, at_least=2, integer=True)
    if count - least < points - 1:
        raise InputError(f"generated: {count} samples; {points} points from {least} on need {least + points - 1}")
    sizes = torch.linspace(int(least), count, points, dtype=torch.float64).round().to(torch.int64)
    generator = torch.Generator().manual_seed(seed)
    distances = torch.empty(points, dtype=torch.float64)
    for place, size in enumerate(sizes.tolist()):
        drawn = torch.randperm(count, generator=generator)[:size] if size < count else None
        distances[place] = distance(drawn)
        if progress:
            progress(1)
    return _fit(sizes, distances)


def _fit(sizes: Tensor, distances: Tensor) -> Extrapolation:
    """Least squares of the distances on 1/N."""
    inverse = 1 / sizes.to(torch.float64)
    offsets = inverse - inverse.mean()
    spread = offsets.square().sum()
    slope = (offsets * distances).sum() / spread
    value = distances.mean() - slope * inverse.mean()
    residual = (distances - value - slope * inverse).square().sum() / (len(sizes) - 2)
    error = (residual * (1 / len(sizes) + inverse.mean().square() / spread)).sqrt()
    return Extrapolation(float(value), float(error), float(slope), sizes, distances)
