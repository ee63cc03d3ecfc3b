"""Several sets of samples side by side: figures with intervals, and which differences are more than chance.

The differences are tested by a bootstrap: both sets are resampled, the difference of the metric is taken again, and its
scatter about its own mean tells how often one as large would come about between sets of one law. Recall and coverage
are shares of the one reference, whose images are drawn for all sets alike; all else draws from the sets, each by
itself, or, where they are paired, the same rows from all. Within each metric the p-values of all pairs are corrected
by Holm's method (1979), so that the chance of any false find among them stays below the level.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genflow.errors import InputError, check_flag
from genflow.evaluate.evaluation import Evaluation
from genflow.evaluate.intervals import NOT_RESAMPLED, difference, interval_of, resampling
from genflow.evaluate.judging import Request, check_draws, judge
from genflow.evaluate.measures import MEASURES
from genflow.evaluate.replicates import replicates
from genflow.evaluate.sides import recognise
from genflow.metrics.resampling import holm

__all__ = ["compare_in_detail", "compare_sets"]


def compare_sets(
    sets: Sequence[str | Path],
    reference: str | Path = "fashion-mnist",
    *,
    paired: bool = False,
    bootstrap: int = 200,
    **options: Any,
) -> dict[str, Any]:
    """The result of :func:`compare_in_detail`, whose arguments these are, safe for JSON."""
    return compare_in_detail(sets, reference, paired=paired, bootstrap=bootstrap, **options)[0]


def compare_in_detail(
    sets: Sequence[str | Path],
    reference: str | Path = "fashion-mnist",
    *,
    paired: bool = False,
    bootstrap: int = 200,
    **options: Any,
) -> tuple[dict[str, Any], list[Evaluation]]:
    """Score two sets of samples or more against one reference, and test their differences.

    Args:
        sets: each as ``samples`` of :func:`genflow.evaluate.run.evaluate_in_detail`.
        reference: as there.
        paired: sample i of each set belongs to sample i of the others, as when all come of the same seeds; this finds
            smaller differences. The sets must then be of one size.
        bootstrap: resamples; 0 leaves out intervals and tests.
        options: those of :class:`genflow.evaluate.judging.Request`.

    Returns:
        The result, and the evaluation of each set. The result is safe for JSON: ``sets``, what
        :func:`~genflow.evaluate.run.evaluate` returns of each; ``comparisons``, by metric ``{"best": place or None,
        "pairs": [{"first", "second", "difference", "low", "high", "p", "p_corrected"}]}``, a difference being
        the first's less the second's; ``protocol`` with ``paired``, ``bootstrap`` and ``warnings``.

    Raises:
        InputError: fewer than two sets, paired sets of different sizes, and all that evaluating one raises.
    """
    check_flag("paired", paired)
    check_draws(bootstrap)
    if len(sets) < 2:
        raise InputError(f"samples: {len(sets)} set given; at least two are needed to compare")
    request = Request(**options)  # without intervals of its own: here they come of the same resamples as the tests
    found = judge([recognise("samples", given) for given in sets], reference, request)
    sizes = [one.generated.features.statistics.count for one in found]
    if paired:
        _check_paired(sets, found, sizes)
    bare = [str(name) for name, one in zip(sets, found, strict=True) if one.generated.features.features is None]
    draws = 0 if bare else bootstrap
    keys = [key for key in found[0].result["metrics"] if all(key in one.result["metrics"] for one in found)]
    tested: dict[str, Any] = {}
    for key in keys:
        values = [one.result["metrics"][key] for one in found]
        drawn = _drawn(found, key, draws, request.seed, paired)
        if drawn is not None:
            for one, value, figures in zip(found, values, drawn, strict=True):
                one.result["intervals"][key] = interval_of(key, value, figures, request.level)
        tested[key] = {"best": _best(key, found, values), "pairs": _pairs(values, drawn, request.level)}
    resampled = resampling(draws, request.level, request.seed)
    for one in found:
        one.result["protocol"]["bootstrap"] = resampled
    protocol = {
        "reference": str(reference),
        "paired": paired,
        "bootstrap": resampled,
        "correction": "Holm, over the pairs of each metric",
        "warnings": [
            *([NOT_RESAMPLED.format(", ".join(bare))] if bare and bootstrap else []),
            *_resolution(len(sets), draws),
            *_warnings(sets, found, sizes),
        ],
    }
    return {"sets": [one.result for one in found], "comparisons": tested, "protocol": protocol}, found


def _check_paired(sets: Sequence[str | Path], found: Sequence[Evaluation], sizes: Sequence[int | None]) -> None:
    if len(set(sizes)) > 1:
        counts = ", ".join(f"{name} {size}" for name, size in zip(sets, sizes, strict=True))
        raise InputError(f"paired: sets of different sizes ({counts}); sample i of each has to belong to the others'")
    if any(one.generated.features.features is None for one in found):
        raise InputError("paired: a set is statistics alone, which have no samples to pair")


def _drawn(found: Sequence[Evaluation], key: str, draws: int, seed: int, paired: bool) -> list[Tensor] | None:
    """The metric of resamples of each set; None where there are none."""
    if not draws:
        return None
    # Seeds of sets drawn apart are themselves drawn, so that no seed given by hand makes two of them equal.
    apart = torch.randint(2**62, (len(found),), generator=torch.Generator().manual_seed(seed)).tolist()
    together = paired or MEASURES[key].over == "reference"
    return [
        replicates(one.pair, key, draws, seed=seed if together else own) for one, own in zip(found, apart, strict=True)
    ]


def _best(key: str, found: Sequence[Evaluation], values: Sequence[float]) -> int | None:
    """The place of the best; of figures of images, of that nearest to the reference's."""
    direction = MEASURES[key].direction
    if direction is not None:
        return values.index(min(values) if direction == "down" else max(values))
    aim = found[0].result["protocol"]["reference_images"].get(key)
    return None if aim is None else min(range(len(values)), key=lambda place: abs(values[place] - aim))


def _pairs(values: Sequence[float], drawn: Sequence[Tensor] | None, level: float) -> list[dict[str, Any]]:
    rows = []
    for first, second in itertools.combinations(range(len(values)), 2):
        row: dict[str, Any] = {"first": first, "second": second, "difference": values[first] - values[second]}
        if drawn is not None:
            row |= difference(row["difference"], drawn[first] - drawn[second], level)
        rows.append(row)
    if drawn is not None:
        for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row["p_corrected"] = p
    return rows


def _resolution(sets: int, draws: int) -> list[str]:
    """p is at least one over the draws and one, before it is multiplied by the pairs."""
    pairs = sets * (sets - 1) // 2
    if not draws or pairs / (draws + 1) < 0.05:
        return []
    return [
        f"{draws} resamples cannot bring the p-values of {pairs} pairs below 0.05, however different the sets are; "
        f"take at least {20 * pairs}"
    ]


def _warnings(sets: Sequence[str | Path], found: Sequence[Evaluation], sizes: Sequence[int | None]) -> list[str]:
    lines = []
    if len(set(sizes)) > 1:
        counts = ", ".join(f"{name} {'?' if size is None else size}" for name, size in zip(sets, sizes, strict=True))
        lines.append(f"different numbers of samples ({counts}): Frechet distance, recall and coverage depend on them")
    each = [set(one.result["protocol"]["warnings"]) for one in found]
    common = [line for line in found[0].result["protocol"]["warnings"] if all(line in other for other in each)]
    lines += common
    for name, one in zip(sets, found, strict=True):
        lines += [f"{name}: {line}" for line in one.result["protocol"]["warnings"] if line not in common]
    return lines
