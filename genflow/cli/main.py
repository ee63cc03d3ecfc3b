"""The ``genflow`` command: its sub-commands, and what a failure looks like.

Exit status: 0 success, 1 failure, 2 bad input (one line on stderr that says what is wrong and what is allowed),
130 stopped by Ctrl-C; ``GENFLOW_TRACEBACK=1`` shows where bad input was refused. Torch and diffusers are imported
inside the commands, so that ``--help`` is quick.
"""

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from genflow import __version__
from genflow.cli.compare import compare
from genflow.cli.distill import app as distill
from genflow.cli.evaluate import app as evaluate
from genflow.cli.generate import generate
from genflow.cli.help import help_text
from genflow.cli.info import info
from genflow.cli.train import train
from genflow.cli.translate import translate
from genflow.errors import DivergedError, InputError, NonFiniteError

__all__ = ["app", "main", "run"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


for _command in (generate, translate, compare, train, info):
    app.command(help=help_text(_command.__doc__))(_command)
app.add_typer(distill, name="distill")
app.add_typer(evaluate, name="evaluate")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"genflow {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Diffusion and flow models: train, sample and score them. Any model, any path, any solver, any guidance.

    'genflow COMMAND --help' shows worked examples.
    """


def _fail(message: object, status: int) -> int:
    line = " ".join(str(message).split())
    sys.stderr.write(f"genflow: error: {line}\n")
    return status


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; ``arguments`` are those after the program's name."""
    try:
        status = app(args=arguments, prog_name="genflow", standalone_mode=False)
        sys.stdout.flush()
    except InputError as error:
        if os.environ.get("GENFLOW_TRACEBACK"):
            traceback.print_exc()
        return _fail(error, 2)
    except (DivergedError, NonFiniteError) as error:
        return _fail(error, 1)
    except (KeyboardInterrupt, typer.Abort):
        return _stopped()
    except BrokenPipeError:  # the reader of our output went away, as in `genflow info | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        full = " (free some space and run the same command again)" if error.errno == errno.ENOSPC else ""
        return _fail(f"{where}{error.strerror or error}{full}", 1)
    except ImportError as error:
        return _fail(f"{error}; `genflow info` looks for a broken installation", 1)
    except Exception as error:
        if hasattr(error, "format_message"):  # what typer says of a wrong option or argument
            return _fail(f"{error.format_message()} (see `{_usage(error)} --help`)", 2)
        if "torchvision" in str(error):
            return _fail(f"{error} - torchvision does not match torch; `genflow info` prints the mend", 1)
        raise
    if status == 130:
        return _stopped()
    return status if isinstance(status, int) else 0


def _stopped() -> int:
    sys.stderr.write("genflow: stopped\n")
    return 130


def _usage(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context is not None else "genflow"


def main() -> NoReturn:
    """The console script's entry."""
    status = run()
    processes = sys.modules.get("genflow.processes")  # where no command has imported it, there is nothing to leave
    if status == 0 and processes is not None:
        processes.leave_processes()
    sys.exit(status)
