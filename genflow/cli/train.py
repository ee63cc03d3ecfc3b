"""``genflow train``: train a model from a recipe."""

import warnings
from pathlib import Path
from typing import Annotated

import typer

from genflow.cli.run_options import Restart, Settings, SkipBad, Trackers

__all__ = ["train"]


def train(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name (`genflow info` lists them) or a YAML file.")],
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder of the run.  [default: runs/RECIPE]", show_default=False)
    ] = None,
    restart: Restart = False,
    skip_bad: SkipBad = False,
    dynamics: Annotated[
        bool,
        typer.Option(
            "--dynamics",
            help="Log and plot sharpness, stability and spectrum of the loss: OUT/dynamics.jsonl and .png. "
            "--set dynamics.every_steps=N and others change what it costs.",
        ),
    ] = False,
    tracker: Trackers = None,
) -> None:
    """Train a model and save it as a pipeline that 'genflow generate --model' takes.

    Ctrl-C writes a checkpoint; the same command goes on from there, to the same weights as if it had never stopped.

    Examples:

    \b
      genflow train fashion-mnist
      genflow train fashion-mnist --set optimizer.lr=3e-4 --set budget.images=200000 --out runs/slow
      genflow train my-recipe.yaml --skip-bad --tracker tensorboard
      genflow train fashion-mnist --dynamics --set dynamics.every_steps=500
      accelerate launch --num_processes 4 -m genflow train fashion-mnist
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    from genflow.training import train as run

    settings = (settings or []) + (["dynamics.enabled=true"] if dynamics else [])
    folder = run(recipe, settings, out, restart=restart, skip_bad=skip_bad, trackers=tracker or [])
    from genflow.pipelines.loading import class_name, read_index

    translates = class_name(read_index(folder)) == "TranslationPipeline"
    command = "translate SOURCE" if translates else "generate"
    typer.echo(f"trained: {folder}   try it: genflow {command} --model {folder}", err=True)
