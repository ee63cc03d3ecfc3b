"""What the evaluation commands share on a terminal: a late progress bar, and errors as one line."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from genflow.errors import InputError

__all__ = ["progress_bar", "rate", "run"]


class _Rate(ProgressColumn):
    """How many of a unit are done a second, lately."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{rate(speed)} {self._unit}/s", style="progress.data.speed")


def rate(speed: float) -> str:
    """A speed in three figures or so: ``1,234``, ``98.7``, ``0.45``."""
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"


@contextmanager
def progress_bar(
    description: str, total: int, enabled: bool = True, delay: float = 2.0, unit: str | None = None
) -> Iterator[Callable[[int], None]]:
    """Yield ``advance(n)``; a bar over ``total`` appears on stderr once the work has taken ``delay`` seconds.

    Where stderr is no terminal none does.
    With a ``unit`` the bar also says how many of it are done a second.
    """
    columns = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()]
    if unit is not None:
        columns.append(_Rate(unit))
    console = Console(stderr=True)
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(description, total=total)
    begun = time.monotonic()
    shown = False

    def advance(count: int) -> None:
        nonlocal shown
        bar.advance(task, count)
        if enabled and console.is_terminal and not shown and time.monotonic() - begun > delay:
            shown = True
            bar.start()

    try:
        yield advance
    finally:
        if shown:
            bar.stop()


def run(command: Callable[..., Any]) -> None:
    """Run ``command`` as a command line by its type hints; bad input is one line on stderr and exit status 2."""
    try:
        typer.run(command)
    except InputError as error:
        print(f"genflow: error: {error}", file=sys.stderr)
        sys.exit(2)
