"""What the figures would have been with other samples of the same kind: each metric of resamples, for intervals.

A metric that is a mean over single samples is taken again as the mean of those drawn; so is a Frechet distance, by its
first derivative (:mod:`genflow.metrics.influence`). The kernel distances of all
resamples come from one pass over blocks of the kernel. Everything else is computed anew for each resample. Recall and
coverage are shares of the reference, so it is the reference's samples that are drawn for them, with the samples' balls
as they are: samples drawn twice would be each other's nearest neighbour, and their balls would have no size.
"""

import torch
from torch import Tensor

from genflow.evaluate.console import progress_bar
from genflow.evaluate.measures import MEASURES
from genflow.evaluate.pair import Pair
from genflow.metrics.resampling import resample_counts, resamples

__all__ = ["replicates"]


def replicates(pair: Pair, key: str, draws: int, *, seed: int = 0) -> Tensor:
    """The metric ``key`` of ``draws`` resamples, float64 ``(draws,)``.

    One ``seed`` draws the same rows of all sets of one size.
    """
    measure = MEASURES[key]
    if measure.each is not None:
        values = measure.each(pair).to("cpu", torch.float64)
        return torch.cat([values[rows].mean(1) for rows in resamples(len(values), draws, seed)])
    if measure.together is not None:
        return measure.together(pair, resample_counts(pair.number, draws, seed))
    found = []
    with progress_bar(f"intervals of {key}", draws, pair.settings.progress) as advance:
        for part in resamples(pair.number, draws, seed):
            for rows in part:
                found.append(measure.again(pair, rows))
                advance(1)
    return torch.tensor(found, dtype=torch.float64)
