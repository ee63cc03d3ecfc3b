"""``genflow evaluate``: a command of its own, and the group of ``features`` and ``compare``."""

from typing import Any

import typer
from typer.core import TyperGroup

from genflow.cli.help import help_text
from genflow.evaluate.command import evaluate
from genflow.evaluate.compare_command import evaluate_compare
from genflow.evaluate.features_command import evaluate_features

__all__ = ["app"]

_OWN = "evaluate"


class CommandAndGroup(TyperGroup):
    """A group that is also a command: what does not begin with the name of a sub-command is for the command itself."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.own = self.commands.pop(_OWN)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the command where the first word is not the name of a sub-command."""
        if args and args[0] in self.commands:
            return super().make_context(info_name, args, parent, **extra)
        return self.own.make_context(info_name, args, parent, **extra)


app = typer.Typer(cls=CommandAndGroup, context_settings={"help_option_names": ["-h", "--help"]})


for _name, _command in ((_OWN, evaluate), ("features", evaluate_features), ("compare", evaluate_compare)):
    app.command(_name, help=help_text(_command.__doc__))(_command)


def group() -> None:
    """Score a set of images against a reference."""


app.callback(help=help_text(group.__doc__))(group)
