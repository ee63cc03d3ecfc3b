"""``genflow distill reflow``: straighten a model's flow by its own noise and images, and distil it to a few steps."""

import warnings
from pathlib import Path
from typing import Annotated

import typer

from genflow.cli.run_options import Settings, Trackers

__all__ = ["reflow"]


def reflow(
    model: Annotated[str, typer.Argument(help="The teacher: a shipped model's name or a saved pipeline's folder.")],
    out: Annotated[Path, typer.Option("--out", help="The folder of the run; the student is OUT/pipeline.")],
    rounds: Annotated[int, typer.Option("--rounds", help="Rounds of reflow, each from the last one's student.")] = 1,
    pairs: Annotated[
        int | None,
        typer.Option(
            "--pairs",
            help="Pairs of noise and image that a round is trained on.  [default: 50000]",
            show_default=False,
        ),
    ] = None,
    distill_steps: Annotated[
        int | None,
        typer.Option(
            "--distill-steps",
            help="After the rounds, distil to so many steps.  [default: not at all]",
            metavar="K",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="A shipped recipe or a YAML file: settings that differ from reflow's own."),
    ] = None,
    settings: Settings = None,
    restart: Annotated[
        bool, typer.Option("--restart/--resume", help="Begin anew, or go on with what OUT holds.")
    ] = False,
    tracker: Trackers = None,
) -> None:
    """Straighten a model's flow: solve its ODE for many noises, and train it again on those pairs of noise and image.

    Guidance is baked into the student, which asks its network once a step. Ctrl-C at any time; the same command goes on
    from there. OUT/reflow.json tells how straight the flow was before and after each round.

    Examples:

    \b
      genflow distill reflow fashion-mnist --pairs 50000 --out runs/reflow
      genflow distill reflow fashion-mnist --distill-steps 1 --out runs/one
      genflow distill reflow runs/reflow/pipeline --rounds 0 --distill-steps 2 --out two
      genflow distill reflow DIR --set pairs.steps=25 --set optimizer.lr=1e-4 --out r
      accelerate launch --num_processes 4 -m genflow distill reflow DIR --out r
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    from genflow.distillation import reflow as run
    from genflow.pipelines.opening import quiet

    quiet()
    folder = run(
        model,
        out,
        rounds=rounds,
        pairs=pairs,
        distill_steps=distill_steps,
        recipe=recipe,
        overrides=settings or [],
        restart=restart,
        trackers=tracker or [],
    )
    typer.echo(f"distilled: {folder}   try it: genflow generate --model {folder}", err=True)
