"""The Inception Score: how sure a classifier is of each sample, and how many classes the samples are of."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from genflow.errors import InputError, check_flag, check_number

__all__ = ["InceptionSpread", "inception_score"]


@dataclass(frozen=True)
class InceptionSpread:
    """Mean and standard deviation (divided by their number) of the score over ``splits``; between 1 and K classes."""

    mean: float
    std: float
    splits: int


def inception_score(logits: Tensor, *, splits: int = 10, seed: int = 0, shuffle: bool = True) -> InceptionSpread:
    """``exp(E KL(p(y|x) || p(y)))`` over splits of the samples (Salimans et al. 2016, section 4), in float64.

    Any classifier's logits ``(N, K)`` will do, but scores can be compared only where one network made them: what is
    published is of Inception's 1008 logits without bias. The score falls with fewer samples in a split, as ``p(y)`` is
    theirs: 5,000 in the paper.

    The samples are shuffled by ``seed`` first, as torch-fidelity does by a seed of its own (2020, of numpy) and
    torchmetrics without one; the paper's own code does not, and ``shuffle=False`` neither. Splits begin at
    ``i N // splits``, as in the paper's code and torch-fidelity; torchmetrics' differ where N is no multiple of
    ``splits``. The standard deviation divides by ``splits``, as theirs; torchmetrics divides by ``splits - 1``.

    Raises InputError on another shape, NaN, or fewer samples than splits.
    """
    check_number("splits", splits, at_least=1, integer=True)
    check_flag("shuffle", shuffle)
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise InputError(f"logits: got shape {tuple(logits.shape)}; allowed: (N, K)")
    count, splits = len(logits), int(splits)
    if count < splits:
        raise InputError(f"splits: got {splits}; there are {count} samples")
    if not bool(torch.isfinite(logits).all()):
        raise InputError("logits: some are NaN or infinite")
    order = torch.arange(count)
    if shuffle:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    edges = [i * count // splits for i in range(splits + 1)]
    parts = (order[start:stop].to(logits.device) for start, stop in itertools.pairwise(edges))
    scores = torch.stack([_score(logits[part].to(torch.float64)) for part in parts])
    return InceptionSpread(float(scores.mean()), float(scores.std(correction=0)), splits)


def _score(logits: Tensor) -> Tensor:
    """The mean KL divergence as the entropy of the mean less the mean entropy; classes of probability 0 add none."""
    logs = logits.log_softmax(1)
    probabilities = logs.exp()
    mean = probabilities.mean(0)
    return ((probabilities * logs).sum(1).mean() - torch.xlogy(mean, mean).sum()).exp()
