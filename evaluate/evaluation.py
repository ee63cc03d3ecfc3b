"""What an evaluation found out, beyond the figures that it prints: what the report and the comparison draw from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from genflow.evaluate.feature_set import FeatureSet

if TYPE_CHECKING:
    import numpy as np

    from genflow.evaluate.pair import Pair
    from genflow.evaluate.sources import ImageSource
    from genflow.metrics.copies import Memorization
    from genflow.metrics.extrapolation import Extrapolation
    from genflow.metrics.neighbours import NeighbourDetails

__all__ = ["Evaluation", "Side"]


@dataclass(frozen=True)
class Side:
    """Samples, reference or training set: its features, and where its pictures can be read again.

    Attributes:
        features: what is known of the samples; of a statistics file only the statistics.
        source: the pictures; None where there are none, as of a file of features.
    """

    features: FeatureSet
    source: ImageSource | None = None

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.source.names)} if self.source is not None else {}

    def picture(self, row: int) -> np.ndarray | None:
        """The picture of the sample in ``row`` of the features, uint8 ``(H, W, C)``; None where none can be read."""
        names = self.features.names
        place = self._places.get(names[row]) if names is not None else None
        return None if place is None else self.source.read(place)


@dataclass(frozen=True)
class Evaluation:
    """One set of samples against a reference.

    Attributes:
        result: ``{"metrics", "spreads", "intervals", "per_class", "protocol"}``, safe for JSON, as
            :func:`~genflow.evaluate.run.evaluate` returns it.
        generated, reference: both sides; rows of ``neighbours`` are rows of their features.
        neighbours: per-sample results of precision, recall, density, coverage and authenticity; None where none of
            them was asked for.
        extrapolation: of FD-infinity, where that was asked for.
        memorization: nearest training images, where a training set was given and that was asked for.
        train: the training set; None where none was given.
        pair: both sides with what was computed of them; resamples come from it.
    """

    result: dict[str, Any]
    generated: Side
    reference: Side
    neighbours: NeighbourDetails | None = None
    extrapolation: Extrapolation | None = None
    memorization: Memorization | None = None
    train: Side | None = None
    pair: Pair | None = None
