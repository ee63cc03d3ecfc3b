"""Confidence intervals of the metrics, from resamples, in the form in which results carry them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from genflow.evaluate.measures import MEASURES
from genflow.evaluate.pair import Pair
from genflow.evaluate.replicates import replicates
from genflow.metrics.resampling import interval_from_draws, p_value_from_draws

__all__ = ["NOT_RESAMPLED", "difference", "interval_of", "intervals", "resampling"]

NOT_RESAMPLED = "{} holds statistics alone, which cannot be resampled: there are no intervals"


def resampling(draws: int, level: float, seed: int) -> dict[str, Any] | None:
    """How intervals were made, for a protocol; None where there are none."""
    if not draws:
        return None
    over = "samples, with replacement, the reference as it is; for recall and coverage the reference's images"
    return {"draws": draws, "level": level, "seed": seed, "resampled": over}


def interval_of(key: str, value: float, draws: Tensor, level: float) -> dict[str, float]:
    """``{"low", "high"}`` about the value, by the scatter of the draws about their mean, within the metric's bounds."""
    found = interval_from_draws(value, draws, level)
    least, most = MEASURES[key].bounds
    return {"low": max(found.low, least), "high": min(found.high, most)}


def difference(value: float, draws: Tensor, level: float) -> dict[str, float]:
    """The same of a difference between two sets, with the two-sided p-value of there being none."""
    found = interval_from_draws(value, draws, level)
    return {"low": found.low, "high": found.high, "p": p_value_from_draws(value, draws)}


def intervals(
    pair: Pair, metrics: Mapping[str, float], draws: int, *, level: float, seed: int
) -> dict[str, dict[str, float]]:
    """An interval for each of the metrics; of statistics alone, which cannot be resampled, none."""
    if not draws or pair.generated.features is None:
        return {}
    return {
        key: interval_of(key, value, replicates(pair, key, draws, seed=seed), level) for key, value in metrics.items()
    }
