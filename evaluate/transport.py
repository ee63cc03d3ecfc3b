"""Sinkhorn-Newton-Sparse beside POT on the paper's kinds of problem: iterations of both stages, error against time.

``python -m genflow.evaluate.transport [--kind points] [--size 500] [--eta 1200] [--json FILE] [--plot FILE]``. Every
solver works on one problem in one process, one after another. POT stops at an L2 error of the marginals, which is
below the L1 error that ours stops at, so it is asked for less; the table gives the L1 error of every result. POT's
epsilon scaling works in a process of its own, since a call of it takes minutes at 2,000 points and has to be stopped.
"""

import importlib.util
import math
import multiprocessing
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from genflow.errors import InputError, check_choice, check_number
from genflow.evaluate.console import progress_bar, run
from genflow.files import atomic_path, check_output_files, write_json
from genflow.transport import pairwise_cost, sinkhorn, sinkhorn_newton

__all__ = ["KINDS", "PEERS", "Timing", "draw", "error_text", "make_problem", "measure", "time_ours", "time_pot"]

KINDS = ("random", "histograms-l1", "histograms-l2", "points", "images")
"""Uniform random costs; two drawn strokes on a grid (like MNIST's digits) with l1 or squared l2 costs; squared
distances of a plane's points; squared distances of noise and data in 784 dimensions, as a coupling of images has."""


def make_problem(kind: str, size: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Masses a (n,), b (m,) and a cost (n, m) up to 1, float64, with n and m near ``size``; see KINDS.

    Histograms have ``size`` pixels, most of them empty: these zero masses stay in.
    """
    check_choice("kind", kind, KINDS)
    check_number("size", size, at_least=2, integer=True)
    draw = torch.Generator().manual_seed(seed)
    a = b = torch.full((size,), 1 / size, dtype=torch.float64)
    if kind == "random":
        return a, b, torch.rand(size, size, generator=draw, dtype=torch.float64)
    if kind.startswith("histograms"):
        side = round(math.sqrt(size))
        axis = torch.arange(side, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis)
        a, b = (stroke(grid, side, draw) for _ in range(2))
        cost = torch.cdist(grid, grid, p=1) if kind.endswith("l1") else pairwise_cost(grid, grid)
    else:
        dimensions = 2 if kind == "points" else 784
        x, y = (torch.randn(size, dimensions, generator=draw, dtype=torch.float64) for _ in range(2))
        # Data: three groups, narrower than the noise.
        y = 0.3 * y + 2 * torch.randn(3, dimensions, generator=draw, dtype=torch.float64)[torch.arange(size) % 3]
        cost = pairwise_cost(x, y)
    return a, b, cost / cost.max()


def stroke(grid: Tensor, side: int, draw: torch.Generator) -> Tensor:
    """Masses (side^2,) of a random smooth curve drawn with a pen: grey levels, exactly 0 away from it."""
    time = torch.linspace(0, 1, 50, dtype=torch.float64).unsqueeze(-1)
    curve = torch.full((50, 2), 0.5, dtype=torch.float64)
    for wave in (1, 2):
        weight, phase = torch.rand(2, 2, generator=draw, dtype=torch.float64)
        curve = curve + (0.1 + 0.25 * weight) / wave * torch.sin(2 * math.pi * (wave * time * 0.7 + phase))
    distance = torch.cdist(grid, curve.clamp(0.1, 0.9) * (side - 1)).amin(-1)
    grey = (1 - distance / (0.08 * side)).clamp_min(0.0)
    return grey / grey.sum()


PEERS = {
    "sinkhorn_log": "torch",
    "sinkhorn_stabilized": "numpy",
    "sinkhorn_epsilon_scaling": "numpy",
}
"""POT's methods that are stable at small regularization, and the arrays with which each is faster on a CPU."""

STOPPED_AFTER = 4
"""Epsilon scaling is stopped after this many times the time that it was given."""

Problem = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Timing:
    """One solver on one problem: seconds, its result's L1 marginal error, iterations, and (seconds, error) on the way.

    ``reached`` says whether the tolerance was met by the solver's own measure before its time was up; ``error`` is None
    where the result is NaN, and where there is none since the call was ``stopped``: then ``iterations`` is empty.
    """

    name: str
    seconds: float
    error: float | None
    iterations: dict[str, int]
    reached: bool
    curve: list[tuple[float, float]]
    stopped: bool = False


def l1_error(plan: Tensor, a: Tensor, b: Tensor) -> float | None:
    error = float((plan.sum(-1) - a).abs().sum() + (plan.sum(-2) - b).abs().sum())
    return error if math.isfinite(error) else None


def error_text(error: float | None, stopped: bool) -> str:
    """A Timing's error for a table."""
    return "unknown" if stopped else "NaN" if error is None else f"{error:.1e}"


def time_ours(problem: Problem, reg: float, tolerance: float, newton: bool = True, curve: bool = True) -> Timing:
    """Time ``sinkhorn_newton`` (or ``sinkhorn``); the curve is made of whole runs to looser tolerances."""
    a, b, cost = problem
    solve: Callable[..., Any] = sinkhorn_newton if newton else sinkhorn
    goals = [10.0**-power for power in range(1, 20) if 10.0**-power > tolerance * 1.01] if curve else []
    points = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for goal in [*goals, tolerance]:
            begun = time.perf_counter()
            result = solve(a, b, cost, reg, tolerance=goal)
            points.append((time.perf_counter() - begun, float(result.marginal_error)))
    error = l1_error(result.plan, a, b)
    return Timing(solve.__name__, points[-1][0], error, result.iterations, bool(result.converged), points)


def time_pot(problem: Problem, reg: float, tolerance: float, method: str, seconds: float) -> Timing:
    """Time a method of POT for about ``seconds``, without the rows and columns of zero mass.

    A method is given as many iterations as fit into its time by a first try. Of epsilon scaling that cannot be told
    from an iteration (up to 100 inner ones, and restarts): it is given 1, 2, 4, ..., and stopped where it takes
    ``STOPPED_AFTER * seconds`` in all.

    Raises InputError when POT is not installed.
    """
    check_choice("method", method, PEERS)
    if importlib.util.find_spec("ot") is None:
        raise InputError("POT: not installed, and it is what this compares with; try: pip install POT")
    arguments = (problem, reg, tolerance, method, seconds)
    if method != "sinkhorn_epsilon_scaling":
        return _time_pot(*arguments)
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads, locked
    ours, theirs = context.Pipe()
    threads = torch.get_num_threads()
    process = context.Process(target=_work, args=(theirs, threads, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        ours.recv()  # time counts from here: starting a process and importing POT is not POT's work
        limit = STOPPED_AFTER * seconds
        if ours.poll(limit):
            return ours.recv()
        return Timing(f"ot.{method}", limit, None, {}, False, [], stopped=True)
    except EOFError:
        raise RuntimeError(f"ot.{method}: its process ended without a result") from None
    finally:
        process.kill()
        process.join()


def _work(pipe: Connection, threads: int, arguments: tuple[Any, ...]) -> None:
    import ot  # noqa: F401

    torch.set_num_threads(threads)
    pipe.send("ready")
    pipe.send(_time_pot(*arguments))


def _time_pot(problem: Problem, reg: float, tolerance: float, method: str, seconds: float) -> Timing:
    import ot

    a, b, cost = problem
    rows, columns = a > 0, b > 0
    arrays = [a[rows], b[columns], cost[rows][:, columns].contiguous()]
    if PEERS[method] == "numpy":
        arrays = [array.numpy() for array in arrays]

    # Epsilon scaling compares the square of an L2 error with its threshold.
    power = 2 if method == "sinkhorn_epsilon_scaling" else 1

    def solve(count: int) -> tuple[Any, dict[str, Any], float]:
        begun = time.perf_counter()
        options = {"stopThr": tolerance**power, "numItermax": count, "log": True, "warn": False}
        with warnings.catch_warnings():  # stabilized warns whatever it is told
            warnings.simplefilter("ignore")
            plan, log = ot.sinkhorn(*arrays, reg, method=method, **options)
        return torch.as_tensor(plan), log, time.perf_counter() - begun

    if power == 2:
        count = 1
        plan, log, taken = solve(count)
        while taken < seconds / 2 and float(log["err"][-1]) > tolerance**power:
            count *= 2
            plan, log, taken = solve(count)
    else:
        pilot, taken = 3, solve(3)[2]
        while taken < seconds / 40 and pilot < 3000:  # a short one is mostly what every call costs
            pilot *= 10
            taken = solve(pilot)[2]
        count = max(pilot, min(100_000, int(seconds * pilot / taken)))
        plan, log, taken = solve(count)
    done = int(log.get("niter", log.get("n_iter", count - 1))) + 1
    errors = [float(error) ** (1 / power) for error in log["err"]]
    curve = [(taken * (k + 1) / len(errors), error) for k, error in enumerate(errors) if math.isfinite(error) and error]
    error = l1_error(plan, a[rows], b[columns])
    reached = error is not None and bool(errors) and errors[-1] <= tolerance
    return Timing(f"ot.{method}", taken, error, {"sinkhorn": done}, reached, curve)


def measure(kind: str, size: int, eta: float, tolerance: float, seconds: float) -> dict[str, Any]:
    """Ours and POT's methods on one problem; JSON-safe."""
    problem = make_problem(kind, size)
    time_ours(make_problem(kind, 16), 1 / eta, 1e-3, curve=False)  # what a first call in a process sets up
    timings = [
        time_ours(problem, 1 / eta, tolerance),
        time_ours(problem, 1 / eta, tolerance, newton=False, curve=False),
    ]
    timings += [time_pot(problem, 1 / eta, tolerance, method, seconds) for method in PEERS]
    sizes = [int((mass > 0).sum()) for mass in problem[:2]]
    return {"kind": kind, "size": size, "masses": sizes, "eta": eta, "timings": [asdict(timing) for timing in timings]}


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Error against time, a panel a problem; written as the suffix of ``path`` says."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    columns = min(3, len(results))
    rows = math.ceil(len(results) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.6 * rows), dpi=110, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, result in zip(panels, results, strict=False):
        for timing in result["timings"]:
            seconds, errors = zip(*timing["curve"], strict=True) if timing["curve"] else ((), ())
            axes.loglog(seconds, errors, "o-" if len(seconds) < 20 else "-", markersize=4, label=timing["name"])
        axes.set(title=f"{result['kind']}, n = {result['size']}, eta = {result['eta']:g}", xlabel="seconds")
        axes.xaxis.set_minor_formatter(NullFormatter())  # within a decade they would lie on each other
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("marginal error (L1; POT's own is L2)")
    panels[0].legend(frameon=False, fontsize=8)
    for axes in panels[len(results) :]:
        axes.remove()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png")


def main(
    kinds: Annotated[list[str] | None, typer.Option("--kind", help=f"Of {', '.join(KINDS)}; all by default.")] = None,
    sizes: Annotated[list[int] | None, typer.Option("--size", help="Points on each side; 500 by default.")] = None,
    eta: Annotated[float, typer.Option(help="1 / reg, with costs up to 1.")] = 1200.0,
    tolerance: Annotated[float, typer.Option(help="Marginal error to reach.")] = 1e-9,
    seconds: Annotated[float, typer.Option(help="Time for each of POT's methods on each problem, about.")] = 30.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers here.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw error against time here.")] = None,
) -> None:
    """Time Sinkhorn-Newton-Sparse and POT on the paper's kinds of problem."""
    check_output_files(json=json_file, plot=plot)
    check_number("eta", eta, above=0)
    check_number("tolerance", tolerance, above=0)
    check_number("seconds", seconds, above=0)
    problems = [(check_choice("kind", kind, KINDS), size) for size in sizes or [500] for kind in kinds or KINDS]
    results = []
    with progress_bar("solving", len(problems)) as advance:
        for kind, size in problems:
            results.append(measure(kind, size, eta, tolerance, seconds))
            if json_file is not None:  # after every problem: a run that is stopped keeps what it has
                record = {"eta": eta, "tolerance": tolerance, "threads": torch.get_num_threads()}
                write_json(json_file, {**record, "torch": str(torch.__version__), "results": results})
            advance(1)
    table = Table(title=f"eta = {eta:g}, to {tolerance:g}, {torch.get_num_threads()} thread(s)")
    for column in ("problem", "solver", "seconds", "L1 error", "iterations", "ratio"):
        table.add_column(column, justify="left" if column in ("problem", "solver") else "right")
    for result in results:
        ours = result["timings"][0]["seconds"]
        for index, timing in enumerate(result["timings"]):
            label = f"{result['kind']} {result['masses'][0]} x {result['masses'][1]}" if index == 0 else ""
            error = error_text(timing["error"], timing["stopped"])
            bound = "" if timing["reached"] else "failed, " if error == "NaN" else "> "
            counts = " + ".join(f"{count} {name}" for name, count in timing["iterations"].items() if count)
            ratio = f"{bound}{timing['seconds'] / ours:.3g}"
            table.add_row(label, timing["name"], f"{timing['seconds']:.3g}", error, counts, ratio)
    Console().print(table)
    if plot is not None:
        draw(results, plot)


if __name__ == "__main__":
    run(main)
