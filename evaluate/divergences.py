"""What each f-divergence makes of a student that cannot be right: ``python -m genflow.evaluate.divergences``.

The teacher is a mixture of five narrow modes on a ring in two dimensions, the student one of three, moved by the losses
of :mod:`genflow.distillation` with exact scores and density ratios. A student that covers all modes must put mass
between them; one that stays inside modes must drop some. Which of the two comes out is the divergence's choice.
About 40 seconds of one core.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from genflow.distillation import DIVERGENCES, DensityRatio, Divergence, student_loss
from genflow.errors import check_choice, check_number
from genflow.evaluate.console import progress_bar, run
from genflow.files import atomic_path, check_output_files, write_json
from genflow.models import PathModel, from_function
from genflow.paths import LinearPath, Path

__all__ = [
    "Mixture",
    "MixtureStudent",
    "distil",
    "divergence_values",
    "draw",
    "mass_in_modes",
    "measure",
    "modes_covered",
    "ring",
]

LEVELS = (0.1, 0.5)  # noise levels that the student is trained at


@dataclass(frozen=True)
class Mixture:
    """Gaussians of diagonal covariance, exact at every time of every Gaussian path.

    Attributes:
        means, stds: (K, d).
        weights: (K,), positive, of sum 1.
    """

    means: Tensor
    stds: Tensor
    weights: Tensor

    def _terms(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Offsets and variances (B, K, d), and log-joints of component and x (B, K)."""
        alpha, sigma = alpha.reshape(-1, 1, 1), sigma.reshape(-1, 1, 1)
        variance = (alpha * self.stds).square() + sigma.square()
        offset = x[:, None] - alpha * self.means
        log_normal = -(offset.square() / variance + variance.log() + math.log(2 * math.pi)).sum(-1) / 2
        return offset, variance, log_normal + self.weights.log()

    def log_prob(self, x: Tensor, path: Path, t: Tensor) -> Tensor:
        """Log-density (B,) of ``alpha x0 + sigma eps`` at ``x`` (B, d) and times ``t`` (B,), or () for all."""
        return torch.logsumexp(self._terms(x, path.alpha(t), path.sigma(t))[2], dim=-1)

    def model(self, path: Path) -> PathModel:
        """The exact posterior mean of x0 on ``path``."""

        def posterior_mean(x: Tensor, t: Tensor, **_: Any) -> Tensor:
            alpha = path.alpha(t)
            offset, variance, log_joint = self._terms(x, alpha, path.sigma(t))
            gain = alpha.reshape(-1, 1, 1) * self.stds.square() / variance
            return (log_joint.softmax(-1)[..., None] * (self.means + gain * offset)).sum(1)

        return from_function(posterior_mean, path, "sample")


class MixtureStudent(nn.Module):
    """A generator of known density: of K equal parts, each moves and stretches its own normal noise."""

    def __init__(self, means: Tensor, std: float) -> None:
        super().__init__()
        self.means = nn.Parameter(means.clone())
        self.log_stds = nn.Parameter(torch.full_like(means, math.log(std)))

    def forward(self, part: Tensor, noise: Tensor) -> Tensor:
        """Samples (B, d) from the parts' indices (B,) and noise (B, d)."""
        return self.means[part] + self.log_stds.exp()[part] * noise

    @property
    def density(self) -> Mixture:
        """What the samples are distributed by, with its graph."""
        parts = len(self.means)
        return Mixture(self.means, self.log_stds.exp(), self.means.new_full((parts,), 1 / parts))


def ring(modes: int = 5, radius: float = 3.0, std: float = 0.3) -> Mixture:
    """Equal modes on a circle."""
    angles = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
    means = radius * torch.stack([angles.cos(), angles.sin()], dim=1)
    return Mixture(means, torch.full_like(means, std), torch.full((modes,), 1 / modes, dtype=torch.float64))


def _grid(side: float = 7.0, points: int = 211) -> tuple[Tensor, float]:
    line = torch.linspace(-side, side, points, dtype=torch.float64)
    return torch.cartesian_prod(line, line), (2 * side / (points - 1)) ** 2


def _masses(*mixtures: Mixture) -> tuple[Tensor, list[Tensor]]:
    """Points of a grid and each mixture's mass at them, without noise."""
    x, area = _grid()
    data = torch.zeros((), dtype=torch.float64)
    return x, [mixture.log_prob(x, LinearPath(), data).exp() * area for mixture in mixtures]


def divergence_values(teacher: Mixture, student: Mixture, level: float = LEVELS[0]) -> dict[str, float]:
    """``E_q[f(p / q)]`` of every named divergence in two dimensions at a noise level, by sums over a grid.

    Neyman's is left out: the least of q outside the modes makes it as large as numbers are.
    """
    x, area = _grid()
    path = LinearPath()
    t = torch.tensor(path.time(level), dtype=torch.float64)
    log_p, log_q = teacher.log_prob(x, path, t), student.log_prob(x, path, t)
    inside = log_q > -600  # beyond, q is 0 to the last bit and its share of the sum too
    ratio, mass = (log_p - log_q)[inside].clamp(-300, 300).exp(), log_q[inside].exp() * area
    return {name: float((mass * d.f(ratio)).sum()) for name, d in DIVERGENCES.items() if name != "neyman"}


def modes_covered(teacher: Mixture, student: Mixture, share: float = 0.25) -> int:
    """Modes that get at least ``share`` of the mass that the teacher gives them; x belongs to the nearest mode."""
    x, masses = _masses(teacher, student)
    nearest = torch.cdist(x, teacher.means).argmin(1)
    p, q = (torch.bincount(nearest, weights=mass, minlength=len(teacher.means)) for mass in masses)
    return int((q >= share * p).sum())


def mass_in_modes(teacher: Mixture, student: Mixture) -> float:
    """The student's mass within 2.5 standard deviations of any of the teacher's modes (the teacher's own: 0.956)."""
    x, masses = _masses(teacher, student)
    distance = ((x[:, None] - teacher.means) / teacher.stds).square().sum(-1)
    return float(masses[1][distance.amin(1) < 2.5**2].sum())


def distil(
    divergence: Divergence, teacher: Mixture, *, parts: int = 3, steps: int = 600, batch: int = 512, seed: int = 0
) -> MixtureStudent:
    """Train a student of ``parts`` by f-distill's own losses, with exact fake score and density ratio at every step."""
    generator = torch.Generator().manual_seed(seed)
    path = LinearPath()
    start = torch.randn(parts, 2, generator=generator, dtype=torch.float64)
    student = MixtureStudent(start, 0.7)
    ratios = DensityRatio(*LEVELS)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02, betas=(0.0, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    low, high = (math.log(level) for level in LEVELS)
    for _ in range(steps):
        part = torch.randint(parts, (batch,), generator=generator)
        noise, eps = torch.randn(2, batch, 2, generator=generator, dtype=torch.float64)
        levels = torch.exp(low + (high - low) * torch.rand(batch, generator=generator, dtype=torch.float64))
        t = path.time(levels)
        generated = student(part, noise)
        with torch.no_grad():
            x = path.perturb(generated, eps, t)
            fake = student.density
            logits = teacher.log_prob(x, path, t) - fake.log_prob(x, path, t)
            h = ratios.weights(divergence, logits, levels)
            real_x0, fake_x0 = (mixture.model(path).predict(x, t).x0 for mixture in (teacher, fake))
        optimizer.zero_grad()
        student_loss(generated, real_x0, fake_x0, h).mean().backward()
        optimizer.step()
        schedule.step()
    return student


@torch.no_grad()
def _describe(teacher: Mixture, student: Mixture) -> dict[str, Any]:
    return {
        "modes": modes_covered(teacher, student),
        "inside": mass_in_modes(teacher, student),
        "divergences": divergence_values(teacher, student),
        "means": student.means.tolist(),
        "stds": student.stds.tolist(),
    }


def measure(names: Sequence[str] | None = None, seeds: int = 3, steps: int = 600) -> dict[str, list[dict[str, Any]]]:
    """Students of each divergence (all by default), one for each of ``seeds`` starts.

    Each is JSON-safe: ``modes`` covered of five, the mass ``inside`` modes, the ``divergences`` from the teacher at the
    lowest noise level of training, and the student's ``means`` and ``stds``. Raises InputError for an unknown name.
    """
    names = [check_choice("divergence", name, DIVERGENCES) for name in names or DIVERGENCES]
    check_number("seeds", seeds, at_least=1, integer=True)
    check_number("steps", steps, at_least=1, integer=True)
    teacher = ring()
    found: dict[str, list[dict[str, Any]]] = {}
    with progress_bar("students", len(names) * seeds) as advance:
        for name in names:
            found[name] = []
            for seed in range(seeds):
                student = distil(DIVERGENCES[name], teacher, steps=steps, seed=seed)
                found[name].append(_describe(teacher, student.density))
                advance(1)
    return found


def draw(results: dict[str, list[dict[str, Any]]], path: FilePath) -> None:
    """A panel for each divergence: the teacher's modes, and samples of the first student."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.1 * len(results), 2.5), layout="constrained")
    FigureCanvasAgg(figure)
    teacher = ring()
    generator = torch.Generator().manual_seed(0)
    for axes, (name, students) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        means, stds = (torch.tensor(students[0][key], dtype=torch.float64) for key in ("means", "stds"))
        part = torch.randint(len(means), (1500,), generator=generator)
        x = means[part] + stds[part] * torch.randn(1500, 2, generator=generator, dtype=torch.float64)
        axes.scatter(*x.T.tolist(), s=1, color="tab:orange", linewidths=0)
        axes.scatter(*teacher.means.T.tolist(), s=60, facecolors="none", edgecolors="tab:blue")
        axes.set(title=f"{name}\n{students[0]['modes']} of {len(teacher.means)} modes", xlim=(-5, 5), ylim=(-5, 5))
        axes.set(xticks=[], yticks=[], aspect="equal")
        axes.title.set_fontsize(8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(DIVERGENCES)}; all by default.")] = None,
    seeds: Annotated[int, typer.Option(help="Students of each, from different starts.")] = 3,
    json_file: Annotated[FilePath | None, typer.Option("--json", help="Write all numbers here.")] = None,
    plot: Annotated[FilePath | None, typer.Option("--plot", help="Draw the students here.")] = None,
) -> None:
    """Distil a mixture into a student that cannot be right, by each f-divergence; means over the starts."""
    check_output_files(json=json_file, plot=plot)
    results = measure(names, seeds)
    shown = ("reverse-kl", "js", "forward-kl")
    print(f"{'trained by':20}  {'modes':>5}  {'inside':>6}  " + "  ".join(f"{name:>10}" for name in shown))
    for name, students in results.items():
        columns = [[s["modes"] for s in students], [s["inside"] for s in students]]
        columns += [[s["divergences"][key] for s in students] for key in shown]
        modes, inside, *values = (sum(column) / len(column) for column in columns)
        print(f"{name:20}  {modes:5.1f}  {inside:6.2f}  " + "  ".join(f"{value:10.3f}" for value in values))
    if json_file is not None:
        write_json(json_file, results)
    if plot is not None:
        draw(results, plot)


if __name__ == "__main__":
    run(main)
