"""Confidence intervals and tests of differences by the bootstrap (Efron 1979): figures of resamples with replacement.

What is resampled has to be said with each figure. Means of single samples' values (precision, density, authenticity,
accuracy, saturation) resample the samples. Recall and coverage are means over real samples, of whether each is
recalled or covered: they resample the real ones, given the balls. A resample of the samples themselves would hold
copies, each at distance zero from its like, and the balls would lose their size.

A Frechet distance resamples the samples (:class:`~genflow.metrics.frechet.FrechetReference` is such a statistic, and
:func:`~genflow.metrics.frechet_influence.frechet_influence` the linear shortcut). It grows as samples get fewer, and a
resample has fewer: of n draws about 0.63 n are different. So its resamples lie too high, by about the bias that the
figure has already, and the percentile interval with them. Two cures, for two questions: ``"centred"`` moves the
resamples back on to the figure, and is an interval for what such a figure at this number of samples is on average,
which is what sets of one size are compared by; ``"basic"`` (Davison and Hinkley 1997, section 5.2) takes the resamples'
excess for the figure's own and reflects, an interval for the distance of the laws, corrected for bias.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.errors import InputError, check_choice, check_flag, check_number

__all__ = [
    "Difference",
    "Interval",
    "Statistic",
    "bootstrap",
    "holm",
    "interval_from_draws",
    "p_value_from_draws",
    "paired_bootstrap",
    "resample_counts",
    "resamples",
]

Statistic = Callable[[Tensor], float] | Tensor
"""A figure of the samples at ``indices``, int64 ``(n,)`` with repeats; or single samples' values ``(n,)``, whose mean
it is, which takes no time at all."""

METHODS = ("percentile", "centred", "basic")
_ENTRIES = 2**22  # indices at once


@dataclass(frozen=True)
class Interval:
    """A figure and its interval at ``level``, from ``draws`` resamples by ``method``; ``error`` is their deviation."""

    value: float
    low: float
    high: float
    level: float
    draws: int
    method: str
    error: float


@dataclass(frozen=True)
class Difference:
    """Figure ``first`` less figure ``second`` (their places), with an interval.

    ``p`` is two-sided, of there being no difference; ``p_corrected`` is Holm's, over all the pairs tested together.
    """

    first: int
    second: int
    value: float
    low: float
    high: float
    level: float
    draws: int
    p: float
    p_corrected: float


def resamples(n: int, draws: int, seed: int = 0) -> Iterator[Tensor]:
    """``(some, n)`` indices drawn with replacement, int64, ``draws`` rows in all; the rows depend on ``seed`` alone."""
    check_number("n", n, at_least=1, integer=True)
    check_number("draws", draws, at_least=1, integer=True)
    generator = torch.Generator().manual_seed(seed)
    at_once = max(1, _ENTRIES // n)
    for start in range(0, draws, at_once):
        yield torch.randint(n, (min(at_once, draws - start), n), generator=generator)


def resample_counts(n: int, draws: int, seed: int = 0) -> Tensor:
    """How often each of :func:`resamples` holds each sample: ``(draws, n)`` float64, rows of sum n."""
    rows = [
        torch.zeros(part.shape, dtype=torch.float64).scatter_add_(1, part, torch.ones(part.shape, dtype=torch.float64))
        for part in resamples(n, draws, seed)
    ]
    return torch.cat(rows)


def bootstrap(
    statistic: Statistic,
    n: int | None = None,
    *,
    draws: int = 200,
    level: float = 0.95,
    seed: int = 0,
    method: str = "percentile",
) -> Interval:
    """An interval for a figure of ``n`` samples.

    Args:
        statistic: called with ``arange(n)`` for the figure itself, then with each resample; or values ``(n,)``.
        n: how many samples; with values, their number.
        draws: resamples. 200 give the ends of an interval of 0.95 to about a tenth of its length.
        level: share of such intervals that hold the truth.
        seed: of the resamples; equal seeds and n give equal resamples.
        method: ``"percentile"``, right for figures whose average does not depend on n; see the module for the others.

    Raises:
        InputError: no samples, draws or level out of range, values that are not ``(n,)`` or not finite.
    """
    check_choice("method", method, METHODS)
    _check_level(level)
    value, drawn = _draw(statistic, n, draws, seed)
    return interval_from_draws(value, drawn, level, method)


def interval_from_draws(value: float, draws: Tensor, level: float = 0.95, method: str = "centred") -> Interval:
    """The interval about ``value`` from the same figure of resamples, ``(draws,)``.

    By default they are centred on the value: their own mean may lie beside it, as the Frechet distance's does, whose
    resamples hold copies. Raises InputError below two draws or where some are not finite.
    """
    check_choice("method", method, METHODS)
    _check_level(level)
    draws = draws.to("cpu", torch.float64)
    if draws.ndim != 1 or len(draws) < 2:
        raise InputError(f"draws: got shape {tuple(draws.shape)}; allowed: (draws,), two or more")
    if not bool(torch.isfinite(draws).all()):
        raise InputError("draws: the figure of some resample is NaN or infinite")
    low, high = draws.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    if method == "centred":
        shift = value - float(draws.mean())
        low, high = low + shift, high + shift
    elif method == "basic":
        low, high = 2 * value - high, 2 * value - low
    return Interval(value, low, high, level, len(draws), method, float(draws.std()))


def p_value_from_draws(difference: float, draws: Tensor) -> float:
    """Two-sided p-value of there being no difference, from the same difference of resamples, ``(draws,)``.

    How often their scatter about their own mean is as large as the difference; the difference found counts as one of
    them, so that p is never zero (Davison and Hinkley 1997, eq. 4.11).
    """
    draws = draws.to("cpu", torch.float64)
    scatter = (draws - draws.mean()).abs()
    # Equal sets differ by nothing, and so do their resamples, to rounding.
    as_large = scatter >= abs(difference) * (1 - 1e-12)
    return (1 + int(as_large.sum())) / (1 + len(draws))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for there being several (Holm 1979): with all below the level false at once or not, the
    chance of one false find among them stays below the level. Step-down: the smallest of m times m, the next times
    ``m - 1``, never falling, at most 1.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected, highest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def paired_bootstrap(
    statistics: Sequence[Statistic],
    counts: int | Sequence[int] | None = None,
    *,
    paired: bool = True,
    draws: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> list[Difference]:
    """Differences of one figure between all pairs of several sets of samples, each against the same reference.

    Args:
        statistics: one a set, as in :func:`bootstrap`.
        counts: samples of each set, or of all; with values, their numbers.
        paired: whether sample i of one set belongs to sample i of the others, as with equal seeds, or to one and the
            same reference (recall, coverage). Resamples then take the same indices everywhere, and what the sets have
            in common falls out. Otherwise each set is resampled by itself.
        draws: resamples; p is at least ``1 / (draws + 1)``, before Holm's correction multiplies it.
        level: of the intervals.
        seed: of the resamples.

    Raises:
        InputError: fewer than two sets, paired sets of different sizes, and what :func:`bootstrap` raises.
    """
    check_flag("paired", paired)
    _check_level(level)
    if len(statistics) < 2:
        raise InputError(f"statistics: got {len(statistics)}; at least two are needed")
    sizes = list(counts) if isinstance(counts, Sequence) else [counts] * len(statistics)
    if len(sizes) != len(statistics):
        raise InputError(f"counts: got {len(sizes)}; allowed: {len(statistics)}, one a statistic")
    sizes = [_size(statistic, size) for statistic, size in zip(statistics, sizes, strict=True)]
    if paired and len(set(sizes)) > 1:
        raise InputError(f"paired: sets of {', '.join(map(str, sizes))} samples; paired sets have one size")
    # Seeds of sets drawn apart are themselves drawn, so that no seed given by hand makes two of them equal.
    apart = torch.randint(2**62, (len(sizes),), generator=torch.Generator().manual_seed(seed)).tolist()
    figures = [
        _draw(statistic, size, draws, seed if paired else own)
        for statistic, size, own in zip(statistics, sizes, apart, strict=True)
    ]
    found = []
    for first, second in itertools.combinations(range(len(figures)), 2):
        value = figures[first][0] - figures[second][0]
        drawn = figures[first][1] - figures[second][1]
        found.append((first, second, interval_from_draws(value, drawn, level), p_value_from_draws(value, drawn)))
    corrected = holm([p for *_, p in found])
    return [
        Difference(first, second, one.value, one.low, one.high, level, draws, p, better)
        for (first, second, one, p), better in zip(found, corrected, strict=True)
    ]


def _check_level(level: float) -> None:
    check_number("level", level, above=0, below=1)


def _size(statistic: Statistic, n: int | None) -> int:
    if isinstance(statistic, Tensor):
        if statistic.ndim != 1 or (n is not None and len(statistic) != n):
            raise InputError(f"statistic: got shape {tuple(statistic.shape)}; allowed: ({'n' if n is None else n},)")
        if not bool(torch.isfinite(statistic).all()):
            raise InputError("statistic: some values are NaN or infinite")
        n = len(statistic)
    if n is None:
        raise InputError("n: needed with a statistic that is a function")
    return int(check_number("n", n, at_least=1, integer=True))


def _draw(statistic: Statistic, n: int | None, draws: int, seed: int) -> tuple[float, Tensor]:
    """The figure, and the same of ``(draws,)`` resamples."""
    n = _size(statistic, n)
    check_number("draws", draws, at_least=2, integer=True)
    if isinstance(statistic, Tensor):
        values = statistic.to("cpu", torch.float64)
        return float(values.mean()), torch.cat([values[rows].mean(1) for rows in resamples(n, draws, seed)])
    found = [float(statistic(row)) for rows in resamples(n, draws, seed) for row in rows]
    return float(statistic(torch.arange(n))), torch.tensor(found, dtype=torch.float64)
