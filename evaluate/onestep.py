"""Few-step models side by side: FD, accuracy, precision and recall per network evaluation, on one protocol.

``python -m genflow.evaluate.onestep`` scores the teacher at its default steps and at 1 and 2 Euler steps, and the
shipped students; ``--student NAME=FOLDER`` adds others. Seeds 0 to N - 1, classes in turn, against the test images
in the features of the shipped classifier: the protocol of the default model's card. Each row is kept in the JSON file
as soon as it is measured, and a run that was stopped goes on from there.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

import genflow
from genflow.errors import InputError, check_number
from genflow.evaluate.console import run
from genflow.evaluate.run import evaluate
from genflow.evaluate.shipped_model import sample_to_file
from genflow.files import atomic_path, check_output_files, fingerprint, write_json
from genflow.pipelines import ImagePipeline, locate
from genflow.schedulers import create_scheduler

__all__ = ["FIGURES", "STUDENTS", "markdown", "measure"]

TEACHER = "fashion-mnist"
STUDENTS = ("fashion-mnist-reflow", "fashion-mnist-onestep")
"""The shipped few-step models."""

FIGURES = ("fd", "accuracy", "precision", "recall", "density", "coverage")


class _Counter:
    """How many images went through a network, guidance's unconditional ones among them."""

    def __init__(self, network: nn.Module) -> None:
        self.rows = 0
        network.register_forward_pre_hook(self._count)

    def _count(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.rows += len(args[0])


def measure(model: str | Path, count: int, *, euler: int | None = None, device: str = "cpu") -> dict[str, Any]:
    """Sample ``count`` images of ``model`` and score them.

    Args:
        model: a shipped name, a folder or a hub id of a class-conditional pipeline.
        count: how many images.
        euler: so many Euler steps in the place of the pipeline's own scheduler and steps.
        device: where the network runs; noise is drawn on the host in any case.

    Returns:
        JSON-safe: ``model``, ``fingerprint`` of its files, ``network_calls`` an image (guidance calls twice), the
        metrics of :data:`FIGURES`, ``seconds`` of sampling, ``count`` and ``device``.
    """
    folder = locate(model)
    pipeline = ImagePipeline.from_pretrained(folder).to(device)
    options: dict[str, Any] = {}
    if euler is not None:
        pipeline.scheduler = create_scheduler("euler", pipeline.scheduler.config)
        options["num_inference_steps"] = euler
    counter = _Counter(pipeline.unet)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "samples.npz"
        begun = time.perf_counter()
        sample_to_file(pipeline, count, path, **options)
        seconds = time.perf_counter() - begun
        metrics = evaluate(path, TEACHER, progress=True)["metrics"]
    return {
        "model": str(model),
        "euler": euler,
        "fingerprint": fingerprint(folder),
        "network_calls": counter.rows / count,
        **{key: metrics[key] for key in FIGURES},
        "seconds": seconds,
        "count": count,
        "device": device,
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table."""
    lines = ["| model | network calls | " + " | ".join(FIGURES) + " |", "| --- " * (2 + len(FIGURES)) + "|"]
    for row in rows:
        figures = " | ".join(f"{row[key]:.4f}" for key in FIGURES)
        lines.append(f"| {row['name']} | {row['network_calls']:g} | {figures} |")
    return "\n".join(lines)


def _plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    figure = Figure(figsize=(9, 4), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    for row in rows:
        left.plot(row["network_calls"], row["fd"], "o")
        left.annotate(row["name"], (row["network_calls"], row["fd"]), fontsize=7, xytext=(4, 4), **_OFFSET)
        right.plot(row["recall"], row["precision"], "o")
        right.annotate(row["name"], (row["recall"], row["precision"]), fontsize=7, xytext=(4, 4), **_OFFSET)
    left.set(xlabel="network calls an image", ylabel="FD (fashion-mnist)", xscale="log", yscale="log")
    right.set(xlabel="recall", ylabel="precision")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.margins(0.2)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


_OFFSET = {"textcoords": "offset points"}


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["euler"], row["fingerprint"], row["count"]


def _cases(students: Sequence[str]) -> list[tuple[str, str, int | None]]:
    """(name, model, Euler steps) of every row."""
    cases: list[tuple[str, str, int | None]] = [
        ("teacher", TEACHER, None),
        ("teacher, 2 Euler steps", TEACHER, 2),
        ("teacher, 1 Euler step", TEACHER, 1),
    ]
    for student in students:
        name, equals, folder = student.partition("=")
        if not name or (equals and not folder):
            raise InputError(f"--student: got {student!r}; allowed: NAME, or NAME=FOLDER")
        cases.append((name, folder or name, None))
    return cases


def main(
    student: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER of a student, may be repeated.  [default: the shipped ones]")
    ] = None,
    count: Annotated[int, typer.Option(help="Images to score.")] = 10_000,
    device: Annotated[str, typer.Option(help="Where networks run.")] = "cpu",
    json_file: Annotated[Path, typer.Option("--json", help="Rows, kept and gone on with.")] = Path("onestep.json"),
    plot: Annotated[Path | None, typer.Option(help="Draw FD against network calls, precision against recall.")] = None,
) -> None:
    """Score the teacher and its few-step students on one protocol.

    Example: python -m genflow.evaluate.onestep --student js=runs/js --count 10000 --plot onestep.png
    """
    check_number("count", count, at_least=2, integer=True)
    check_output_files(json=json_file, plot=plot)
    cases = _cases(student if student else STUDENTS)
    marks = {name: fingerprint(locate(model)) for name, model, _ in cases}
    kept = json.loads(json_file.read_text(encoding="utf-8"))["rows"] if json_file.is_file() else []
    rows = []
    for name, model, euler in cases:
        key = (euler, marks[name], count)
        row = next((row for row in rows + kept if _key(row) == key), None)
        if row is None:
            row = measure(model, count, euler=euler, device=device)
        rows.append({**row, "name": name})
        others = [row for row in kept if _key(row) not in [_key(mine) for mine in rows]]
        write_json(json_file, {"genflow": genflow.__version__, "torch": str(torch.__version__), "rows": rows + others})
    if plot is not None:
        _plot(rows, plot)
    print(markdown(rows))


if __name__ == "__main__":
    run(main)
