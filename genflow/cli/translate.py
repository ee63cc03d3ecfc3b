"""``genflow translate``: the command's options, their help, and how they come to a request."""

import warnings
from pathlib import Path
from typing import Annotated

import typer

from genflow.cli.parsing import parse_seeds
from genflow.cli.run_options import SkipBad
from genflow.files import check_output_folder

__all__ = ["translate"]


def translate(
    source: Annotated[
        str,
        typer.Argument(help="The images: a folder, an .npz/.npy, an IDX file, fashion-mnist, or a data set's id."),
    ],
    model: Annotated[str, typer.Option("--model", help="A saved pipeline's folder, or owner/name on the hub.")],
    out: Annotated[Path, typer.Option("--out", help="The folder for the images.")] = Path("translated"),
    direction: Annotated[
        str,
        typer.Option(
            "--direction",
            help="forward: from images like the recipe's interpolant.source to images like its data. "
            "backward: the other way.",
        ),
    ] = "forward",
    steps: Annotated[
        int | None, typer.Option("--steps", help="Sampling steps.  [default: the model's]", show_default=False)
    ] = None,
    sde: Annotated[
        float | None,
        typer.Option(
            "--sde",
            help="Noise on the way, in units of the interpolant's own: one image becomes another for each seed. 0 is "
            "the ODE, which backward undoes.  [default: the model's]",
            metavar="EPSILON",
            show_default=False,
        ),
    ] = None,
    solver: Annotated[
        str | None, typer.Option("--solver", help="euler or heun.  [default: the model's]", show_default=False)
    ] = None,
    seeds: Annotated[
        str, typer.Option("--seeds", help="With --sde: translations of each image, as 0-3; the names end in the seed.")
    ] = "0",
    split: Annotated[str, typer.Option("--split", help="train or test, of sources with splits.")] = "test",
    classes: Annotated[
        str | None, typer.Option("--classes", help="Only images of these classes, as sneaker,bag.", show_default=False)
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", help="Only so many images, the first.", show_default=False)
    ] = None,
    resize: Annotated[
        bool, typer.Option("--resize", help="Bring images to the model's size and colours, instead of refusing them.")
    ] = False,
    skip_bad: SkipBad = False,
    grid: Annotated[bool, typer.Option("--grid/--no-grid", help="Draw OUT/grid.png, before above after.")] = True,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Images at once.  [default: by their size]", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="auto (float32), float32, bfloat16, float16.")] = "auto",
    json_lines: Annotated[bool, typer.Option("--json", help="Print one JSON line per image on stdout.")] = False,
) -> None:
    """Turn images of one kind into images of another, by a model that 'genflow train' made of a recipe with an
    'interpolant' section.

    Each PNG carries the settings that made it. Images that are there already with the same settings are kept, so a
    stopped run is finished by the same command; those made with other settings are made again.

    Examples:

    \b
      genflow train fashion-mnist-shoes --out runs/shoes
      genflow translate fashion-mnist --classes sneaker --count 64 --model runs/shoes/pipeline --out boots
      genflow translate my-sneakers/ --resize --model runs/shoes/pipeline --sde 1 --seeds 0-3 --out boots
      genflow translate boots/ --direction backward --model runs/shoes/pipeline --out sneakers
      accelerate launch --num_processes 4 -m genflow translate photos/ --model DIR --out out
    """
    request_seeds = parse_seeds(seeds)
    check_output_folder("--out", out)  # before the imports below, which take seconds

    warnings.filterwarnings("ignore", category=FutureWarning)  # diffusers' notes to developers, not to a user
    from genflow.cli.loading import launched
    from genflow.cli.report import GenerateReport
    from genflow.cli.translation import TranslationRequest
    from genflow.cli.translation import translate as run
    from genflow.pipelines.opening import quiet

    quiet()
    request = TranslationRequest(
        model=model,
        source=source,
        split=split,
        classes=tuple(word.strip() for word in classes.split(",")) if classes is not None else None,
        count=count,
        direction=direction,
        steps=steps,
        epsilon=sde,
        solver=solver,
        resize=resize,
        skip_bad=skip_bad,
        dtype=dtype,
    )
    process, barrier = launched(device)
    with GenerateReport(json_lines, quiet=process[0] > 0) as report:
        result = run(
            request,
            out,
            report,
            seeds=request_seeds,
            device=device,
            batch_size=batch_size,
            with_grid=grid,
            process=process,
            barrier=barrier,
        )
    if result.others:
        report.say(f"note: {out}/ also holds {result.others} PNG files that this command did not ask for")
    report.say(f"images: {out}/" + (f"   grid: {result.grid}" if result.grid else ""))
