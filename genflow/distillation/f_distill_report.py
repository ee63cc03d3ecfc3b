"""What an f-distill run says of itself: averages of its losses, the first thing that went wrong, a picture."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genflow.errors import DivergedError, NonFiniteError
from genflow.files import atomic_path

__all__ = ["CollapseWatch", "StepValues", "plot_losses"]

# in the order in which a fault goes from one to the next
_PARTS = {
    "generated": "student",
    "teacher_x0": "teacher",
    "fake_x0": "fake score",
    "student_fake_logit": "discriminator",
    "largest_weight": "discriminator",
    "student_loss": "student",
    "gan_loss": "student",
    "student_norm": "student",
    "fake_loss": "fake score",
    "fake_norm": "fake score",
    "fake_logit": "discriminator",
    "real_logit": "discriminator",
    "saturated": "discriminator",
    "discriminator_loss": "discriminator",
    "r1_loss": "discriminator",
    "discriminator_norm": "discriminator",
}
_HIDDEN = ("generated", "teacher_x0", "fake_x0")  # only there to tell whose fault it is
_SATURATED = 0.99


class StepValues:
    """Scalars of the steps since the last report, left on the device and brought to the host at once."""

    def __init__(self) -> None:
        self._keys: list[tuple[int, str]] = []
        self._values: list[Tensor] = []

    def add(self, step: int, values: dict[str, Tensor]) -> None:
        """Note what step ``step`` (from 1) gave."""
        for name in _PARTS:
            if name in values:
                self._keys.append((step, name))
                self._values.append(values[name].detach().float())

    def take(self, reduce: Callable[[Tensor], Tensor], kept: Path | None) -> dict[str, float]:
        """The mean of each value over the steps and processes, and begin anew.

        ``reduce`` is the mean over processes. Raises NonFiniteError for the first value that is not finite, naming its
        step and whose it is; ``kept`` is the last good checkpoint.
        """
        if not self._keys:
            return {}
        values = reduce(torch.stack(self._values)).tolist()
        means: dict[str, list[float]] = {}
        for (step, name), value in zip(self._keys, values, strict=True):
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"f-distill: the {_PARTS[name]} gave {value} ({name}) at step {step}; the last good checkpoint is "
                    f"{kept or 'none'}"
                )
            means.setdefault(name, []).append(value)
        self._keys, self._values = [], []
        return {name: sum(found) / len(found) for name, found in means.items() if name not in _HIDDEN}


class CollapseWatch:
    """Counts reports in a row in which the discriminator told nothing but certainty.

    Then every sample's ratio stands at a bound of its range: the divergence's weights are all the same or noise, and
    the student's GAN gradient no longer says which way.

    Attributes:
        count: reports in a row so far, for a checkpoint.
    """

    def __init__(self, reports: int, count: int = 0) -> None:
        self.reports, self.count = reports, count

    @property
    def suspects(self) -> bool:
        """Whether the last report was such a one; no checkpoint is to be written then."""
        return self.count > 0

    def look(self, row: dict[str, float], step: int, kept: Path | None) -> None:
        """Take in one report. Raises DivergedError after as many in a row as are borne."""
        if self.reports == 0 or "saturated" not in row:
            return
        self.count = self.count + 1 if row["saturated"] >= _SATURATED else 0
        if self.count >= self.reports:
            raise DivergedError(
                f"f-distill: the discriminator has collapsed at step {step}: for {self.count} reports "
                f"{100 * row['saturated']:.0f} % of its logits have been outside the ratio's range (real "
                f"{row['real_logit']:.1f}, fake {row['fake_logit']:.1f} in the mean), so that they weigh nothing; the "
                f"last good checkpoint is {kept or 'none'}. A lower discriminator_optimizer.lr or gan.r1_weight=100 "
                "may help"
            )


def plot_losses(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Losses, logits and weights over the steps, to a PNG."""
    if not rows:
        return
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    figure = Figure(figsize=(10, 6), dpi=120, layout="constrained")
    panels = {
        "student": ("student_loss", "gan_loss"),
        "fake score": ("fake_loss",),
        "discriminator": ("discriminator_loss", "r1_loss", "saturated"),
        "mean logits": ("real_logit", "fake_logit"),
    }
    for axes, (title, names) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        for name in names:
            chosen = [row for row in rows if name in row]
            if chosen:
                axes.plot([row["step"] for row in chosen], [row[name] for row in chosen], label=name, linewidth=1)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
