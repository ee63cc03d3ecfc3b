"""How well two sets of features cover each other, by nearest-neighbour balls, in bounded memory.

Improved precision and recall (Kynkaanniemi et al. 2019): a generated sample is precise if it lies in the ball of some
real sample, whose radius is the distance to that sample's k-th nearest real neighbour; recall is the same with the
roles exchanged. Density and coverage (Naeem et al. 2020): the number of real balls that hold a generated sample, over
k; and the share of real balls that hold at least one. All four come from one pass over blocks of distances.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.errors import InputError, check_number

__all__ = ["NeighbourMetrics", "neighbour_metrics", "neighbour_radii"]

MAX_BYTES = 64 * 2**20
"""Memory for blocks of distances, by default."""

Progress = Callable[[int], None]
"""Called with the number of rows just done; a whole run does ``2 * real + generated`` rows."""


@dataclass(frozen=True)
class NeighbourMetrics:
    """Precision, recall and coverage are shares in [0, 1]; density is a mean count over k and may pass 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def neighbour_radii(
    features: Tensor, ks: tuple[int, ...] = (3,), *, max_bytes: int = MAX_BYTES, progress: Progress | None = None
) -> Tensor:
    """Squared distance from each of ``(N, D)`` features to its k-th nearest other, ``(len(ks), N)``.

    The arithmetic is in the features' dtype, float32 or float64.
    """
    _check("features", features, max(ks))
    return _radii(features - features.mean(0), ks, max_bytes, progress)


def neighbour_metrics(
    real: Tensor,
    generated: Tensor,
    *,
    k: int = 3,
    density_k: int = 5,
    dtype: torch.dtype = torch.float64,
    max_bytes: int = MAX_BYTES,
    progress: Progress | None = None,
) -> NeighbourMetrics:
    """Precision, recall, density and coverage of ``generated`` ``(M, D)`` against ``real`` ``(N, D)`` features.

    Balls are closed (``<=``), as in Kynkaanniemi et al.; ``k = 3`` is theirs and ``density_k = 5`` Naeem et al.'s.
    Results depend neither on order nor on ``max_bytes``, the memory for blocks of distances. ``dtype`` float32 halves
    the time at a relative error of about 1e-6 in the distances. Raises InputError where a set has no k-th neighbour.
    """
    check_number("k", k, at_least=1, integer=True)
    check_number("density_k", density_k, at_least=1, integer=True)
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"dtype: got {dtype}; allowed: torch.float32, torch.float64")
    _check("real", real, max(k, density_k))
    _check("generated", generated, k)
    if real.shape[1] != generated.shape[1]:
        raise InputError(f"generated: {generated.shape[1]} features a sample; real has {real.shape[1]}")
    # Distances are taken as |a|^2 - 2ab + |b|^2, which loses digits far from the origin: bring it to the data.
    centre = real.to(dtype).mean(0)
    real, generated = real.to(dtype) - centre, generated.to(dtype) - centre
    real_ball, density_ball = _closed(_radii(real, (k, density_k), max_bytes, progress), real)
    generated_ball = _closed(_radii(generated, (k,), max_bytes, progress), generated)[0]

    precise = torch.zeros(len(generated), dtype=torch.bool, device=real.device)
    held = torch.zeros(len(generated), dtype=torch.int64, device=real.device)
    recalled = covered = start = 0
    for block in _blocks(real, generated, max_bytes):
        rows = slice(start, start + len(block))
        precise |= (block <= real_ball[rows, None]).any(0)
        recalled += int((block <= generated_ball).any(1).sum())
        dense = block <= density_ball[rows, None]
        held += dense.sum(0)
        covered += int(dense.any(1).sum())
        start += len(block)
        if progress:
            progress(len(block))
    return NeighbourMetrics(
        precision=float(precise.double().mean()),
        recall=recalled / len(real),
        density=float(held.double().mean()) / density_k,
        coverage=covered / len(real),
    )


def _radii(features: Tensor, ks: tuple[int, ...], max_bytes: int, progress: Progress | None) -> Tensor:
    """Each distance is computed once and counts for both its ends: a block's columns begin where its rows do."""
    nearest = features.new_full((len(features), max(ks)), torch.inf)
    start = 0
    for block in _blocks(features, features, max_bytes, upper=True):
        stop = start + len(block)
        block.diagonal().fill_(torch.inf)  # a sample is not its own neighbour; its duplicates are
        nearest[start:stop] = _smallest(nearest[start:stop], block)
        if stop < len(features):
            nearest[stop:] = _smallest(nearest[stop:], block[:, stop - start :].T)
        if progress:
            progress(stop - start)
        start = stop
    return nearest[:, [k - 1 for k in ks]].T


def _smallest(nearest: Tensor, block: Tensor) -> Tensor:
    """The smallest of each row of ``nearest`` and ``block`` together, ascending, as many as ``nearest`` has."""
    count = nearest.shape[1]
    found = block.topk(min(count, block.shape[1]), dim=1, largest=False).values
    return torch.cat([nearest, found], dim=1).topk(count, dim=1, largest=False).values


def _closed(radii: Tensor, centres: Tensor) -> Tensor:
    """Squared radii widened by rounding, so that a point on the edge is inside however its distance was computed."""
    norms = centres.square().sum(1)
    return radii + _rounding(centres) * (norms + (norms.sqrt() + radii.sqrt()).square())


def _blocks(rows: Tensor, columns: Tensor, max_bytes: int, upper: bool = False) -> Iterator[Tensor]:
    """Squared distances from successive blocks of ``rows`` to all ``columns``, each ``(block, len(columns))``.

    With ``upper``, rows and columns being the same, to the columns from the block's first row on.
    """
    # A block, its norms and the comparisons' masks: three times a block's own size bounds them.
    height = max(1, max_bytes // (3 * len(columns) * rows.element_size()))
    row_norms, column_norms = rows.square().sum(1, keepdim=True), columns.square().sum(1)
    for start in range(0, len(rows), height):
        first = start if upper else 0
        norms = row_norms[start : start + height] + column_norms[first:]
        block = torch.addmm(norms, rows[start : start + height], columns[first:].T, alpha=-2)
        yield block.mul_(block > norms.mul_(_rounding(rows)))  # duplicates are at distance zero exactly


def _rounding(features: Tensor) -> float:
    """The share of ``|a|^2 + |b|^2`` below which a squared distance is rounding."""
    return 4 * features.shape[1] ** 0.5 * torch.finfo(features.dtype).eps


def _check(name: str, features: Tensor, k: int) -> None:
    if features.ndim != 2:
        raise InputError(f"{name}: got shape {tuple(features.shape)}; allowed: (N, D)")
    if len(features) < k + 1:
        raise InputError(f"{name}: {len(features)} samples; at least {k + 1} are needed for {k} nearest neighbours")
    if not torch.isfinite(features).all():
        raise InputError(f"{name}: some features are NaN or infinite")
