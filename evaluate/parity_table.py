"""The table of figures: theirs, ours, the relative difference, and whether it is within its limit."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

__all__ = ["FILE_LIMIT", "LIMIT", "Row", "difference", "feature_difference", "print_rows"]

LIMIT = 1e-4
"""Relative, between two programs on the same images."""
FILE_LIMIT = 1e-6
"""Relative, between two programs on the same statistics."""


@dataclass(frozen=True)
class Row:
    """One figure of a tool and of ours; ``difference`` is relative to theirs."""

    images: str
    tool: str
    figure: str
    theirs: float
    ours: float
    difference: float
    limit: float = LIMIT

    @classmethod
    def of(cls, images: str, tool: str, figure: str, theirs: float, ours: float, limit: float = LIMIT) -> "Row":
        """A row whose difference is that of the two figures."""
        return cls(images, tool, figure, theirs, ours, difference(theirs, ours), limit)

    @property
    def passed(self) -> bool:
        """Whether the difference is within the limit; NaN is not."""
        return self.difference <= self.limit


def difference(theirs: float, ours: float) -> float:
    """``|ours - theirs| / |theirs|``; 0 where both are equal, infinite where only theirs is 0."""
    if theirs == ours:
        return 0.0
    return abs(ours - theirs) / abs(theirs) if theirs else float("inf")


def feature_difference(theirs: np.ndarray, ours: np.ndarray) -> float:
    """The largest relative distance ``|ours - theirs| / |theirs|`` between one image's feature vectors ``(N, D)``.

    Infinite where the shapes differ.
    """
    if theirs.shape != ours.shape:
        return float("inf")
    theirs, ours = theirs.astype(np.float64), ours.astype(np.float64)
    return float((np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)).max())


def print_rows(rows: Sequence[Row], console: Console | None = None) -> None:
    """One line a figure; what is over its limit is marked."""
    table = Table(title="genflow and the reference tools on the same images and weights; difference relative to theirs")
    for column in ("images", "tool", "figure"):
        table.add_column(column)
    for column in ("theirs", "ours", "difference", "limit"):
        table.add_column(column, justify="right")
    for row in rows:
        mark = "" if row.passed else " OVER"
        figures = (f"{row.theirs:.6g}", f"{row.ours:.6g}", f"{row.difference:.1e}{mark}", f"{row.limit:.0e}")
        table.add_row(row.images, row.tool, row.figure, *figures, style=None if row.passed else "red")
    (console or Console(width=130)).print(table)
