"""What every section of a report draws from, and how sections are put together."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from genflow.evaluate.evaluation import Evaluation
from genflow.evaluate.report.html import Child, Markup, element
from genflow.evaluate.report.images import Thumbnails
from genflow.evaluate.report.reopened import with_pictures

__all__ = ["DASH", "View", "absent", "number", "section"]

DASH = "\N{EN DASH}"
"""Where there is no number."""


@dataclass(frozen=True)
class View:
    """One evaluation as the sections see it."""

    evaluation: Evaluation

    @property
    def result(self) -> dict[str, Any]:
        """Figures and protocol."""
        return self.evaluation.result

    @property
    def protocol(self) -> dict[str, Any]:
        """All that the figures depend on."""
        return self.result["protocol"]

    @cached_property
    def generated(self) -> Thumbnails:
        """Pictures of the samples."""
        return Thumbnails(with_pictures(self.evaluation.generated), "sample")

    @cached_property
    def reference(self) -> Thumbnails:
        """Pictures of the reference."""
        return Thumbnails(with_pictures(self.evaluation.reference), "reference image")

    @cached_property
    def train(self) -> Thumbnails | None:
        """Pictures of the training set, where one was given."""
        train = self.evaluation.train
        return None if train is None else Thumbnails(with_pictures(train), "training image")

    @property
    def frechet(self) -> str:
        """What a Frechet distance is called in these features, without their name."""
        return "FID" if {"fid", "fid_infinity", "intra_fid"} & self.result["metrics"].keys() else "FD"

    @property
    def features(self) -> tuple[Tensor, Tensor] | None:
        """Features of the reference and of the samples; None where one side has statistics only."""
        real, generated = self.evaluation.reference.features.features, self.evaluation.generated.features.features
        return None if real is None or generated is None else (real, generated)

    def chosen(self, count: int, among: int | np.ndarray) -> np.ndarray:
        """Up to ``count`` of ``among`` (rows, or as many as there are), ascending; always the same ones."""
        rows = np.arange(among) if isinstance(among, int) else among
        if len(rows) <= count:
            return rows
        return np.sort(np.random.default_rng(0).choice(rows, count, replace=False))


def section(key: str, title: str, *children: Child) -> Markup:
    """A section of the page under its own heading, reachable at ``#key``."""
    heading = element("h2", title, id=f"{key}-title")
    return element("section", heading, *children, id=key, aria_labelledby=f"{key}-title")


def absent(why: str) -> Markup:
    """What stands in a section's place where it cannot be had."""
    return element("p", why, class_="absent")


def number(value: float | None) -> str:
    """A number with four digits, more where it has more before the point; a dash where there is none."""
    if value is None or isinstance(value, int):
        return DASH if value is None else f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 999.95 else f"{value:#.4g}"
