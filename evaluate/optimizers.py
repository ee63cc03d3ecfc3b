"""What the papers of :mod:`genflow.optim` claim, measured: ``python -m genflow.evaluate.optimizers [CLAIM ...]``.

Each claim is a small experiment of at most half a minute on one core; the table says what was measured, what the paper
says, and whether it holds by the measurement. ``python -m genflow.evaluate.optimizers fashion-mnist`` trains the
default recipe with one optimizer after another instead (:mod:`genflow.evaluate.optimizer_table`).
"""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from genflow.errors import check_choice
from genflow.evaluate import (
    optimizer_claims_batches,
    optimizer_claims_curvature,
    optimizer_claims_dynamics,
    optimizer_claims_spikes,
    optimizer_claims_weights,
)
from genflow.evaluate.console import progress_bar, run
from genflow.evaluate.optimizer_claims import Claim
from genflow.evaluate.optimizer_report import draw_finding, draw_losses, losses_table
from genflow.files import check_output_files, check_output_folder, write_json
from genflow.options import parse_entries

__all__ = ["CLAIMS", "measure_claims"]

CLAIMS: dict[str, Claim] = {
    **optimizer_claims_weights.CLAIMS,
    **optimizer_claims_spikes.CLAIMS,
    **optimizer_claims_curvature.CLAIMS,
    **optimizer_claims_batches.CLAIMS,
    **optimizer_claims_dynamics.CLAIMS,
}
"""Every claim by name."""


def measure_claims(
    names: Sequence[str] | None = None, *, quick: bool = False, progress: bool = False
) -> dict[str, dict[str, Any]]:
    """Measure claims by name, all by default.

    Args:
        names: of :data:`CLAIMS`.
        quick: smaller sizes: does it run, not what it shows.
        progress: show a bar.

    Returns:
        By name: ``says``, ``paper``, ``figure``, ``holds``, ``numbers``, ``panel`` and ``cpu_seconds``; safe for JSON.

    Raises:
        InputError: an unknown name.
    """
    names = list(CLAIMS) if names is None else list(names)
    for name in names:
        check_choice("claim", name, CLAIMS)
    results = {}
    with progress_bar("claims", len(names), progress) as advance:
        for name in names:
            claim, begun = CLAIMS[name], time.process_time()
            with torch.random.fork_rng(devices=[]):
                finding = claim.measure(quick)
            seconds = time.process_time() - begun
            found = {"says": claim.says, "paper": claim.paper, **asdict(finding), "cpu_seconds": seconds}
            results[name] = _json_safe(found)
            advance(1)
    return results


def _json_safe(value: Any) -> Any:
    """Lists for tuples and ranges, None for what JSON has no number for (a loss that diverged)."""
    if isinstance(value, dict):
        return {str(key): _json_safe(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [_json_safe(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print(results: dict[str, dict[str, Any]], quick: bool) -> None:
    title = "quick: sizes too small to show anything" if quick else "measured on this machine"
    table = Table(title=title, show_lines=True)
    for column in ("claim", "what the paper says", "measured", "", "s"):
        table.add_column(column)
    for name, found in results.items():
        verdict = "[green]holds[/]" if found["holds"] else "[red]does not hold[/]"
        says = f"{found['says']} ({found['paper']})"
        table.add_row(name, says, found["figure"], verdict, f"{found['cpu_seconds']:.0f}")
    Console().print(table)


def main(
    claims: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(CLAIMS)}; all by default.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers here.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Folder for a figure of each claim.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: does it run, not what it shows.")] = False,
) -> None:
    """Measure what the papers of genflow.optim claim. (`fashion-mnist --help`: the default recipe with each.)"""
    check_output_files(json=json_file)
    if plot is not None:
        check_output_folder("--plot", plot)
    results = measure_claims(claims or None, quick=quick, progress=True)
    _print(results, quick)
    if json_file is not None:
        write_json(json_file, {"torch": str(torch.__version__), "quick": quick, "claims": results})
    if plot is not None:
        for name, found in results.items():
            if found["panel"]:
                draw_finding(name, found, plot / f"{name}.png")


def fashion_mnist(
    updates: Annotated[int, typer.Option(help="Updates of each optimizer.")] = 2000,
    names: Annotated[
        str | None, typer.Option(help="name[:key=value...], separated by commas; all by default.", metavar="LIST")
    ] = None,
    search: Annotated[
        int | None, typer.Option(help="Updates of the runs that choose a step size; 0: none; a fifth by default.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each.")] = 1,
    samples: Annotated[int, typer.Option(help="Images for the Frechet distance; 0: none.")] = 2048,
    steps: Annotated[int, typer.Option(help="Heun steps to sample them.")] = 10,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    out: Annotated[Path, typer.Option(help="Folder of the runs; a table goes on from there.")] = Path(
        "runs/optimizers"
    ),
    recipe: Annotated[str, typer.Option(help="A shipped recipe, or a YAML file.")] = "fashion-mnist",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change the recipe; may be repeated.", metavar="KEY=VALUE"),
    ] = None,
    test: Annotated[str | None, typer.Option(help="Test images, if not the recipe's source's.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all rows here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw loss curves and figures here.")] = None,
) -> None:
    """Train the default recipe with each optimizer for the same number of updates; print a table in markdown."""
    from genflow.evaluate.optimizer_table import SETTINGS, Protocol, measure

    check_output_files(json=json_file, plot=plot)
    entries = parse_entries("--names", ",".join(SETTINGS) if names is None else names)
    protocol = Protocol(
        recipe=recipe,
        overrides=tuple(overrides or ()),
        updates=updates,
        search_updates=updates // 5 if search is None else search,
        test=test,
        samples=samples,
        steps=steps,
        device=device,
    )
    rows = measure(entries, out, protocol, seeds=seeds)
    print(losses_table(rows))
    chosen = (
        f"the best by the training loss that runs of {protocol.search_updates} updates end with"
        if protocol.search_updates
        else "as set, not searched"
    )
    print(
        f"\n{updates} updates each, {seeds} seed(s), on {rows[0]['device']}. lr: {chosen}. "
        f"Training loss: mean over the last tenth. Held-out loss and FD ({samples} images, Heun {steps} steps, no "
        "guidance): of the averaged weights."
    )
    if json_file is not None:
        write_json(json_file, {"torch": str(torch.__version__), "rows": rows})
    if plot is not None:
        draw_losses(rows, plot)


if __name__ == "__main__":
    if sys.argv[1:2] == ["fashion-mnist"]:
        del sys.argv[1]
        run(fashion_mnist)
    else:
        run(main)
