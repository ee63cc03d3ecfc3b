"""``genflow evaluate``: score a set of images against a reference."""

import warnings
from pathlib import Path
from typing import Annotated

import typer

from genflow.files import write_json

__all__ = ["evaluate"]


def evaluate(
    samples: Annotated[
        str,
        typer.Argument(help="A folder of images, an .npz, .npy or IDX file, or fashion-mnist[:train|:test]."),
    ],
    reference: Annotated[
        str, typer.Option("--reference", help="A shipped reference, or the folder of one.")
    ] = "fashion-mnist",
    count: Annotated[
        int | None, typer.Option("--count", help="Judge this many, drawn by --seed.  [default: all]")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of that draw.")] = 0,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave unreadable images out and say so, instead of stopping.")
    ] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write metrics and protocol here too.", metavar="FILE")
    ] = None,
) -> None:
    """Score images: Frechet distance, precision, recall, density, coverage, and class accuracy where classes are known.

    The Frechet distance is taken in the features of the reference's own classifier; compare it only with figures of the
    same reference and the same number of samples.

    Examples:

    \b
      genflow evaluate out/
      genflow evaluate out/ --reference fashion-mnist --json scores.json
      genflow evaluate fashion-mnist:train --count 10000
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    from genflow.cli.loading import choose_device
    from genflow.evaluate import run

    place = choose_device(device)
    result = run.evaluate(samples, reference, count=count, seed=seed, skip_bad=skip_bad, device=place, progress=True)
    run.print_table(result)
    if json_file is not None:
        write_json(json_file, result)
