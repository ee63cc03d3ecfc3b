"""Options that the commands which train have in common."""

from typing import Annotated

import typer

__all__ = ["Restart", "Settings", "SkipBad", "Trackers"]

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one setting of the recipe; may be repeated.", metavar="KEY=VALUE"),
]
Restart = Annotated[
    bool, typer.Option("--restart/--resume", help="Begin anew, or go on from the newest checkpoint in OUT.")
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave unreadable images out, instead of stopping at the first.")
]
Trackers = Annotated[
    list[str] | None,
    typer.Option("--tracker", help="A tracker of accelerate's, as tensorboard; may be repeated.", metavar="NAME"),
]
