"""Options that ``genflow evaluate``, its sub-commands and ``evaluate/run.py`` have in common: their names and help."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "BatchSize",
    "Bootstrap",
    "Cache",
    "Count",
    "DensityK",
    "Device",
    "Dtype",
    "Features",
    "Json",
    "K",
    "Metrics",
    "Model",
    "Num",
    "PerClass",
    "Reference",
    "Report",
    "Resize",
    "Seed",
    "SkipBad",
    "Strict",
    "Train",
    "Weights",
    "Workers",
]

_FEATURES, _MEASURES, _SPEED, _OUTPUT = "Features", "Measures", "Where and how fast", "Output"


def _option(name: str, text: str, panel: str, metavar: str | None = None) -> typer.models.OptionInfo:
    return typer.Option(name, help=text, rich_help_panel=panel, metavar=metavar, show_default=False)


Reference = Annotated[
    str,
    typer.Option("--reference", help="A shipped reference, images as SAMPLES are, a file of features or statistics."),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Sample this model in the place of SAMPLES, nothing is written: a shipped one, a folder, owner/name.",
        show_default=False,
    ),
]
Num = Annotated[
    int | None, typer.Option("--num", help="So many samples of it, of seeds 0 to N - 1.", show_default=False)
]
Count = Annotated[
    int | None, typer.Option("--count", help="Judge this many, drawn by --seed (default: all).", show_default=False)
]
Seed = Annotated[int, typer.Option("--seed", help="Of every draw: images, subsets, resamples.")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave unreadable images out and say so, instead of stopping.")
]

Features = Annotated[
    str | None,
    _option(
        "--features",
        "inception, dinov2, clip, fashion-mnist, a network's folder or a TorchScript file (default: the reference's "
        "own; inception for images).",
        _FEATURES,
        "NAME|PATH",
    ),
]
Weights = Annotated[
    Path | None, _option("--weights", "The network's weights, where they are not in their place.", _FEATURES, "FILE")
]
Resize = Annotated[
    str | None,
    _option(
        "--resize",
        "clean (antialiased, as clean-fid), legacy (TF1's bilinear, as torch-fidelity and ADM), legacy-pytorch (as "
        "pytorch-fid) or none (default: the network's own).",
        _FEATURES,
        "MODE",
    ),
]
Dtype = Annotated[
    str, _option("--dtype", "float32, bfloat16 or auto: the network's numbers (default: float32).", _FEATURES)
]

Metrics = Annotated[
    str | None, _option("--metrics", "Names, separated by commas (default: by what is known).", _MEASURES, "NAME,...")
]
K = Annotated[int, _option("--k", "Neighbours for precision, recall and authenticity (default: 3).", _MEASURES)]
DensityK = Annotated[int, _option("--density-k", "Neighbours for density and coverage (default: 5).", _MEASURES)]
Strict = Annotated[bool, _option("--strict", "Count a point on a ball's edge as outside, as prdc does.", _MEASURES)]
PerClass = Annotated[
    bool, _option("--per-class", "A table of classes, and the mean over classes of the distance within.", _MEASURES)
]
Train = Annotated[
    str | None, _option("--train", "The training images or their features, for memorization.", _MEASURES, "DATA")
]
Bootstrap = Annotated[
    int, _option("--bootstrap", "Resamples for intervals, as 200 (default: 0, none).", _MEASURES, "DRAWS")
]

Device = Annotated[str, _option("--device", "auto, cpu, cuda, cuda:1, mps (default: auto).", _SPEED)]
BatchSize = Annotated[int | None, _option("--batch-size", "Images at once in the network.", _SPEED)]
Workers = Annotated[int | None, _option("--workers", "Threads that decode images.", _SPEED)]
Cache = Annotated[
    bool, _option("--cache/--no-cache", "Keep features by the images' and the network's content.", _SPEED)
]

Json = Annotated[Path | None, _option("--json", "Write figures and protocol here too.", _OUTPUT, "FILE")]
Report = Annotated[
    Path | None, _option("--report", "Write a page of pictures, plots and figures here.", _OUTPUT, "FILE.html")
]
