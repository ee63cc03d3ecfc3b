"""``genflow generate``: the command's options, their help, and how they come to a request."""

import warnings
from pathlib import Path
from typing import Annotated

import typer

from genflow.cli.parsing import parse_options, parse_seeds
from genflow.files import check_output_folder

__all__ = ["generate"]

_DEFAULT_MODEL = "fashion-mnist"
_DEFAULT_SEEDS = "0-63"

_WHAT, _HOW, _WHERE = "What to make", "How to sample", "Where and how fast"


def _option(name: str, text: str, panel: str, metavar: str | None = None) -> typer.models.OptionInfo:
    return typer.Option(name, help=text, rich_help_panel=panel, metavar=metavar, show_default=False)


def generate(
    model: Annotated[
        str | None,
        _option(
            "--model",
            f"A shipped model, a saved pipeline's folder, or owner/name on the hub (default: {_DEFAULT_MODEL}).",
            _WHAT,
        ),
    ] = None,
    seeds: Annotated[
        str | None, _option("--seeds", f"Seeds, one image each, as 0-63,100 (default: {_DEFAULT_SEEDS}).", _WHAT)
    ] = None,
    classes: Annotated[
        str | None,
        _option(
            "--classes",
            "Class names or numbers, dealt out by seed: seed s gets the one at s modulo their count (default: all).",
            _WHAT,
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        _option("--prompt", "Text, for text-to-image models; several are dealt out by seed.", _WHAT, "TEXT"),
    ] = None,
    like: Annotated[
        Path | None,
        _option(
            "--like",
            "Make this image again from the record it carries; other options change what they name, "
            "and --out is again/ unless given.",
            _WHAT,
            "PNG",
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        _option(
            "--scheduler",
            "A genflow scheduler (see `genflow info`) or the name of a diffusers class (default: the model's).",
            _HOW,
        ),
    ] = None,
    scheduler_option: Annotated[
        list[str] | None,
        _option("--scheduler-option", "A setting of the scheduler; may be repeated.", _HOW, "KEY=VALUE"),
    ] = None,
    steps: Annotated[int | None, _option("--steps", "Sampling steps (default: the model's).", _HOW)] = None,
    guidance: Annotated[
        str | None,
        _option(
            "--guidance",
            "The guidance method: cfg, or apg, which oversaturates less at high scales (default: cfg).",
            _HOW,
        ),
    ] = None,
    guidance_scale: Annotated[
        float | None, _option("--guidance-scale", "Its strength; 1 is none (default: the model's).", _HOW)
    ] = None,
    guidance_option: Annotated[
        list[str] | None,
        _option(
            "--guidance-option",
            "A setting of the guidance; may be repeated. All: interval=[LOW,HIGH] in noise level, start=, stop= in "
            "fractions of the steps, rescale=; apg: eta=, norm_threshold=, momentum=.",
            _HOW,
            "KEY=VALUE",
        ),
    ] = None,
    pipeline_option: Annotated[
        list[str] | None,
        _option(
            "--pipeline-option",
            "A further argument of the pipeline, as height=512; may be repeated.",
            _HOW,
            "KEY=VALUE",
        ),
    ] = None,
    exact: Annotated[
        bool,
        _option(
            "--exact",
            "Make bytes that do not depend on which seeds are made together: batches of one fixed "
            "shape, a fixed row for each seed. --batch-size is then not used.",
            _HOW,
        ),
    ] = False,
    out: Annotated[Path | None, _option("--out", "The folder for the images (default: out).", _WHERE)] = None,
    grid: Annotated[
        bool, typer.Option("--grid/--no-grid", help="Draw OUT/grid.png of all images.", rich_help_panel=_WHERE)
    ] = True,
    batch_size: Annotated[
        int | None, _option("--batch-size", "Images made at once (default: by their size).", _WHERE)
    ] = None,
    device: Annotated[str, _option("--device", "auto, cpu, cuda, cuda:1, mps (default: auto).", _WHERE)] = "auto",
    dtype: Annotated[
        str,
        _option(
            "--dtype",
            "auto, float32, bfloat16, float16: the network's numbers (default: auto, which is float32).",
            _WHERE,
        ),
    ] = "auto",
    json_lines: Annotated[bool, _option("--json", "Print one JSON line per image on stdout.", _WHERE)] = False,
) -> None:
    """Make images, one for each seed, and a grid of them.

    Each PNG carries the settings that made it. Images that are there already with the same settings are kept, so a
    stopped run is finished by the same command; those made with other settings are made again.

    Examples:

    \b
      genflow generate
      genflow generate --seeds 0-15 --classes sneaker,bag --steps 18 --guidance-scale 2 --out shoes/
      genflow generate --scheduler heun --steps 9 --scheduler-option shift=1.5
      genflow generate --guidance apg --guidance-scale 4 --guidance-option eta=0 --guidance-option norm_threshold=2.5
      genflow generate --like out/000007.png --steps 50
      genflow generate --model runs/mine/pipeline --seeds 0-9999 --no-grid --json > images.jsonl
      genflow generate --model owner/name --prompt 'a red boat' --seeds 0-3
      accelerate launch --num_processes 4 -m genflow generate --seeds 0-49999
    """
    request_seeds = parse_seeds(seeds) if seeds is not None else None
    given = {
        "model": model,
        "scheduler": scheduler,
        "scheduler_options": parse_options("--scheduler-option", scheduler_option or []),
        "steps": steps,
        "guidance": guidance,
        "guidance_scale": guidance_scale,
        "guidance_options": parse_options("--guidance-option", guidance_option or []),
        "pipeline_options": parse_options("--pipeline-option", pipeline_option or []),
        "dtype": dtype,
        "exact": exact,
    }
    if out is not None:
        check_output_folder("--out", out)  # before the imports below, which take seconds

    warnings.filterwarnings("ignore", category=FutureWarning)  # diffusers' notes to developers, not to a user
    from genflow.cli import engine
    from genflow.cli.loading import launched
    from genflow.cli.plan import override, request_like
    from genflow.cli.report import GenerateReport
    from genflow.pipelines.opening import quiet
    from genflow.pipelines.request import Request

    prompts = prompt or []
    expected_hash = None
    if like is not None:
        request, record = request_like(like)
        request_seeds = request_seeds or [record["seed"]]
        if classes is None and record.get("class") is not None:
            classes = str(record["class"])
        prompts = prompts or ([record["prompt"]] if record.get("prompt") is not None else [])
        expected_hash = record.get("model_hash") if model is None else None
        out = out or Path("again")
    else:
        request = Request(_DEFAULT_MODEL)
    quiet()
    request = override(request, **given)
    out = out or Path("out")

    process, barrier = launched(device)
    with GenerateReport(json_lines, quiet=process[0] > 0) as report:
        result = engine.generate(
            request,
            request_seeds or parse_seeds(_DEFAULT_SEEDS),
            out,
            report,
            classes=classes,
            prompts=prompts,
            device=device,
            batch_size=batch_size,
            with_grid=grid,
            process=process,
            barrier=barrier,
            expected_hash=expected_hash,
        )
    if result.others:
        report.say(f"note: {out}/ also holds {result.others} PNG files that this command did not ask for")
    report.say(f"images: {out}/" + (f"   grid: {result.grid}" if result.grid else ""))
