"""What a run leaves behind while it trains: metrics as JSON lines, a loss curve, grids of samples."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from genflow.errors import InputError, check_choice
from genflow.files import atomic_path, write_text
from genflow.images import grid, save_png

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["MetricsLog", "check_trackers", "finish_trackers", "plot_loss", "save_grid"]


class MetricsLog:
    """``metrics.jsonl``: one object a line, in order of steps, no step twice even after an interruption."""

    def __init__(self, path: Path, resume_at: int = 0) -> None:
        """Keep what ``path`` holds up to step ``resume_at``; the run repeats the rest."""
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:  # the line that a kill cut short
                    break
                if row["step"] <= resume_at:
                    self.rows.append(row)
        write_text(path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def append(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")


def check_trackers(names: Sequence[str]) -> None:
    """Raise InputError for a tracker that accelerate does not know, or whose package is missing: it would be silent."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    available = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        check_choice("tracker", name, LOGGER_TYPE_TO_CLASS)
        if name not in available:
            raise InputError(f"tracker: {name!r} is not installed here; pip install {name}")


def finish_trackers(accelerator: "Accelerator") -> None:
    """End what they record; accelerate's ``end_training`` would also part the processes, which may go on together."""
    for tracker in accelerator.trackers:
        tracker.finish()


def plot_loss(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss against images seen, as logged and smoothed, to a PNG."""
    if not rows:
        return
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    images = [row["images"] for row in rows]
    losses = [row["loss"] for row in rows]
    # a centred mean, over as much of it as there is at the two ends: it does not lag behind
    window = np.ones(2 * (len(losses) // 50) + 1)
    smooth = np.convolve(losses, window, "same") / np.convolve(np.ones(len(losses)), window, "same")
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.plot(images, losses, color="0.75", linewidth=0.8, label="as logged")
    axes.plot(images, smooth, color="C0", linewidth=1.5, label="smoothed")
    axes.set(xlabel="images seen", ylabel="loss")
    low, high = min(losses), sorted(losses)[math.floor(0.98 * (len(losses) - 1))]
    if high > low:  # the first losses would flatten the rest
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    if any("batch_size" in row for row in rows):  # one that grows
        sizes = axes.twinx()
        sizes.step(images, [row.get("batch_size") for row in rows], where="post", color="C1", linewidth=1)
        sizes.set_ylabel("batch size", color="C1")
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def save_grid(images: Sequence[Image.Image], path: Path, columns: int) -> None:
    """A sheet of samples to a PNG; small images are enlarged so that a person can see them."""
    save_png(grid(images, columns=columns, zoom=max(1, 64 // images[0].width)), path)
