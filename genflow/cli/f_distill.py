"""``genflow distill f-distill``: distribution matching by an f-divergence, to one or a few evaluations."""

import warnings
from pathlib import Path
from typing import Annotated

import typer

from genflow.cli.run_options import Restart, Settings, SkipBad, Trackers

__all__ = ["f_distill"]


def f_distill(
    model: Annotated[
        str,
        typer.Argument(
            help="The teacher: a shipped model's name or a saved pipeline's folder. Or a recipe: a shipped one's name "
            "or a YAML file."
        ),
    ],
    divergence: Annotated[
        str | None,
        typer.Option(
            "--divergence",
            help="reverse-kl, softened-reverse-kl, js, squared-hellinger, forward-kl, jeffreys or neyman.  "
            "[default: the recipe's, which is js]",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            help="Evaluations of the student's network for an image.  [default: the recipe's, which is 1]",
            metavar="K",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The folder of the run; the student is OUT/pipeline.  [default: runs/MODEL-f-distill]",
            show_default=False,
        ),
    ] = None,
    settings: Settings = None,
    restart: Restart = False,
    skip_bad: SkipBad = False,
    tracker: Trackers = None,
) -> None:
    """Make a student whose images have the teacher's distribution, by an f-divergence between the two.

    Real images are wanted, since a discriminator on them weighs the divergence: --set data.source=FOLDER, where no
    shipped recipe says it. reverse-kl alone goes without. Guidance is baked into the student. Ctrl-C writes a
    checkpoint; the same command goes on from there, to the same weights as if it had never stopped.

    Examples:

    \b
      genflow distill f-distill fashion-mnist --divergence js --out runs/one
      genflow distill f-distill fashion-mnist --divergence forward-kl --steps 2 --out runs/two
      genflow distill f-distill DIR --set data.source=photos --set teacher.guidance_scale=2
      genflow distill f-distill DIR --divergence reverse-kl --set iterations=5000
      accelerate launch --num_processes 4 -m genflow distill f-distill fashion-mnist
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    from genflow.distillation import f_distill as run
    from genflow.pipelines.opening import quiet

    quiet()
    named = {"divergence": divergence, "steps": steps}
    overrides = [f"{key}={value}" for key, value in named.items() if value is not None] + (settings or [])
    folder = run(model, overrides, out, restart=restart, skip_bad=skip_bad, trackers=tracker or [])
    typer.echo(f"distilled: {folder}   try it: genflow generate --model {folder}", err=True)
