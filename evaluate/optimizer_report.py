"""What ``python -m genflow.evaluate.optimizers`` prints and draws."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from genflow.files import atomic_path

__all__ = ["draw_finding", "draw_losses", "losses_table"]

_FIGURES: dict[str, tuple[str, float, str]] = {
    "train_loss": ("training loss", 1, ".4f"),
    "held_out_loss": ("held-out loss", 1, ".4f"),
    "fd": ("FD", 1, ".4f"),
    "accuracy": ("accuracy", 1, ".3f"),
    "seconds_per_step": ("ms a step", 1e3, ".1f"),
    "state_bytes": ("state, MB", 1e-6, ".2f"),
}
"""Of a row: heading, factor, format."""


def _by_optimizer(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    names = dict.fromkeys(row["optimizer"] for row in rows)
    for name in names:
        yield name, [row for row in rows if row["optimizer"] == name]


def _cell(values: Sequence[float], factor: float, form: str) -> str:
    mean = format(factor * statistics.fmean(values), form)
    return mean if len(values) == 1 else f"{mean} ± {format(factor * statistics.stdev(values), form)}"


def losses_table(rows: Sequence[dict[str, Any]]) -> str:
    """A markdown table, an optimizer a line; with several seeds their mean and standard deviation."""
    keys = [key for key in _FIGURES if any(key in row for row in rows)]
    lines = ["| optimizer | lr | lr tried (loss) | decay | " + " | ".join(_FIGURES[key][0] for key in keys) + " |"]
    lines.append("| --- | ---: | --- | ---: |" + " ---: |" * len(keys))
    for name, mine in _by_optimizer(rows):
        first = mine[0]
        tried = ", ".join(
            f"{lr} ({'diverged' if loss is None else f'{loss:.4f}'})" for lr, loss in first["search"].items()
        )
        cells = [name, f"{first['lr']:g}", tried or "none", f"{first['weight_decay']:g}"]
        for key in keys:
            values = [row[key] for row in mine if key in row]
            text = _cell(values, *_FIGURES[key][1:]) if values else ""
            cells.append(text if len(values) == len(mine) else f"{text} (diverged: {len(mine) - len(values)})".strip())
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _figure(path: Path, size: tuple[float, float], fill: Callable[[Any], None]) -> None:
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    figure = Figure(figsize=size, dpi=120, layout="constrained")
    fill(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def draw_losses(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Training loss over updates, smoothed, and what each run ends in: held-out loss against FD, to a PNG."""

    def fill(figure: Any) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for name, mine in _by_optimizer(rows):
            curves = [row["losses"] for row in mine if "losses" in row]
            if not curves:
                continue
            steps = [step for step, _ in curves[0]]
            means = [statistics.fmean(values) for values in zip(*([v for _, v in curve] for curve in curves))]  # noqa: B905
            wide = max(1, len(means) // 25)
            smooth = [statistics.fmean(means[max(0, i - wide) : i + wide + 1]) for i in range(len(means))]
            (line,) = left.plot(steps[: len(smooth)], smooth, label=name, linewidth=1.2)
            points = [(row["held_out_loss"], row["fd"]) for row in mine if "fd" in row]
            if points:
                right.plot(*zip(*points, strict=True), "o", color=line.get_color())
                right.annotate(name, points[0], xytext=(4, 4), textcoords="offset points", fontsize=7)
            ends.append(smooth)
        if ends:
            low = min(min(smooth) for smooth in ends)
            high = sorted(value for smooth in ends for value in smooth[len(smooth) // 10 :])
            left.set_ylim(0.98 * low, 1.05 * high[int(0.95 * (len(high) - 1))])
        left.set(xlabel="updates", ylabel="training loss")
        if left.lines:
            left.legend(frameon=False, fontsize=7)
        right.set(xlabel="held-out loss", ylabel="FD")
        right.margins(0.2)
        for axes in (left, right):
            axes.grid(alpha=0.3)

    ends: list[list[float]] = []
    _figure(path, (11, 4.5), fill)


def draw_finding(name: str, found: dict[str, Any], path: Path) -> None:
    """The panel of a claim's finding, with what it shows as the title, to a PNG."""

    def fill(figure: Any) -> None:
        axes, panel = figure.subplots(), found["panel"]
        for index, (label, (x, y)) in enumerate(panel["lines"].items()):
            values = [float("nan") if value is None else value for value in y]
            style = "-" if index < 10 else "--"  # there are ten colours
            axes.plot(x, values, style, label=label, linewidth=1.2)
        if panel["level"] is not None:
            axes.axhline(panel["level"], color="k", linestyle="--", linewidth=1)
        for axis in panel["log"]:
            axes.set(**{f"{axis}scale": "log"})
        verdict = "holds" if found["holds"] else "does not hold"
        axes.set_title(f"{name} ({verdict}): {found['figure']}", fontsize=8, wrap=True)
        axes.set(xlabel=panel["x"], ylabel=panel["y"])
        axes.legend(frameon=False, fontsize=8)
        axes.grid(alpha=0.3)

    _figure(path, (7, 4.5), fill)
