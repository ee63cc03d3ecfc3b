"""How well two sets of features cover each other, by nearest-neighbour balls, exactly and in bounded memory.

Improved precision and recall (Kynkaanniemi et al. 2019): a generated sample is precise if it lies in the ball of some
real sample, whose radius is the distance to that sample's k-th nearest real neighbour; recall is the same with the
roles exchanged. Density and coverage (Naeem et al. 2020): the number of real balls that hold a generated sample, over
k; and the share of real balls that hold at least one. Authenticity (Alaa et al. 2022): the share of generated samples
that are farther from their nearest real sample than that one is from its own nearest real neighbour.

All come from one pass over tiles of quick distances; see :mod:`genflow.metrics.neighbour_blocks` for why the counts
are those of exact distances.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.errors import check_flag, check_number
from genflow.metrics.neighbour_blocks import (
    ALONE,
    MAX_BYTES,
    Frame,
    Points,
    Progress,
    Tiles,
    exact_distances,
    rounding,
    tiles,
    true_places,
)
from genflow.metrics.neighbour_search import Closest, check_widths, self_distances
from genflow.processes import Processes

__all__ = ["NeighbourDetails", "NeighbourMetrics", "neighbour_details", "neighbour_metrics", "neighbour_radii"]


@dataclass(frozen=True)
class NeighbourMetrics:
    """All are shares in [0, 1], except density, a mean count over its k, which may pass 1."""

    precision: float
    recall: float
    density: float
    coverage: float
    authenticity: float


@dataclass(frozen=True)
class NeighbourDetails:
    """What :class:`NeighbourMetrics` counts, sample by sample: M generated and N real ones, distances Euclidean.

    Attributes:
        held: ``(M,)`` int64, in how many real balls of ``density_radius`` the generated sample lies.
        precise: ``(M,)`` bool, whether it lies in a real ball of ``radius``.
        authentic: ``(M,)`` bool, whether it is farther from its nearest real sample than that one from any other.
        nearest: ``(M,)`` int64, which real sample is nearest, the first of several at one distance.
        distance: ``(M,)`` float64, how far that is.
        recalled: ``(N,)`` bool, whether the real sample lies in some generated sample's ball.
        covered: ``(N,)`` bool, whether some generated sample lies in its ball of ``density_radius``.
        radius: ``(N,)`` float64, from the real sample to its ``k``-th nearest other.
        density_radius: ``(N,)`` float64, to its ``density_k``-th.
        generated_radius: ``(M,)`` float64, from the generated sample to its ``k``-th nearest other.
    """

    held: Tensor
    precise: Tensor
    authentic: Tensor
    nearest: Tensor
    distance: Tensor
    recalled: Tensor
    covered: Tensor
    radius: Tensor
    density_radius: Tensor
    generated_radius: Tensor
    k: int
    density_k: int

    @property
    def metrics(self) -> NeighbourMetrics:
        """The figures: means of the samples' own."""
        return NeighbourMetrics(
            precision=_mean(self.precise),
            recall=_mean(self.recalled),
            density=_mean(self.held) / self.density_k,
            coverage=_mean(self.covered),
            authenticity=_mean(self.authentic),
        )


def _mean(counts: Tensor) -> float:
    return int(counts.sum()) / len(counts)


def neighbour_radii(
    features: Tensor, ks: tuple[int, ...] = (3,), *, max_bytes: int = MAX_BYTES, progress: Progress | None = None
) -> Tensor:
    """Squared distance from each of ``(N, D)`` features to its k-th nearest other, ``(len(ks), N)`` float64, exact."""
    points = _points("features", features, max(ks))
    return self_distances(points, ks, max_bytes, progress, ALONE)[:, points.inverse]


def neighbour_metrics(
    real: Tensor,
    generated: Tensor,
    *,
    k: int = 3,
    density_k: int = 5,
    strict: bool = False,
    max_bytes: int = MAX_BYTES,
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> NeighbourMetrics:
    """The figures of :func:`neighbour_details`, whose arguments these are."""
    return neighbour_details(
        real,
        generated,
        k=k,
        density_k=density_k,
        strict=strict,
        max_bytes=max_bytes,
        progress=progress,
        processes=processes,
    ).metrics


def neighbour_details(
    real: Tensor,
    generated: Tensor,
    *,
    k: int = 3,
    density_k: int = 5,
    strict: bool = False,
    max_bytes: int = MAX_BYTES,
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> NeighbourDetails:
    """Precision, recall, density, coverage and authenticity of ``generated`` ``(M, D)`` against ``real`` ``(N, D)``.

    Args:
        k: whose ball decides precision and recall; 3 is Kynkaanniemi et al.'s.
        density_k: whose ball decides density and coverage; 5 is Naeem et al.'s.
        strict: balls without their surface, as in the ``prdc`` package and dgm-eval; by default they are closed, as in
            Kynkaanniemi et al. Distances that differ from the radius by float64's rounding alone are on the surface.
        max_bytes: memory for tiles of distances and all that they take; nothing grows with ``N * M``.
        progress: called with the number of rows just done, of ``2 * N + M`` in all.
        processes: those that share the work; all must call this with the same features.

    The counts are exact, whatever the order, ``max_bytes`` and ``processes``. Features of half precision are taken as
    float32, integers as float64.

    Raises:
        InputError: shapes that do not fit, NaN or infinite features, a set without a k-th neighbour.
    """
    check_number("k", k, at_least=1, integer=True)
    check_number("density_k", density_k, at_least=1, integer=True)
    check_flag("strict", strict)
    real_points, points = _points("real", real, max(k, density_k)), _points("generated", generated, k)
    check_widths("generated", generated, "real", real)
    work = (max_bytes, progress, processes)
    radius, density_radius, apart = self_distances(real_points, (k, density_k, 1), *work)
    (generated_radius,) = self_distances(points, (k,), *work)
    crossing = _Crossing(real_points, points, (radius, density_radius, generated_radius), strict)
    found = crossing.run(*work)
    to_real, to_generated = real_points.inverse, points.inverse
    nearest, distance = found["nearest"], found["distance"]
    return NeighbourDetails(
        held=found["held"][to_generated],
        precise=found["precise"][to_generated],
        authentic=(distance > apart[nearest] * (1 + rounding(real.shape[1])))[to_generated],
        nearest=real_points.first[nearest][to_generated],
        distance=distance.sqrt()[to_generated],
        recalled=found["recalled"][to_real],
        covered=found["covered"][to_real],
        radius=radius.sqrt()[to_real],
        density_radius=density_radius.sqrt()[to_real],
        generated_radius=generated_radius.sqrt()[to_generated],
        k=k,
        density_k=density_k,
    )


def _points(name: str, features: Tensor, k: int) -> Points:
    return Points.of(name, features, k + 1, neighbours=k)


class _Crossing:
    """Which generated points lie in which real balls and the other way round; all on distinct points."""

    def __init__(self, real: Points, generated: Points, radii: tuple[Tensor, Tensor, Tensor], strict: bool) -> None:
        self.real, self.generated, self.strict = real, generated, strict
        self.frame = Frame.around(real, generated)
        self.quick = Tiles(real.values, generated.values, self.frame, torch.float32)
        self.bounds = self.quick.bounds
        edge = rounding(real.values.shape[1])
        within = self.frame.scale**2 * (1 - edge if strict else 1 + edge)
        self.radius, self.density_radius, self.generated_radius = (r * within for r in radii)
        # Beyond these in quick distances, less the other end's slack, a pair lies in no ball of interest.
        self.row_reach = torch.maximum(self.radius, self.density_radius) + self.bounds.row_slack
        self.column_reach = self.generated_radius + self.bounds.column_slack
        device = real.values.device
        self.held = torch.zeros(len(generated), dtype=torch.int64, device=device)
        self.precise, self.recalled, self.covered = (
            torch.zeros(len(points), dtype=torch.bool, device=device) for points in (generated, real, real)
        )

    def run(self, max_bytes: int, progress: Progress | None, processes: Processes) -> dict[str, Tensor]:
        real, generated = self.real, self.generated
        closest = Closest(len(generated), 1, torch.float32, real.values.device)
        shared = {"processes": processes, "progress": progress, "total": len(real.inverse)}
        for rows, columns in tiles(len(real), len(generated), max_bytes, **shared):
            tile = self.quick.tile(rows, columns)
            closest.offer(columns.start, tile.T, rows.start)
            self._count(tile, rows, columns)
        closest.merge(processes)
        distance, nearest = closest.settle(generated.values, real.values, self.bounds.swapped(), max_bytes)
        return {
            "held": _over(processes, self.held),
            "precise": _over(processes, self.precise) > 0,
            "recalled": _over(processes, self.recalled) > 0,
            "covered": _over(processes, self.covered) > 0,
            "nearest": nearest[:, 0],
            "distance": distance[:, 0],
        }

    def _count(self, tile: Tensor, rows: slice, columns: slice) -> None:
        """Add what a tile of quick distances decides, after exact distances have where it does not."""
        row_slack, column_slack = self.bounds.row_slack[rows], self.bounds.column_slack[columns]
        row_reach = _up(self.row_reach[rows] + column_slack.max())
        column_reach = _up(self.column_reach[columns] + row_slack.max())
        near = (tile <= row_reach[:, None]).logical_or_(tile <= column_reach)
        found = int(near.count_nonzero())
        if not found:
            return
        # What is found takes a hundred bytes a pair: where nearly all is, it is taken in parts.
        height = len(near) if 16 * found < near.numel() else max(1, len(near) // 16)
        finer = None
        for start in range(0, len(near), height):
            part = near[start : start + height]
            i, j = true_places(part)
            i += start
            value, slack = tile[i, j].to(torch.float64), row_slack[i] + column_slack[j]
            thresholds = (self.radius[rows][i], self.density_radius[rows][i], self.generated_radius[columns][j])
            unsure = _unsure(value, slack, thresholds)
            if len(unsure) * 32 > part.numel():  # by now another product costs less than as many pairs
                if finer is None:
                    finer = self._finer.tile(rows, columns)
                value[unsure] = finer[i[unsure], j[unsure]]
                slack = self._finer.bounds.row_slack[rows][i] + self._finer.bounds.column_slack[columns][j]
                unsure = unsure[_unsure(value[unsure], slack[unsure], [t[unsure] for t in thresholds])]
            i, j = i + rows.start, j + columns.start
            exact = exact_distances(self.real.values, self.generated.values, i[unsure], j[unsure])
            value[unsure] = exact * self.frame.scale**2
            precise, dense, recalled = (value < t if self.strict else value <= t for t in thresholds)
            self.precise[j[precise]] = True
            self.recalled[i[recalled]] = True
            self.covered[i[dense]] = True
            self.held.index_add_(0, j[dense], self.real.weights[i[dense]])

    @functools.cached_property
    def _finer(self) -> Tiles:
        return Tiles(self.real.values, self.generated.values, self.frame, torch.float64)


def _unsure(value: Tensor, slack: Tensor, thresholds: Sequence[Tensor]) -> Tensor:
    """Where some comparison is not decided: the places, ascending."""
    near = [(value - threshold).abs() <= slack for threshold in thresholds]
    return torch.stack(near).any(0).nonzero()[:, 0]


def _over(processes: Processes, counts: Tensor) -> Tensor:
    """The sum over processes, int64."""
    every = processes.gather_rows(counts[None].to(torch.int64))
    return every.sum(0).to(counts.device)


def _up(bound: Tensor) -> Tensor:
    """A float64 bound in float32, rounded up."""
    return torch.nextafter(bound.to(torch.float32), torch.full((), torch.inf))
