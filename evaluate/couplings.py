"""What couplings do to flow matching on a mixture in the plane: straightness, few-step errors, and leaking labels.

``python -m genflow.evaluate.couplings [--steps 1500] [--batch-size 256] [--seed 0] [--json FILE] [--plot FILE]``. Small
networks learn one mixture of eight Gaussians on a ring, each from batches of one coupling: first without labels, then
with two classes, the ring's upper and lower half, coupled class by class or as a whole.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from genflow.errors import check_number
from genflow.evaluate.console import progress_bar, run
from genflow.files import atomic_path, check_output_files, write_json
from genflow.models import from_function
from genflow.models.base import PathModel
from genflow.paths import LinearPath
from genflow.sampling import sample, time_grid
from genflow.training.batches import mixed_seed
from genflow.training.objectives import create_objective
from genflow.trajectory import Trajectory, sample_trajectory
from genflow.transport import create_coupling, wasserstein

__all__ = ["CONDITIONAL", "PLAIN", "Outcome", "Setting", "class_means", "mixture", "study", "train"]

PATH = LinearPath()
MODES, RADIUS, SPREAD = 8, 3.0, 0.3
EULER_STEPS = (1, 2, 4)
FINE_STEPS = 40


@dataclass(frozen=True)
class Setting:
    """One network's training: which coupling, and whether the network sees the class."""

    name: str
    coupling: str
    options: dict[str, Any] = field(default_factory=dict)
    conditional: bool = False


PLAIN = (
    Setting("independent", "independent"),
    Setting("exact", "exact"),
    Setting("sinkhorn-newton", "sinkhorn-newton"),
)
CONDITIONAL = (
    Setting("independent, labels", "independent", conditional=True),
    Setting("exact by class, labels", "exact", conditional=True),
    Setting("exact over all, labels", "exact", {"class_wise": False}, conditional=True),
)


@dataclass(frozen=True)
class Outcome:
    """What became of one setting.

    Attributes:
        name: the setting's.
        straightness: of the trajectories, see :func:`genflow.metrics.measure_straightness`.
        cost: ``E |noise - sample|^2`` of the flow.
        errors: by Euler steps, root mean square distance from where the flow itself leads from the same noise.
        distances: by Euler steps, and 0 for the flow itself, Wasserstein-2 to fresh data; with labels, the larger of
            the classes' distances.
        leak: length of the noise's mean given the class in training pairs, the larger one; 0 where nothing leaks.
        seconds: spent training.
        trajectory: states of the flow, ``(N + 1, B, 2)``.
        classes: asked for, ``(B,)``; without labels those of the data, which the flow did not see.
    """

    name: str
    straightness: float
    cost: float
    errors: dict[int, float]
    distances: dict[int, float]
    leak: float
    seconds: float
    trajectory: Tensor = field(repr=False)
    classes: Tensor = field(repr=False)


def mixture(count: int, generator: torch.Generator, even: bool = False) -> tuple[Tensor, Tensor]:
    """Points ``(count, 2)`` of the ring, and classes ``(count,)``: 0 for its upper half and 1 for its lower.

    ``even``: as many of every Gaussian, where chance would make most of the difference between two samples.
    """
    mode = torch.arange(count) % MODES if even else torch.randint(MODES, (count,), generator=generator)
    angle = (mode + 0.5) * (2 * math.pi / MODES)
    centre = RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)
    return centre + SPREAD * torch.randn(count, 2, generator=generator), (mode >= MODES // 2).long()


class Velocity(nn.Module):
    """A perceptron of three hidden layers on the state, a few waves of the time, and the class or zeros."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (2 + 5 + 2, width, width):
            layers += [nn.Linear(inputs, width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, x: Tensor, t: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        t = torch.as_tensor(t, dtype=x.dtype).expand(len(x))[:, None]
        waves = torch.cat([t, *(f(k * math.pi * t) for k in (1, 2) for f in (torch.cos, torch.sin))], dim=1)
        hot = x.new_zeros(len(x), 2) if class_labels is None else nn.functional.one_hot(class_labels, 2).to(x.dtype)
        return self.layers(torch.cat([x, waves, hot], dim=1))


def _conditioning(setting: Setting, classes: Tensor) -> dict[str, Tensor]:
    return {"class_labels": classes} if setting.conditional else {}


def train(
    setting: Setting, steps: int, batch_size: int, seed: int = 0, advance: Callable[[int], None] = lambda _: None
) -> PathModel:
    """A network trained on fresh batches of the mixture: Adam, its rate falling to 0 along a cosine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mixed_seed(seed))
        network = Velocity()
    model = from_function(network, PATH, "flow_prediction")
    objective = create_objective("velocity", PATH, "uniform")
    coupling = create_coupling(setting.coupling, **setting.options)
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(mixed_seed(seed, 1))
    for _ in range(steps):
        x0, classes = mixture(batch_size, generator)
        noise = objective.draw_noise(x0, generator)
        t = objective.draw_times(batch_size, generator)
        x0, noise, _ = coupling.pair(x0, noise, generator, classes if setting.conditional else None)
        loss = objective.loss(model, x0, noise, t, **_conditioning(setting, classes)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        advance(1)
    return model


def class_means(setting: Setting, batch_size: int, batches: int, seed: int = 0) -> Tensor:
    """The noise's mean given the class ``(2, 2)`` in the pairs that a setting trains on, over ``batches`` of them."""
    coupling = create_coupling(setting.coupling, **setting.options)
    generator = torch.Generator().manual_seed(mixed_seed(seed, 2))
    sums, counts = torch.zeros(2, 2), torch.zeros(2)
    for _ in range(batches):
        x0, classes = mixture(batch_size, generator)
        noise = torch.randn(x0.shape, generator=generator)
        _, noise, _ = coupling.pair(x0, noise, generator, classes if setting.conditional else None)
        sums.index_add_(0, classes, noise)
        counts += classes.bincount(minlength=2)
    return sums / counts[:, None]


def _measure(
    setting: Setting, model: PathModel, count: int, seed: int
) -> tuple[Trajectory, Tensor, dict[int, float], dict[int, float]]:
    generator = torch.Generator().manual_seed(mixed_seed(seed, 3))
    fresh, classes = mixture(count, generator, even=True)
    noise = torch.randn(count, 2, generator=generator)
    given = _conditioning(setting, classes)
    flow = sample_trajectory(model, noise, time_grid(PATH, FINE_STEPS), "heun", **given)
    ends = {k: sample(model, noise, time_grid(PATH, k), "euler", **given) for k in EULER_STEPS}
    errors = {k: float((x - flow.x).square().sum(1).mean().sqrt()) for k, x in ends.items()}
    parts = [classes == c for c in (0, 1)] if setting.conditional else [slice(None)]
    distances = {k: max(wasserstein(x[part], fresh[part]) for part in parts) for k, x in {0: flow.x, **ends}.items()}
    return flow, classes, errors, distances


def study(
    setting: Setting,
    steps: int = 1500,
    batch_size: int = 256,
    seed: int = 0,
    samples: int = 1000,
    advance: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Train by ``setting`` and measure the flow; ``advance`` is called with every step done."""
    begun = time.perf_counter()
    model = train(setting, steps, batch_size, seed, advance)
    seconds = time.perf_counter() - begun
    flow, classes, errors, distances = _measure(setting, model, samples, seed)
    return Outcome(
        name=setting.name,
        straightness=flow.straightness().straightness,
        cost=float((flow.states[0] - flow.states[-1]).square().sum(1).mean()),
        errors=errors,
        distances=distances,
        leak=float(class_means(setting, batch_size, 20, seed).norm(dim=1).max()),
        seconds=seconds,
        trajectory=flow.states,
        classes=classes,
    )


def draw(outcomes: list[Outcome], path: Path) -> None:
    """Trajectories of every setting, ends coloured by the class asked for; below, errors against Euler steps."""
    from matplotlib.figure import Figure

    columns = max(3, len(outcomes))
    figure = Figure(figsize=(2.7 * columns, 6.2), dpi=110, layout="constrained")
    grid = figure.add_gridspec(2, columns)
    for column, outcome in enumerate(outcomes):
        axes = figure.add_subplot(grid[0, column], aspect="equal", xlim=(-4.5, 4.5), ylim=(-4.5, 4.5))
        states = outcome.trajectory[:, :200].numpy()
        axes.plot(states[..., 0], states[..., 1], color="0.6", linewidth=0.4)
        axes.scatter(*states[0].T, s=4, color="0.2", linewidths=0)
        colours = ["tab:blue", "tab:orange"] if outcome.name.endswith("labels") else ["tab:blue"] * 2
        axes.scatter(*states[-1].T, s=6, c=[colours[c] for c in outcome.classes[:200].tolist()], linewidths=0)
        axes.set_title(f"{outcome.name}\nstraightness {outcome.straightness:.3f}", fontsize=8)
        axes.set(xticks=[], yticks=[])
    half = columns // 2
    panels = (
        ("errors", "distance from the flow's own end", figure.add_subplot(grid[1, :half])),
        ("distances", "Wasserstein-2 to the data", figure.add_subplot(grid[1, half:])),
    )
    for kind, label, axes in panels:
        for outcome in outcomes:
            values = [getattr(outcome, kind)[k] for k in EULER_STEPS]
            axes.plot(EULER_STEPS, values, "o-", markersize=4, label=outcome.name)
        axes.set(xscale="log", yscale="log", xlabel="Euler steps", ylabel=label)
        axes.set_xticks(EULER_STEPS, [str(k) for k in EULER_STEPS])
        axes.minorticks_off()
        axes.set_ylim(top=2 * max(getattr(outcome, kind)[k] for outcome in outcomes for k in EULER_STEPS))
        axes.grid(alpha=0.3)
    panels[1][2].legend(frameon=False, fontsize=7, ncols=2, loc="upper right")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png")


def _sampling_floor(samples: int, seed: int) -> float:
    """Wasserstein-2 of the mixture itself to what flows are measured against, the mean of four samples."""
    generator = torch.Generator().manual_seed(mixed_seed(seed, 4))
    draws = [(mixture(samples, generator)[0], mixture(samples, generator, even=True)[0]) for _ in range(4)]
    return sum(wasserstein(*pair) for pair in draws) / len(draws)


def _row(outcome: Outcome) -> list[str]:
    groups = ([outcome.straightness], outcome.errors.values(), outcome.distances.values(), [outcome.leak])
    return [outcome.name, *(" ".join(f"{figure:.2f}" for figure in figures) for figures in groups)]


def main(
    steps: Annotated[int, typer.Option(help="Training steps of each network.")] = 1500,
    batch_size: Annotated[int, typer.Option(help="Points in a batch.")] = 256,
    samples: Annotated[int, typer.Option(help="Points that are measured on.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of weights, batches and measurements.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers here.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw trajectories and errors here.")] = None,
) -> None:
    """Train flows on a mixture in the plane with different couplings and measure them."""
    check_output_files(json=json_file, plot=plot)
    check_number("steps", steps, at_least=1, integer=True)
    check_number("batch-size", batch_size, at_least=2, integer=True)
    check_number("samples", samples, at_least=20, integer=True)
    check_number("seed", seed, at_least=0, integer=True)
    settings = (*PLAIN, *CONDITIONAL)
    with progress_bar("training", steps * len(settings)) as advance:
        outcomes = [study(setting, steps, batch_size, seed, samples, advance) for setting in settings]
    floor = _sampling_floor(samples, seed)
    table = Table(title=f"{steps} steps of {batch_size}; W2 of the mixture's own samples: {floor:.2f}")
    table.add_column("coupling", no_wrap=True)
    for head in ("not straight", "error in 1, 2, 4 steps", "W2 of the flow, in 1, 2, 4 steps", "leak"):
        table.add_column(head, justify="right")
    for outcome in outcomes:
        table.add_row(*_row(outcome))
    Console().print(table)
    if json_file is not None:
        rows = [
            {k: v for k, v in asdict(outcome).items() if k not in ("trajectory", "classes")} for outcome in outcomes
        ]
        write_json(json_file, {"steps": steps, "batch_size": batch_size, "samples": samples, "seed": seed,
                               "floor": floor, "torch": str(torch.__version__), "outcomes": rows})  # fmt: skip
    if plot is not None:
        draw(outcomes, plot)


if __name__ == "__main__":
    run(main)
