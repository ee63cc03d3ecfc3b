"""Which generated samples are copies of training samples: how much nearer the nearest one is than it has cause to be.

A distance alone says little, since some samples have close neighbours everywhere; it is divided by one of three scales:

- ``"second"``: the distance to the second nearest training sample. Below 1/3 a sample is taken for a copy (Yoon et al.
  2023, "Diffusion probabilistic models generalize when they fail to memorize"; also Gu et al. 2023, "On memorization
  in diffusion models").
- ``"mean"``: half the mean distance to the 50 nearest training samples (Carlini et al. 2023, "Extracting training data
  from diffusion models", section 5.1, whose attack ranks samples by this).
- ``"own"``: the nearest training sample's own distance to its nearest other; below 1 the sample is not authentic in the
  sense of Alaa et al. 2022, "How faithful is your synthetic data?".

Training samples that came several times count once: otherwise the second nearest to a copy would be the same image.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genflow.errors import InputError, check_choice, check_number
from genflow.metrics.neighbour_blocks import ALONE, MAX_BYTES, Points, Progress
from genflow.metrics.neighbour_search import check_widths, cross_distances, self_distances
from genflow.processes import Processes

__all__ = ["Memorization", "memorization"]

SCALES = {"second": 2, "mean": 50, "own": 1}
"""How many nearest training samples each scale looks at."""


@dataclass(frozen=True)
class Memorization:
    """How many of M generated samples are copies, and how near each is to being one.

    Attributes:
        share: of the samples whose own ratio is below ``ratio``.
        ratios: ``(M,)`` float64, distance to the nearest training sample over the ``scale``; 0 for an exact copy.
        nearest: ``(M,)`` int64, that training sample, the first of several at one distance.
        distance: ``(M,)`` float64, how far it is, Euclidean.
        ratio: as given.
        scale: as given.
    """

    share: float
    ratios: Tensor
    nearest: Tensor
    distance: Tensor
    ratio: float
    scale: str

    @property
    def copied(self) -> Tensor:
        """``(M,)`` bool: which samples :attr:`share` counts."""
        return self.ratios < self.ratio

    @property
    def exact(self) -> int:
        """Samples whose features are those of a training sample."""
        return int((self.distance == 0).sum())


def memorization(
    train: Tensor,
    generated: Tensor,
    *,
    ratio: float = 1 / 3,
    scale: str = "second",
    max_bytes: int = MAX_BYTES,
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> Memorization:
    """Share of ``generated`` ``(M, D)`` that are copies of ``train`` ``(N, D)``, by nearest-neighbour ratio.

    Args:
        ratio: below which a sample is taken for a copy; 1/3 is Yoon et al.'s for ``scale="second"``.
        scale: what the distance to the nearest is divided by: ``"second"``, ``"mean"`` or ``"own"``, see the module.
        max_bytes: memory for tiles of distances.
        progress: called with rows just done, of ``M`` in all, with ``"own"`` of ``M + N``.
        processes: those that share the work; all must call this with the same features.

    Raises:
        InputError: shapes that do not fit, NaN or infinite features, too few different training samples.
    """
    check_number("ratio", ratio, above=0)
    check_choice("scale", scale, SCALES)
    known, asked = Points.of("train", train, 2), Points.of("generated", generated, 1)
    check_widths("generated", generated, "train", train)
    count = SCALES[scale]
    if len(known) < max(2, count):
        raise InputError(
            f"train: {len(known)} different samples; at least {max(2, count)} are needed for scale {scale!r}"
        )
    work = (max_bytes, progress, processes)
    q, found = cross_distances(asked, known, count, *work)
    distance, nearest = q[:, 0].sqrt(), found[:, 0]
    if scale == "second":
        unit = q[:, 1].sqrt()
    elif scale == "mean":
        unit = q.sqrt().mean(1) / 2
    else:
        distinct = replace(known, weights=torch.ones_like(known.weights))
        unit = self_distances(distinct, (1,), *work)[0].sqrt()[nearest]
    ratios = (distance / unit)[asked.inverse]
    return Memorization(
        share=int((ratios < ratio).sum()) / len(ratios),
        ratios=ratios,
        nearest=known.first[nearest][asked.inverse],
        distance=distance[asked.inverse],
        ratio=ratio,
        scale=scale,
    )
