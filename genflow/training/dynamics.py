"""``dynamics.jsonl`` and ``dynamics.png``: sharpness, stability and spectrum of the loss while a network trains."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from genflow.errors import NonFiniteError
from genflow.files import atomic_path
from genflow.optim.dynamics import Spectrum, StabilityMonitor
from genflow.training.batches import mixed_seed
from genflow.training.recipe import Recipe
from genflow.training.records import MetricsLog

__all__ = ["TrainingDynamics", "fixed_batches", "plot_dynamics"]

S = TypeVar("S")
B = TypeVar("B", bound=tuple)

_STREAM = 7  # keeps the images and draws of measurements apart from those of training

_SCALARS = (
    "loss", "sharpness", "preconditioned_sharpness", "threshold", "ratio", "gradient_norm", "batch_sharpness", "trace",
)  # fmt: skip


def fixed_batches(recipe: Recipe, stream: Callable[[int, int, int], S], draw: Callable[[S, int, int], B]) -> list[B]:
    """The micro-batches that are measured on, as many images as the recipe asks for.

    ``stream(seed, size, slots)`` gives what ``draw(stream, step, slot)``, a named tuple of tensors, draws from.
    """
    section = recipe.dynamics
    size = min(section.micro_batch, section.images)
    count = -(-section.images // size)
    source = stream(mixed_seed(recipe.seed, _STREAM) % 2**31, size, count)
    batches = []
    for slot in range(count):
        keep = min(size, section.images - slot * size)
        batch = draw(source, 0, slot)
        batches.append(type(batch)(*(None if part is None else part[:keep] for part in batch)))
    return batches


class TrainingDynamics:
    """Measurements by the recipe's ``dynamics`` section, on images, noise and times that stay the same all run long.

    They are made in float32 and in eval mode, and change nothing of the training: weights, optimizer and random
    numbers stay what they were. Each says what it cost.
    """

    def __init__(
        self,
        recipe: Recipe,
        loss: Callable[[Any], Tensor],
        batches: Sequence[Any],
        network: nn.Module,
        optimizer: Optimizer,
        out: Path,
        resume_at: int = 0,
    ) -> None:
        """Measure ``loss(batch)``, a mean, on ``batches``, whose first entry has a row for each image.

        ``network`` is the bare one, and the one that ``loss`` calls; rows up to step ``resume_at`` are kept.
        """
        section = recipe.dynamics
        self.section, self.network, self.out = section, network, out
        self.loss, self.batches = loss, batches
        self.batch_size = recipe.batch_size
        self.monitor = StabilityMonitor(
            optimizer, steps=section.lanczos_steps, probes=section.probes, seed=recipe.seed % 1000
        )
        self.log = MetricsLog(out / "dynamics.jsonl", resume_at)
        self.seconds = self.log.rows[-1]["total_seconds"] if self.log.rows else 0.0

    def describe(self) -> str:
        """What is measured, and what it may cost."""
        section = self.section
        products = self.monitor.most_products + len(self.batches)
        gradients = products * section.images * (2 if len(self.batches) == 1 else 4)
        return (
            f"dynamics: every {section.every_steps} steps on {section.images} images; a measurement costs at most "
            f"{products} Hessian products, about the gradients of {gradients} images"
        )

    def due(self, step: int, ends: bool) -> bool:
        """Whether to measure after ``step`` steps: every so many, and at the end; each step once."""
        if self.log.rows and self.log.rows[-1]["step"] >= step:
            return False
        return ends or step % self.section.every_steps == 0

    def affordable(self, seconds: float) -> bool:
        """Whether the measurements so far took no more than their share of ``seconds`` of training and of their own."""
        share = self.section.max_share
        return share is None or not self.log.rows or self.seconds <= share * (seconds + self.seconds)

    def measure(self, step: int, seconds: float) -> dict[str, float]:
        """Measure at the present weights; scalars for trackers, none where the network gives NaN or infinity.

        ``seconds`` is what training has taken so far.
        """
        started = time.perf_counter()
        with _plain(self.network):
            try:
                record = self.monitor.measure(
                    self.loss, self.batches, weights=[len(batch[0]) for batch in self.batches], step=step
                )
            except NonFiniteError:  # the training loop says so when it sees the loss
                return {}
        self.seconds += time.perf_counter() - started
        row = record.to_json()
        row["images"] = step * self.batch_size
        row["seconds"], row["total_seconds"] = round(row["seconds"], 3), round(self.seconds, 3)
        row["share"] = round(self.seconds / (seconds + self.seconds), 4)
        self.log.append(row)
        self.plot()
        return {f"dynamics/{key}": row[key] for key in _SCALARS if row[key] is not None}

    def plot(self) -> None:
        """Draw all rows so far to ``dynamics.png``."""
        plot_dynamics(self.log.rows, self.out / "dynamics.png")


@contextlib.contextmanager
def _plain(network: nn.Module) -> Iterator[None]:
    """Eval mode, and the forward pass without the autocast that accelerate puts around it."""
    wrapped = network.__dict__.get("forward")
    training = network.training
    if wrapped is not None and hasattr(network, "_original_forward"):
        network.forward = network._original_forward
    network.eval()
    try:
        yield
    finally:
        network.train(training)
        if wrapped is not None:
            network.forward = wrapped


def plot_dynamics(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Sharpness and threshold, their ratio, trace and batch sharpness, and the newest spectrum, to a PNG."""
    if not rows:
        return
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    figure = Figure(figsize=(10, 7), dpi=120, layout="constrained")
    (top, ratio), (sums, density) = figure.subplots(2, 2)

    def draw(axes: Any, key: str, label: str, style: str, positive: bool = True) -> None:
        chosen = [row for row in rows if row[key] is not None and (row[key] > 0 or not positive)]
        if chosen:
            axes.plot([row["step"] for row in chosen], [row[key] for row in chosen], style, label=label, markersize=3)

    draw(top, "sharpness", "sharpness", "C0o-")
    draw(top, "preconditioned_sharpness", "preconditioned", "C1o-")
    draw(top, "threshold", "threshold", "k--")
    top.set(title="largest eigenvalue of the Hessian", yscale="log")
    draw(ratio, "ratio", "ratio", "C2o-", positive=False)
    ratio.axhline(1.0, color="k", linestyle="--", linewidth=1)
    ratio.set(title="ratio to what the optimizer bears; unstable above 1", ylim=(0, None))
    draw(sums, "batch_sharpness", "batch sharpness", "C3o-")
    draw(sums, "trace", "trace", "C4o-")
    draw(sums, "gradient_norm", "gradient norm", "C5o-")
    sums.set(title="trace and gradient", yscale="log")
    for axes in (top, ratio, sums):
        axes.set_xlabel("step")
        if axes.lines and axes is not ratio:
            axes.legend(frameon=False)
    for row in (next((row for row in rows if row["spectrum"]), None), rows[-1]):
        if row and row["spectrum"]:
            _draw_density(density, Spectrum.from_json(row["spectrum"]), f"step {row['step']}")
    density.set(title="density of the Hessian's spectrum", xlabel="eigenvalue", yscale="log")
    if density.lines:
        density.legend(frameon=False)
    for axes in (top, ratio, sums, density):
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _draw_density(axes: Any, spectrum: Spectrum, label: str) -> None:
    extent = max(spectrum.largest - spectrum.smallest, 1e-12)
    grid = torch.linspace(spectrum.smallest - 0.05 * extent, spectrum.largest + 0.05 * extent, 600)
    density = spectrum.density(grid, 0.01 * extent)
    # a tenth of what a single eigenvalue adds: less is the tail of a curve
    floor = 0.1 / (spectrum.size * 0.01 * extent)
    axes.plot(grid.tolist(), density.masked_fill(density < floor, math.nan).tolist(), label=label)
