"""What :mod:`genflow.optim.dynamics` claims, measured on small networks: ``python -m genflow.evaluate.dynamics``.

Five experiments, about two minutes on one core in all:

* edge: in full batches SGD trains at a sharpness of 2/lr and Adam at a preconditioned one of 38/lr;
* spectrum: Lanczos quadrature against the exact spectrum of a network's Hessian;
* batches: the largest eigenvalue of batch Hessians over batch sizes, against the law through two of them;
* rules: the loss after a learning rate was carried to a 16 times larger batch by the linear and the square-root rule;
* gradsign: scores before training against the loss after it, over 24 networks of many sizes and 24 of one size.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from scipy.stats import spearmanr
from torch import Tensor, nn

from genflow.errors import check_choice
from genflow.evaluate.console import run
from genflow.files import atomic_path, check_output_files, write_json
from genflow.optim.dynamics import (
    BatchSharpness,
    Hessian,
    StabilityMonitor,
    measure_batches,
    rank_networks,
    scale_lr,
    slq,
)

__all__ = ["EXPERIMENTS", "draw", "measure"]

Claims = dict[str, Any]


def _mlp(*sizes: int, activation: Callable[[], nn.Module] = nn.Tanh, norm: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(fan_in, fan_out), *([nn.LayerNorm(fan_out)] if norm else []), activation()]
    return nn.Sequential(*layers, nn.Linear(*sizes[-2:]))


def _fit_curve(
    optimizer: type[torch.optim.Optimizer], lr: float, steps: int, every: int
) -> dict[str, list[float | None]]:
    """Full-batch training of a small regression; the monitor's numbers every ``every`` steps."""
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 24)[:, None]
    y = torch.sin(4 * x) + 0.5 * torch.sign(x)
    network = _mlp(1, 24, 24, 1)

    def loss() -> Tensor:
        return F.mse_loss(network(x), y)

    stepper = optimizer(network.parameters(), lr=lr)  # type: ignore[call-arg]
    monitor = StabilityMonitor(stepper, steps=15, batches=False)
    for step in range(steps + 1):
        if step and step % every == 0:
            monitor.measure(loss, step=step)
        stepper.zero_grad()
        loss().backward()
        stepper.step()
    keys = ("step", "ratio", "sharpness", "threshold", "loss")
    return {key: [getattr(record, key) for record in monitor.records] for key in keys}


def edge(quick: bool = False) -> Claims:
    """Training at the edge of stability (arXiv 2103.00065, 2207.14484)."""
    steps = 100 if quick else 2000
    curves = {f"SGD, lr {lr:g}": _fit_curve(torch.optim.SGD, lr, steps, steps // 20) for lr in (0.1, 0.2)}
    curves["Adam, lr 0.005"] = _fit_curve(torch.optim.Adam, 0.005, 2 * steps, steps // 10)
    ends = {name: curve["ratio"][-8:] for name, curve in curves.items()}
    return {
        "curves": curves,
        "mean ratio at the end": {name: sum(values) / len(values) for name, values in ends.items()},
        "holds": all(0.8 < ratio < 1.2 for values in ends.values() for ratio in values),
    }


def spectrum() -> Claims:
    """Density of a classifier's Hessian by quadrature and by torch.linalg.eigvalsh."""
    torch.manual_seed(0)
    x = torch.randn(256, 10).double()
    y = (x @ torch.randn(10, 4).double() + torch.randn(256, 4)).argmax(1)
    network = _mlp(10, 16, 4).double()
    hessian = Hessian(lambda: F.cross_entropy(network(x), y), network.parameters())
    exact = torch.linalg.eigvalsh(hessian.dense())
    found = slq(hessian, steps=30, probes=30, generator=torch.Generator().manual_seed(0))
    extent = float(exact[-1] - exact[0])
    grid = torch.linspace(float(exact[0]) - 0.1 * extent, float(exact[-1]) + 0.1 * extent, 801).double()
    width = 0.02 * extent
    kernel = (-((grid[:, None] - exact) / width).square() / 2).exp() / (width * (2 * torch.pi) ** 0.5)
    truth, estimate = kernel.mean(1), found.density(grid, width)
    difference = float((truth - estimate).abs().sum() * (grid[1] - grid[0]))
    return {
        "parameters": hessian.size,
        "products": found.products,
        "largest eigenvalue": [found.largest, float(exact[-1])],
        "trace": [found.trace().value, found.trace().error, float(exact.sum())],
        "L1 distance of the densities": difference,
        "density": [grid.tolist(), truth.tolist(), estimate.tolist()],
        "holds": abs(found.largest / float(exact[-1]) - 1) < 1e-6 and difference < 0.1,
    }


def batches() -> Claims:
    """Largest eigenvalues of batch Hessians, and the random-matrix law through those at 8 and 256."""
    torch.manual_seed(0)
    x = torch.randn(4096, 10)
    y = (x @ torch.randn(10, 4) + 2 * torch.randn(4096, 4)).argmax(1)
    network = _mlp(10, 16, 4)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()

    def hessian(size: int, generator: torch.Generator) -> Hessian:
        rows = torch.randperm(len(x), generator=generator)[:size]
        return Hessian(lambda: F.cross_entropy(network(x[rows]), y[rows]), network.parameters())

    found = measure_batches(hessian, (4, 8, 16, 32, 64, 256, 1024), draws=24)
    measured = {size: estimate.value for size, estimate in found.items()}
    law = BatchSharpness.fit({size: measured[size] for size in (8, 256)}, dataset=len(x))
    errors = {size: law.at(size) / value - 1 for size, value in measured.items()}
    return {
        "measured": {size: [estimate.value, estimate.error] for size, estimate in found.items()},
        "law": {"sharpness": law.sharpness, "noise": law.noise, "critical batch": law.critical_batch},
        "predicted": {size: law.at(size) for size in measured},
        "largest error": max(map(abs, errors.values())),
        "holds": max(map(abs, errors.values())) < 0.15,
    }


def _trained_loss(optimizer: type[torch.optim.Optimizer], lr: float, batch: int, seed: int, samples: int) -> float:
    """Loss after so many samples."""
    torch.manual_seed(0)
    x = torch.randn(2048, 12)
    y = (torch.tanh(x @ torch.randn(12, 16)) @ torch.randn(16, 6) + 1.5 * torch.randn(2048, 6)).argmax(1)
    torch.manual_seed(seed)
    network = _mlp(12, 24, 6)
    stepper = optimizer(network.parameters(), lr=lr)  # type: ignore[call-arg]
    for _ in range(samples // batch):
        rows = torch.randint(0, len(x), (batch,))
        stepper.zero_grad()
        F.cross_entropy(network(x[rows]), y[rows]).backward()
        stepper.step()
    with torch.no_grad():
        return float(F.cross_entropy(network(x), y))


def rules(quick: bool = False) -> Claims:
    """Learning rates that do well at batches of 8 carried to batches of 128."""
    result: Claims = {}
    samples = 1000 if quick else 16_000
    for name, optimizer, lr in (("SGD", torch.optim.SGD, 0.16), ("Adam", torch.optim.Adam, 0.016)):
        settings = {"batch 8": (lr, 8)}
        for rule in ("linear", "sqrt"):
            settings[f"batch 128, {rule}"] = (scale_lr(lr, 8, 128, rule), 128)  # type: ignore[arg-type]
        result[name] = {
            key: {"lr": rate, "loss": sum(_trained_loss(optimizer, rate, batch, seed, samples) for seed in (1, 2)) / 2}
            for key, (rate, batch) in settings.items()
        }
    gaps = {
        name: {rule: rows[f"batch 128, {rule}"]["loss"] for rule in ("linear", "sqrt")} for name, rows in result.items()
    }
    result["holds"] = gaps["SGD"]["linear"] < gaps["SGD"]["sqrt"] and gaps["Adam"]["sqrt"] < gaps["Adam"]["linear"]
    return result


def _sizes() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    for activation, depth, width in itertools.product((nn.ReLU, nn.Tanh, nn.Sigmoid), (1, 2), (4, 8, 16, 32)):
        sizes = (16, *[width] * depth, 10)
        yield (
            f"{activation.__name__} {depth}x{width}",
            lambda sizes=sizes, activation=activation: _mlp(*sizes, activation=activation),
        )


def _one_size() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """About 1,300 parameters each."""
    widths = {1: 48, 2: 24, 3: 19}
    kinds = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU)
    for activation, (depth, width), norm in itertools.product(kinds, widths.items(), (False, True)):
        sizes = (16, *[width] * depth, 10)
        yield (
            f"{activation.__name__} {depth}x{width}{' norm' if norm else ''}",
            lambda sizes=sizes, activation=activation, norm=norm: _mlp(*sizes, activation=activation, norm=norm),
        )


def gradsign(quick: bool = False) -> Claims:
    """GradSign's rank correlation with the trained loss, and that of the number of parameters."""
    torch.manual_seed(0)
    x = torch.randn(512, 16)
    y = (torch.tanh(x @ torch.randn(16, 24)) @ torch.randn(24, 10)).argmax(1)

    def cross_entropy(network: Callable[[Tensor], Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(network(inputs), labels)

    result: Claims = {}
    for title, space in (("many sizes", dict(_sizes())), ("one size", dict(_one_size()))):
        scores = dict(rank_networks(space, cross_entropy, (x[:64], y[:64]), seeds=(0, 1)))
        losses, counts = {}, {}
        for name, build in space.items():
            torch.manual_seed(0)
            network = build()
            counts[name] = sum(param.numel() for param in network.parameters())
            optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
            for _ in range(10 if quick else 120):
                optimizer.zero_grad()
                loss = cross_entropy(network, x, y)
                loss.backward()
                optimizer.step()
            losses[name] = loss.item()
        order = list(space)
        found, by_count = (
            spearmanr([values[name] for name in order], [-losses[name] for name in order])
            for values in (scores, counts)
        )
        result[title] = {
            "networks": len(order),
            "rank correlation": float(found.statistic),
            "p": float(found.pvalue),
            "of the parameter count": float(by_count.statistic),
            "points": [[name, scores[name], losses[name], counts[name]] for name in order],
        }
    result["holds"] = result["many sizes"]["rank correlation"] > 0
    return result


EXPERIMENTS: dict[str, Callable[[], Claims]] = {
    "edge": edge,
    "spectrum": spectrum,
    "batches": batches,
    "rules": rules,
    "gradsign": gradsign,
}
"""Each gives numbers and whether the claim ``holds``."""


def measure(names: list[str] | None = None) -> dict[str, Claims]:
    """Run experiments by name, all by default.

    Raises:
        InputError: an unknown name.
    """
    names = list(EXPERIMENTS) if names is None else names
    for name in names:
        check_choice("experiment", name, EXPERIMENTS)
    results = {}
    for name in names:
        started = time.process_time()
        results[name] = EXPERIMENTS[name]()
        results[name]["cpu_seconds"] = round(time.process_time() - started, 1)
    return results


def draw(results: dict[str, Claims], path: Path) -> None:
    """One panel an experiment, to a PNG."""
    from matplotlib.figure import Figure

    panels = [name for name in ("edge", "spectrum", "batches", "gradsign") if name in results]
    if not panels:
        return
    figure = Figure(figsize=(5 * len(panels), 4), dpi=120, layout="constrained")
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        values = results[name]
        if name == "edge":
            for label, curve in values["curves"].items():
                axes.plot(curve["step"], curve["ratio"], label=label)
            axes.axhline(1, color="k", linestyle="--", linewidth=1)
            axes.set(title="sharpness over the stable one", xlabel="step", ylim=(0, 1.4))
        elif name == "spectrum":
            grid, truth, estimate = values["density"]
            axes.semilogy(grid, truth, "k", linewidth=3, alpha=0.3, label="exact")
            axes.semilogy(grid, estimate, "C0", label=f"{values['products']} products")
            axes.set(title="density of the Hessian's spectrum", xlabel="eigenvalue", ylim=(1e-4, None))
        elif name == "batches":
            sizes = list(values["measured"])
            means, errors = zip(*values["measured"].values(), strict=True)
            axes.errorbar(sizes, means, errors, fmt="o", label="measured")
            axes.loglog(sizes, list(values["predicted"].values()), "k--", label="law through 8 and 256")
            axes.set(title="largest eigenvalue of a batch's Hessian", xlabel="batch size")
        else:
            for title in ("many sizes", "one size"):
                _, scores, losses, _ = zip(*values[title]["points"], strict=True)
                axes.plot(scores, losses, "o", label=f"{title}: {values[title]['rank correlation']:.2f}")
            axes.set(title="GradSign", xlabel="score before training", ylabel="loss after it", xscale="log")
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_short(v)}" for key, v in value.items() if key != "points") + "}"
    return "[" + ", ".join(map(_short, value)) + "]" if isinstance(value, list) else str(value)


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(EXPERIMENTS)}; all by default.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers here.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the figure here.")] = None,
) -> None:
    """Measure the claims of genflow.optim.dynamics on small networks."""
    check_output_files(json=json_file, plot=plot)
    results = measure(names or None)
    for name, values in results.items():
        print(f"{name}: {'holds' if values['holds'] else 'does NOT hold'}")
        for key, value in values.items():
            if key not in ("holds", "curves", "density"):
                print(f"  {key}: {_short(value)}")
    if json_file is not None:
        write_json(json_file, results)
    if plot is not None:
        draw(results, plot)


if __name__ == "__main__":
    run(main)
