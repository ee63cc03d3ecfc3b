"""``genflow distill``: from a model of many steps to one of few."""

import typer

from genflow.cli.f_distill import f_distill
from genflow.cli.help import help_text
from genflow.cli.reflow import reflow

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})


for _name, _command in (("reflow", reflow), ("f-distill", f_distill)):
    app.command(_name, help=help_text(_command.__doc__))(_command)


def distill() -> None:
    """Make a model that needs one or a few steps out of one that needs many.

    Examples:

    \b
      genflow distill reflow fashion-mnist --out runs/reflow
      genflow distill reflow fashion-mnist --distill-steps 1 --out runs/one
      genflow distill f-distill fashion-mnist --divergence js --out runs/js
    """


app.callback(help=help_text(distill.__doc__))(distill)
