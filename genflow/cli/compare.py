"""``genflow compare``: the command's options, their help, and what is printed and written."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from genflow.cli.parsing import parse_options, parse_seeds
from genflow.errors import InputError
from genflow.files import check_output_folder, output_folder, write_json
from genflow.options import parse_entries, parse_entry

__all__ = ["compare"]

_WHAT, _HOW, _JUDGE, _WHERE = "What to compare", "On what", "How to judge", "Where and how fast"


def _option(name: str, text: str, panel: str, metavar: str | None = None) -> typer.models.OptionInfo:
    return typer.Option(name, help=text, rich_help_panel=panel, metavar=metavar, show_default=False)


def compare(
    schedulers: Annotated[
        str,
        _option(
            "--schedulers",
            "genflow's (see `genflow info`) and classes of diffusers, with options as ghvb:order=1.8:frame=denoised "
            "(default: euler,heun,dpm++,ghvb).",
            _WHAT,
            "LIST",
        ),
    ] = "euler,heun,dpm++,ghvb",
    steps: Annotated[
        str | None, _option("--steps", "Columns: sampling steps (default: 5,10,20).", _WHAT, "LIST")
    ] = None,
    evaluations: Annotated[
        str | None,
        _option(
            "--evaluations",
            "Columns by network evaluations instead: each scheduler takes as many steps as fit (Heun asks the "
            "network twice a step).",
            _WHAT,
            "LIST",
        ),
    ] = None,
    guidance: Annotated[
        str | None,
        _option(
            "--guidance",
            "Guidance methods, with options as apg:eta=0:scale=4 (default: the model's own).",
            _WHAT,
            "LIST",
        ),
    ] = None,
    guidance_scale: Annotated[
        float | None, _option("--guidance-scale", "Of those without a scale; 1 is none (default: the model's).", _WHAT)
    ] = None,
    model: Annotated[
        str, _option("--model", "As of genflow generate (default: fashion-mnist).", _HOW)
    ] = "fashion-mnist",
    seeds: Annotated[
        str, _option("--seeds", "The same in every cell; the picture shows 16 (default: 0-7).", _HOW)
    ] = "0-7",
    classes: Annotated[
        str | None, _option("--classes", "Class names or numbers, dealt out by seed (default: all).", _HOW)
    ] = None,
    prompt: Annotated[
        list[str] | None, _option("--prompt", "Text, for text-to-image models; several in turn.", _HOW, "TEXT")
    ] = None,
    pipeline_option: Annotated[
        list[str] | None,
        _option("--pipeline-option", "A further argument of the pipeline; may be repeated.", _HOW, "KEY=VALUE"),
    ] = None,
    reference: Annotated[
        str,
        _option(
            "--reference",
            "Scheduler of the long run from which distances are taken; none for no distances (default: "
            "ab:order=4, which takes one evaluation a step).",
            _JUDGE,
        ),
    ] = "ab:order=4",
    reference_steps: Annotated[int, _option("--reference-steps", "Its steps (default: 1000).", _JUDGE)] = 1000,
    fd: Annotated[
        int, _option("--fd", "Also the Frechet distance of so many samples a cell, seeds from 0 (default: 0).", _JUDGE)
    ] = 0,
    fd_reference: Annotated[
        str,
        _option("--fd-reference", "A shipped reference, or the folder of one (default: fashion-mnist).", _JUDGE),
    ] = "fashion-mnist",
    out: Annotated[
        Path, _option("--out", "Folder for comparison.png, comparison.json and the long runs.", _WHERE)
    ] = Path("compare"),
    batch_size: Annotated[
        int | None, _option("--batch-size", "Images made at once (default: by their size).", _WHERE)
    ] = None,
    device: Annotated[str, _option("--device", "auto, cpu, cuda, cuda:1, mps (default: auto).", _WHERE)] = "auto",
    dtype: Annotated[
        str, _option("--dtype", "auto, float32, bfloat16, float16 (default: auto, which is float32).", _WHERE)
    ] = "auto",
    json_output: Annotated[bool, _option("--json", "Print comparison.json in the place of the table.", _WHERE)] = False,
) -> None:
    """Compare schedulers and guidances on the same seeds: one picture, one table.

    The table gives each cell's distance from a long run of the same equation, the magnitude score (how much of the
    latents lies implausibly far out), saturation and contrast, the time of a step, and with --fd the Frechet
    distance. The long run is kept in OUT and taken from there the next time. Of a scheduler that draws noise the
    distance says little.

    Examples:

    \b
      genflow compare
      genflow compare --schedulers ab:order=2,DPMSolverMultistepScheduler --steps 5,10
      genflow compare --schedulers heun,dpm++ --evaluations 6,10 --fd 1024
      genflow compare --guidance cfg,apg:eta=0 --guidance-scale 6 --reference-steps 200
      genflow compare --model owner/name --prompt 'a red boat' --reference none
    """
    from_text = {
        "schedulers": parse_entries("--schedulers", schedulers),
        "seeds": parse_seeds(seeds),
        "steps": _numbers("--steps", steps if steps or evaluations else "5,10,20"),
        "evaluations": _numbers("--evaluations", evaluations),
        "guidances": (None,) if guidance is None else parse_entries("--guidance", guidance),
        "reference": None if reference == "none" else parse_entry("--reference", reference),
        "pipeline_options": parse_options("--pipeline-option", pipeline_option or []),
    }
    check_output_folder("--out", out)

    warnings.filterwarnings("ignore", category=FutureWarning)
    from genflow.cli import comparison
    from genflow.cli.sheet import SheetRow, draw_sheet
    from genflow.images import save_png
    from genflow.pipelines.opening import quiet

    quiet()
    wanted = comparison.Comparison(
        model,
        guidance_scale=guidance_scale,
        classes=classes,
        prompts=prompt or [],
        reference_steps=reference_steps,
        fd_samples=fd,
        fd_reference=fd_reference,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        **from_text,
    )
    with _bar() as listener:
        outcome = comparison.compare(wanted, output_folder("--out", out), listener)

    columns = list(dict.fromkeys(cell.column for cell in outcome.cells))
    rows = []
    for name in dict.fromkeys(cell.guidance for cell in outcome.cells):
        if name in outcome.references:
            rows.append(SheetRow(f"{reference}, {reference_steps} steps\n{name}", [outcome.references[name]]))
        mine = [cell for cell in outcome.cells if cell.guidance == name]
        for scheduler in dict.fromkeys(cell.scheduler for cell in mine):
            cells = {cell.column: cell.images for cell in mine if cell.scheduler == scheduler}
            rows.append(SheetRow(f"{scheduler}\n{name}", [cells[column] for column in columns]))
    result = {"protocol": outcome.protocol, "cells": [_record(cell) for cell in outcome.cells]}
    picture = out / "comparison.png"
    if any(row.cells[0] for row in rows):
        titles = [f"{column} {outcome.protocol['columns']}" for column in columns]
        save_png(draw_sheet(titles, rows), picture, {"kind": "comparison", **outcome.protocol})
    write_json(out / "comparison.json", result)
    if json_output:
        typer.echo(json.dumps(result, indent=2))
    else:
        _print(result)
        typer.echo(f"picture: {picture}   figures: {out / 'comparison.json'}")


def _numbers(argument: str, text: str | None) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        raise InputError(f"{argument}: {text!r}; allowed: integers >= 1, separated by commas") from None
    if len(set(numbers)) < len(numbers):
        raise InputError(f"{argument}: {text!r} says a number twice")
    return numbers


def _record(cell: Any) -> dict[str, Any]:
    settings = cell.settings
    return {
        "scheduler": cell.scheduler,
        "guidance": settings.guidance,
        "guidance_scale": settings.guidance_scale,
        "guidance_options": settings.guidance_options,
        "label": cell.guidance,
        "steps": settings.steps,
        "evaluations": cell.evaluations,
        **cell.figures,
    }


_FORMS = {
    "distance": ("distance", "{:.4f}"),
    "fd": ("FD", "{:.3f}"),
    "magnitude": ("magnitude", "{:.3f}"),
    "saturation": ("saturation", "{:.3f}"),
    "contrast": ("contrast", "{:.3f}"),
    "ms_per_step": ("ms/step", "{:.1f}"),
}


def _print(result: dict[str, Any]) -> None:
    """A table a guidance; figures that are 0 everywhere, as the saturation of grey images, are said below."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console, protocol, cells = Console(), result["protocol"], result["cells"]
    known = [key for key in _FORMS if any(cell.get(key) is not None for cell in cells)]
    zero = [key for key in known if not any(cell.get(key) for cell in cells)]
    shown = {key: form for key, form in _FORMS.items() if key in known and key not in zero}
    for label in dict.fromkeys(cell["label"] for cell in cells):
        table = Table(title=", ".join(filter(None, [protocol["model"], label])), box=SIMPLE_HEAD, pad_edge=False)
        for name in ("scheduler", "steps", "evals", *(name for name, _ in shown.values())):
            table.add_column(name, justify="left" if name == "scheduler" else "right", overflow="fold")
        mine = [cell for cell in cells if cell["label"] == label]
        for scheduler in dict.fromkeys(cell["scheduler"] for cell in mine):
            first = scheduler.replace("Scheduler", "", 1)  # diffusers' names are long
            for cell in (cell for cell in mine if cell["scheduler"] == scheduler):
                figures = ["" if cell.get(key) is None else form.format(cell[key]) for key, (_, form) in shown.items()]
                if "error" in cell:
                    figures = ["NaN" for _ in shown]
                table.add_row(first, str(cell["steps"]), str(cell["evaluations"]), *figures)
                first = ""
        console.print(table)
    notes = []
    if protocol["reference"]:
        notes.append(f"distance: from {protocol['reference']} in {protocol['reference_steps']} steps")
    if protocol["fd_samples"]:
        notes.append(f"FD: {protocol['fd_samples']} samples, {protocol['fd_reference']}")
    if zero:
        notes.append(f"0 everywhere: {', '.join(_FORMS[key][0] for key in zero)}")
    notes.append(f"seeds {protocol['seeds']}, {protocol['batch_size']} images at once at most")
    console.print("; ".join(notes), highlight=False)


class _Bar:
    """Tells a progress bar how much is done."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._task = bar.add_task("sampling", total=None)

    def begins(self, work: int) -> None:
        self._bar.update(self._task, total=work)

    def advance(self, work: float) -> None:
        self._bar.advance(self._task, work)


@contextmanager
def _bar() -> Iterator[_Bar]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield _Bar(bar)
