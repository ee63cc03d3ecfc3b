"""The exact nearest neighbours of many points among many, in bounded memory, on one process or several.

Quick distances (:mod:`genflow.metrics.neighbour_blocks`) choose a few candidates for each point, more than are asked
for; exact distances of those whose bounds overlap decide among them. Where the bounds cannot exclude that a neighbour
was left out, the point is done again from float64 products, and, failing that, from exact distances to all.
"""

import torch
from torch import Tensor

from genflow.errors import InputError, check_number
from genflow.metrics.neighbour_blocks import (
    ALONE,
    MAX_BYTES,
    Bounds,
    Frame,
    Points,
    Progress,
    Tiles,
    exact_distances,
    tiles,
    true_places,
)
from genflow.processes import Processes

__all__ = ["Closest", "check_widths", "cross_distances", "nearest", "self_distances"]

SPARE = 7
"""Candidates beyond those asked for. They are a matter of speed: too few, and points are done twice."""


def nearest(
    reference: Tensor,
    queries: Tensor,
    *,
    count: int = 1,
    max_bytes: int = MAX_BYTES,
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> tuple[Tensor, Tensor]:
    """The ``count`` nearest of ``reference`` ``(N, D)`` to each of ``queries`` ``(Q, D)``, nearest first.

    Returns Euclidean distances ``(Q, count)`` float64 and indices ``(Q, count)`` int64. Of equal distances the lowest
    index comes first. Exact: neither order, chunks (``max_bytes``, the memory for them) nor processes change a digit.
    ``progress`` is called with rows done, of ``Q`` in all. Several ``processes`` (``genflow.processes.processes()``)
    share the work; all must call this with the same features.

    Raises:
        InputError: shapes that do not fit, NaN or infinite features, fewer than ``count`` in ``reference``.
    """
    check_number("count", count, at_least=1, integer=True)
    asked, known = Points.of("queries", queries, 1), Points.of("reference", reference, count)
    check_widths("queries", queries, "reference", reference)
    q, found = cross_distances(asked, known, count, max_bytes, progress, processes)
    if len(known) < len(reference):
        q, found = _with_copies(q, found, known, count)
    return q[asked.inverse].sqrt(), found[asked.inverse]


def check_widths(name: str, features: Tensor, other_name: str, other: Tensor) -> None:
    """Raises InputError where two sets have different numbers of features."""
    if features.shape[1] != other.shape[1]:
        raise InputError(f"{name}: {features.shape[1]} features a sample; {other_name} has {other.shape[1]}")


def _with_copies(q: Tensor, found: Tensor, known: Points, count: int) -> tuple[Tensor, Tensor]:
    """From distinct neighbours to rows of the reference: each stands for all its copies, up to ``count`` of them."""
    order = known.inverse.argsort(stable=True)  # rows grouped by the distinct point, ascending in each group
    begins = known.weights.cumsum(0) - known.weights
    nth = torch.arange(count, device=q.device)
    there = (nth < known.weights[found.clamp(min=0)][..., None]) & torch.isfinite(q)[..., None]  # (Q, distinct, count)
    rows = order[(begins[found.clamp(min=0)][..., None] + nth).clamp(max=len(order) - 1)]
    distances = torch.where(there, q[..., None], torch.inf).flatten(1)
    distances, rows = _by_distance_and_index(distances, rows.flatten(1))
    return distances[:, :count], rows[:, :count]


def _by_distance_and_index(distances: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    order = indices.argsort(dim=1, stable=True)
    distances, indices = distances.gather(1, order), indices.gather(1, order)
    order = distances.argsort(dim=1, stable=True)
    return distances.gather(1, order), indices.gather(1, order)


def cross_distances(
    asked: Points, known: Points, count: int, max_bytes: int, progress: Progress | None, processes: Processes
) -> tuple[Tensor, Tensor]:
    """Exact squared distances and indices ``(len(asked), count)`` of the nearest distinct points, nearest first.

    Where there are fewer than ``count`` distinct ones, the rest is infinite.
    """
    frame = Frame.around(known, asked)
    closest = Closest(len(asked), count, torch.float32, asked.values.device)
    block = Tiles(asked.values, known.values, frame, torch.float32)
    shared = {"processes": processes, "progress": progress, "total": len(asked.inverse)}
    for rows, columns in tiles(len(asked), len(known), max_bytes, **shared):
        closest.offer(rows.start, block.tile(rows, columns), columns.start)
    closest.merge(processes)
    return closest.settle(asked.values, known.values, block.bounds, max_bytes)


def self_distances(
    points: Points, ranks: tuple[int, ...], max_bytes: int, progress: Progress | None, processes: Processes
) -> Tensor:
    """Exact squared distances ``(len(ranks), len(points))`` to the other rows that are nearest, second nearest...

    Copies of the point are among them. Each product is computed once and counts for both its ends.
    """
    device = points.values.device
    closest = Closest(len(points), max(ranks), torch.float32, device)
    block = Tiles(points.values, points.values, Frame.around(points), torch.float32)
    shared = {"processes": processes, "progress": progress, "total": len(points.inverse)}
    for rows, columns in tiles(len(points), len(points), max_bytes, upper=True, **shared):
        tile = block.tile(rows, columns)
        if columns.start == rows.start:
            tile.diagonal().fill_(torch.inf)
        closest.offer(rows.start, tile, columns.start)
        right = max(columns.start, rows.stop)  # the square on the diagonal holds both ends of its pairs already
        if right < columns.stop:
            closest.offer(right, tile[:, right - columns.start :].T, rows.start)
    closest.merge(processes)
    own = torch.arange(len(points), device=device)
    copies = int(points.weights.max()) > 1
    q, found = closest.settle(
        points.values, points.values, block.bounds, max_bytes, own=own, ranks=None if copies else ranks
    )
    if not copies:
        return q[:, [rank - 1 for rank in ranks]].T
    # A point's copies are at distance zero; each neighbour counts as often as it came.
    q = torch.cat([q.new_zeros(len(q), 1), q], dim=1)
    weights = torch.cat([points.weights[:, None] - 1, points.weights[found.clamp(min=0)]], dim=1)
    reached = torch.where(torch.isfinite(q), weights, 0).cumsum(1)
    place = torch.searchsorted(reached, torch.tensor(ranks, device=device).expand(len(q), -1).contiguous())
    return q.gather(1, place).T


class Closest:
    """For each of ``queries`` points the few candidates with the smallest quick distances so far, in any order offered.

    Every point that was offered and is not among a row's candidates is at least as far, by quick distances, as the
    last of them. ``values`` ``(queries, kept)`` ascending, infinite where there is none yet; ``indices`` alike.
    """

    def __init__(
        self, queries: int, count: int, dtype: torch.dtype, device: torch.device, spare: int | None = None
    ) -> None:
        kept = count + (SPARE if spare is None else spare)
        self.count = count
        self.values = torch.full((queries, kept), torch.inf, dtype=dtype, device=device)
        self.indices = torch.full((queries, kept), -1, dtype=torch.int64, device=device)

    def offer(self, start: int, block: Tensor, first: int) -> None:
        """``block`` ``(rows, candidates)``: quick distances of queries from ``start`` on, candidates from ``first``."""
        values, indices = self.values[start : start + len(block)], self.indices[start : start + len(block)]
        below = block < values[:, -1:]
        found = int(below.count_nonzero())
        if not found:
            return
        if found * 32 < block.numel():
            query, candidate = true_places(below)
            counts = query.bincount(minlength=len(block))
            touched = counts.nonzero()[:, 0]
            widest = int(counts.max())
            if widest * len(touched) * 4 < block.numel():
                order = query.argsort(stable=True) if block.stride(0) < block.stride(1) else slice(None)
                query, candidate = query[order], candidate[order]
                rank = torch.arange(found, device=query.device) - (counts.cumsum(0) - counts)[query]
                row = ((counts > 0).cumsum(0) - 1)[query]
                near = values.new_full((len(touched), widest), torch.inf)
                near[row, rank] = block[query, candidate]
                which = torch.zeros_like(near, dtype=torch.int64)
                which[row, rank] = candidate + first
                values[touched], indices[touched] = self._nearer(values[touched], indices[touched], near, which)
                return
        best, where = block.topk(min(values.shape[1], block.shape[1]), dim=1, largest=False)
        values[:], indices[:] = self._nearer(values, indices, best, where + first)

    @staticmethod
    def _nearer(values: Tensor, indices: Tensor, others: Tensor, other_indices: Tensor) -> tuple[Tensor, Tensor]:
        """Of ``(rows, kept)`` and as many rows of others the smallest, ascending, as many as there were."""
        best, order = torch.cat([values, others], dim=1).topk(values.shape[1], dim=1, largest=False, sorted=True)
        return best, torch.cat([indices, other_indices], dim=1).gather(1, order)

    def merge(self, processes: Processes) -> None:
        """Fold in what other processes were offered; all must call this."""
        if processes.count == 1:
            return
        shape = (processes.count, *self.values.shape)
        values = processes.gather_rows(self.values).view(shape).to(self.values.device)
        indices = processes.gather_rows(self.indices).view(shape).to(self.values.device)
        for number in range(processes.count):
            if number != processes.index:
                found = self._nearer(self.values, self.indices, values[number], indices[number])
                self.values, self.indices = found

    def settle(
        self,
        asked: Tensor,
        known: Tensor,
        bounds: Bounds,
        max_bytes: int,
        *,
        own: Tensor | None = None,
        ranks: tuple[int, ...] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Exact squared distances and indices ``(queries, count)`` of the nearest, ordered by both.

        ``asked`` and ``known`` are the points whose quick distances were offered, within ``bounds``; ``own``
        ``(queries,)`` the index in ``known`` that is the query itself and does not count. Where only certain ``ranks``
        (from 1) are wanted, the distances at others may be quick ones.
        """
        absent = torch.isinf(self.values)
        quick = self.values.to(torch.float64)
        slack = bounds.row_slack[:, None] + bounds.column_slack[self.indices.clamp(min=0)]
        lower, upper = quick - slack, quick + slack
        least, most = lower.sort(dim=1).values, upper.sort(dim=1).values
        last = most[:, self.count - 1]
        unsure = ~absent[:, -1] & (quick[:, -1] - bounds.row_slack - bounds.column_slack.max() <= last)
        needed = torch.zeros_like(absent)
        for rank in ranks or range(1, self.count + 1):  # those that may have this rank
            needed |= (lower <= most[:, rank - 1, None]) & (upper >= least[:, rank - 1, None])
        needed &= ~(absent | unsure[:, None])
        query, place = needed.nonzero(as_tuple=True)
        q = quick / bounds.frame.scale**2
        q[query, place] = exact_distances(asked, known, query, self.indices[query, place])
        q, found = (part[:, : self.count].clone() for part in _by_distance_and_index(q, self.indices))
        if unsure.any():
            again = unsure.nonzero()[:, 0]
            mine = own[again] if own is not None else None
            q[again], found[again] = _again(asked[again], known, self.count, bounds, max_bytes, mine)
        return q, found


def _again(
    asked: Tensor, known: Tensor, count: int, bounds: Bounds, max_bytes: int, own: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What :meth:`Closest.settle` gives, for points that quick distances within ``bounds`` cannot settle."""
    if bounds.dtype == torch.float64:
        return _from_all(asked, known, count, own)
    block = Tiles(asked, known, bounds.frame, torch.float64)
    closest = Closest(len(asked), count, torch.float64, asked.device, spare=4 * SPARE)
    for rows, columns in tiles(len(asked), len(known), max_bytes // 2):
        tile = block.tile(rows, columns)
        if own is not None:
            here = ((own[rows] >= columns.start) & (own[rows] < columns.stop)).nonzero()[:, 0]
            tile[here, own[rows][here] - columns.start] = torch.inf
        closest.offer(rows.start, tile, columns.start)
    return closest.settle(asked, known, block.bounds, max_bytes, own=own)


def _from_all(asked: Tensor, known: Tensor, count: int, own: Tensor | None) -> tuple[Tensor, Tensor]:
    """Exact distances to all points: for points with very many others at very nearly one distance."""
    everyone = torch.arange(len(known), device=known.device)
    q = torch.full((len(asked), count), torch.inf, dtype=torch.float64, device=known.device)
    found = torch.full((len(asked), count), -1, dtype=torch.int64, device=known.device)
    for query in range(len(asked)):
        distances = exact_distances(asked, known, torch.full_like(everyone, query), everyone)
        if own is not None:
            distances[own[query]] = torch.inf
        order = distances.argsort(stable=True)[:count]
        q[query, : len(order)], found[query, : len(order)] = distances[order], order
    return q, found
