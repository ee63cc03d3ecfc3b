"""Squared Euclidean distances between many points: quick in float32 within a proved bound, exact where it matters.

The exact distance of a pair is the sum of squared differences in float64, in one order for every pair, so it depends on
the two points alone. The quick one is ``|a|^2 - 2ab + |b|^2`` of centred points, by matrix products in tiles; how far
it may be from the exact one follows from the standard bound for inner products in any order of summation (Higham 2002,
section 3.1). Whoever decides something takes the quick distance where the bound leaves no doubt, and the exact one
elsewhere: the decisions are those of exact distances, at the speed of float32.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.errors import InputError
from genflow.processes import Processes

__all__ = [
    "ALONE",
    "MAX_BYTES",
    "Bounds",
    "Frame",
    "Points",
    "Progress",
    "Tiles",
    "exact_distances",
    "rounding",
    "tiles",
    "true_places",
]

MAX_BYTES = 64 * 2**20
"""Memory for blocks of distances, by default."""

ALONE = Processes()
"""This process does all."""

Progress = Callable[[int], None]
"""Called with the number of rows just done."""

LARGEST = 1e150
"""Squares of features beyond this do not fit into float64."""


@dataclass(frozen=True)
class Points:
    """The distinct rows of ``(N, D)`` features, in order of first appearance: equal rows need one computation.

    ``values`` ``(U, D)`` float32 or float64; ``weights`` ``(U,)`` how often each came; ``first`` ``(U,)`` where first;
    ``inverse`` ``(N,)`` which of them each row is; ``centre`` ``(D,)`` float64, the rows' mean; ``largest`` entry.
    """

    values: Tensor
    weights: Tensor
    first: Tensor
    inverse: Tensor
    centre: Tensor
    largest: float

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def of(cls, name: str, features: Tensor, at_least: int, neighbours: int | None = None) -> "Points":
        """Check ``features`` and find the distinct rows. Raises InputError that starts with ``name``."""
        features = features.detach()
        if features.ndim != 2 or not features.shape[1]:
            raise InputError(f"{name}: got shape {tuple(features.shape)}; allowed: (N, D), D >= 1")
        if len(features) < at_least:
            why = f" for {neighbours} nearest neighbours" if neighbours else ""
            raise InputError(f"{name}: {len(features)} samples; at least {at_least} are needed{why}")
        half = features.is_floating_point() and features.dtype != torch.float64
        features = features.to(torch.float32 if half else torch.float64)
        generator = torch.Generator().manual_seed(0)
        factors = torch.rand(features.shape[1], generator=generator, dtype=torch.float64).to(features.device) + 1
        largest, total, hashes = 0.0, torch.zeros_like(factors), []
        for part in features.split(cached_rows(features)):
            low, high = (float(bound) for bound in part.aminmax())
            if not math.isfinite(low + high):
                raise InputError(f"{name}: some features are NaN or infinite")
            largest = max(largest, -low, high)
            double = part.to(torch.float64)
            total += double.sum(0)
            hashes.append((double * factors).sum(1))
        if largest > LARGEST:
            raise InputError(f"{name}: some features are beyond {LARGEST:g}; their squares do not fit")
        inverse = _first_equal(features, torch.cat(hashes))
        first, inverse, weights = inverse.unique(return_inverse=True, return_counts=True)
        values = features if len(first) == len(features) else features[first]
        return cls(values, weights, first, inverse, total / len(features), largest)


def cached_rows(features: Tensor) -> int:
    """So many rows in float64 stay in a core's cache from one operation to the next; a GPU takes more at once."""
    return max(1, 2 ** (18 if features.device.type == "cpu" else 24) // features.shape[1])


def _first_equal(features: Tensor, hashes: Tensor) -> Tensor:
    """For each row the index of the first row equal to it; rows are compared only where their hashes agree."""
    ordered, order = hashes.sort(stable=True)
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    leader = order[begins][begins.cumsum(0) - 1]  # the first row with this hash
    suspects = (~begins).nonzero()[:, 0]
    found = torch.arange(len(features), device=features.device)
    for part in suspects.split(1024):
        rows, leaders = order[part], leader[part]
        same = (features[rows] == features[leaders]).all(1)
        found[rows[same]] = leaders[same]
    return found


def exact_distances(first: Tensor, second: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Squared distance of ``first[i]`` and ``second[j]`` for each of ``(P,)`` pairs, float64.

    Chunks are of one size, the last being padded: a reduction's order may depend on the shape.
    """
    size = max(2, min(2**12, 2**18 // first.shape[1]))
    found = torch.empty(len(i), dtype=torch.float64, device=first.device)
    for start in range(0, len(i), size):
        rows, columns = i[start : start + size], j[start : start + size]
        count = len(rows)
        if count < size:
            rows, columns = (torch.cat([x, x[:1].expand(size - count)]) for x in (rows, columns))
        difference = first.index_select(0, rows).to(torch.float64).sub_(second.index_select(0, columns))
        found[start : start + count] = difference.square_().sum(1)[:count]
    return found


def rounding(dimensions: int) -> float:
    """By how much, relatively, an exact distance may differ from the true one: D + 4 roundings of float64."""
    return (dimensions + 4) * torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Frame:
    """Where quick distances are taken from, ``centre`` ``(D,)``, in units such that no centred point is longer than 1.

    ``scale`` is a power of two: it changes no digit, and keeps squares within float32's range.
    """

    centre: Tensor
    scale: float

    @classmethod
    def around(cls, centred_on: Points, *others: Points) -> "Frame":
        """Centred on the first set's mean, wide enough for all."""
        every = (centred_on, *others)
        longest = 2 * max(points.largest for points in every) * centred_on.values.shape[1] ** 0.5
        centre = centred_on.centre
        if all(points.values.dtype == torch.float32 for points in every):
            centre = centre.to(torch.float32)  # any centre will do; from this one float32 points need no float64
        return cls(centre, 2.0 ** -math.ceil(math.log2(longest)) if longest else 1.0)

    def place(self, values: Tensor, dtype: torch.dtype, factor: float = 1.0) -> Tensor:
        """``values`` ``(n, D)`` in this frame, times ``factor``, a power of two, each rounded once to ``dtype``."""
        scale = self.scale * factor
        wide = torch.promote_types(torch.promote_types(values.dtype, self.centre.dtype), dtype)
        return (values.to(wide) * scale).sub_(self.centre.to(wide) * scale).to(dtype)


@dataclass(frozen=True)
class Bounds:
    """How far exact distances, in a frame's units, may be from quick ones: ``row_slack[i] + column_slack[j]``."""

    frame: Frame
    dtype: torch.dtype
    row_slack: Tensor
    column_slack: Tensor

    def swapped(self) -> "Bounds":
        """Of the same distances with rows for columns."""
        return Bounds(self.frame, self.dtype, self.column_slack, self.row_slack)


class Tiles:
    """Quick squared distances between two sets of points in a frame, tile by tile, in the frame's units.

    Centred copies are made of what is needed next and kept while it is: tiles come in the order of :func:`tiles`.
    """

    def __init__(self, rows: Tensor, columns: Tensor, frame: Frame, dtype: torch.dtype) -> None:
        self._rows, self._columns, self._frame, self._dtype = rows, columns, frame, dtype
        column_norms = self._lengths(columns)
        self._norms = (column_norms if rows is columns else self._lengths(rows), column_norms)
        self.bounds = Bounds(frame, dtype, *(_slack(norms, rows.shape[1], dtype) for norms in self._norms))
        self._panel: tuple[slice, Tensor] = (slice(0, 0), columns[:0])

    def _lengths(self, values: Tensor) -> Tensor:
        placed = (self._frame.place(part, self._dtype) for part in values.split(cached_rows(values)))
        return torch.cat([part.to(torch.float64).square_().sum(1) for part in placed])

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """``(rows, columns)`` quick distances; some may be a little below zero."""
        at, panel = self._panel
        if columns.start < at.start or columns.stop > at.stop:
            del panel
            self._panel = (slice(0, 0), self._columns[:0])  # not two of them at a time
            at, panel = self._panel = (columns, self._frame.place(self._columns[columns], self._dtype))
        own = self._frame.place(self._rows[rows], self._dtype, factor=-2)
        with _full_precision():
            found = own @ panel[columns.start - at.start : columns.stop - at.start].T
        found += self._norms[0][rows].to(self._dtype)[:, None]
        return found.add_(self._norms[1][columns].to(self._dtype))


def _slack(norms: Tensor, dimensions: int, dtype: torch.dtype) -> Tensor:
    """A point's part in the bound. With unit roundoff u, an inner product of D terms in any order of summation errs by
    at most ``gamma = D u / (1 - D u)`` of the sum of absolute terms; here, doubled, that is at most ``|a|^2 + |b|^2``.
    Rounding the points and their norms, and adding those, makes less than 16 u of the same.
    """
    info = torch.finfo(dtype)
    terms = dimensions * info.eps / 2
    gamma = terms / (1 - terms) if terms < 0.5 else 1e9
    share = gamma + 8 * info.eps + 4 * rounding(dimensions)
    return norms * share + 16 * dimensions * info.tiny  # the last for products that underflow


@contextmanager
def _full_precision() -> Iterator[None]:
    """float32 products in float32, whatever the caller allows elsewhere (TF32, bfloat16)."""
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def true_places(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each true entry, few among many, in the order of memory: eight are looked at at once."""
    if mask.stride(0) < mask.stride(1):
        return true_places(mask.T)[::-1]
    if mask.shape[1] % 8 or not mask.is_contiguous():
        return mask.nonzero(as_tuple=True)
    words = mask.view(torch.int64).flatten().nonzero()[:, 0]
    word, byte = mask.view(-1, 8)[words].nonzero(as_tuple=True)
    places = words[word] * 8 + byte
    rows = places.div(mask.shape[1], rounding_mode="floor")
    return rows, places - rows * mask.shape[1]


def tiles(
    rows: int,
    columns: int,
    max_bytes: int,
    *,
    upper: bool = False,
    processes: Processes = ALONE,
    progress: Progress | None = None,
    total: int = 0,
) -> Iterator[tuple[slice, slice]]:
    """Slices of rows and of columns of the tiles to be done, panels of columns one after the other.

    With ``upper`` only what lies right of the diagonal, and the squares on it: a tile that begins on the diagonal holds
    its whole square. Tiles are dealt out to the ``processes`` in turn; these are this one's. ``progress`` is called
    after each with its part of ``total``, in whole numbers that add up to it.
    """
    # A tile, its masks and what they find take 32 bytes an entry. Flat tiles waste less below the diagonal.
    height = max(8, min(512, math.isqrt(max_bytes // 256)))
    width = 8 * height
    every = [
        (slice(top, min(top + height, rows)), slice(max(left, top) if upper else left, min(left + width, columns)))
        for left in range(0, columns, width)
        for top in range(0, min(rows, left + width) if upper else rows, height)
    ]
    mine = every[processes.index :: processes.count]
    sizes = [(down.stop - down.start) * (across.stop - across.start) for down, across in mine]
    done = told = 0
    for tile, size in zip(mine, sizes, strict=True):
        yield tile
        done += size
        if progress and total * done // sum(sizes) > told:
            progress(total * done // sum(sizes) - told)
            told = total * done // sum(sizes)
    if progress and told < total:
        progress(total - told)  # a process without a tile
