"""What the evaluation commands share on a terminal: a late progress bar, and errors as one line."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from genflow.errors import InputError

__all__ = ["progress_bar", "run"]


@contextmanager
def progress_bar(
    description: str, total: int, enabled: bool = True, delay: float = 2.0
) -> Iterator[Callable[[int], None]]:
    """Yield ``advance(n)``; a bar over ``total`` appears on stderr once the work has taken ``delay`` seconds."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(description, total=total)
    begun = time.monotonic()
    shown = False

    def advance(count: int) -> None:
        nonlocal shown
        bar.advance(task, count)
        if enabled and not shown and time.monotonic() - begun > delay:
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
