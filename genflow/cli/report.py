"""What a person sees while images are made: a progress bar and a few lines on stderr, JSON lines on stdout."""

import json
import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from genflow.cli.plan import Job, Pending

__all__ = ["GenerateReport"]


class GenerateReport:
    """The listener of ``genflow generate``. A context manager: the bar is cleared on the way out."""

    def __init__(self, json_lines: bool, quiet: bool) -> None:
        """``quiet`` is for every process but the first: it still prints its own JSON lines."""
        self._json = json_lines
        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("images", total=None)

    def __enter__(self) -> "GenerateReport":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """One line for a person."""
        if not self._quiet:
            self._console.print(text, markup=False)

    def planned(self, state: Pending, rows: int) -> None:
        self._bar.update(self._task, total=len(state.todo))
        if state.kept:
            self.say(f"{len(state.kept)} of {len(state.kept) + len(state.todo)} images are there already, kept")
        if state.changed:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in state.changed.most_common(4))
            self.say(f"made again, since they were made with other settings: {reasons}")
        if state.todo:
            self.say(f"making {len(state.todo)} images, {min(rows, len(state.todo))} at once")

    def progress(self, images: float) -> None:
        self._bar.update(self._task, completed=int(images))

    def image(self, job: Job, made: bool) -> None:
        if self._json:
            line = {"file": str(job.path), "status": "made" if made else "kept", **job.record}
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
