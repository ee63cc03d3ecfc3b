"""Score samples against a reference: Frechet distance, precision, recall, density, coverage, class accuracy.

Runs as ``python evaluate/run.py SAMPLES`` and behind ``genflow evaluate``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import genflow
from genflow.errors import InputError
from genflow.evaluate.console import progress_bar, run
from genflow.evaluate.evaluation import Evaluation, Side
from genflow.evaluate.feature_set import FeatureSet
from genflow.evaluate.reference import load_reference
from genflow.evaluate.samples import load_samples
from genflow.files import write_json
from genflow.metrics.accuracy import class_accuracy
from genflow.metrics.frechet import frechet_distance_from_statistics
from genflow.metrics.neighbours import neighbour_metrics
from genflow.metrics.statistics import FeatureStatistics

__all__ = ["FEW_SAMPLES", "evaluate", "evaluate_in_detail", "print_table"]

FEW_SAMPLES = 2048
"""Below this many samples a Frechet distance is mostly the bias of a small sample; the result says so."""


def evaluate(samples: str | Path | None, reference: str | Path = "fashion-mnist", **options: Any) -> dict[str, Any]:
    """:func:`evaluate_in_detail`, its figures alone: ``{"metrics", "spreads", "intervals", "per_class", "protocol"}``."""
    return evaluate_in_detail(samples, reference, **options).result


def evaluate_in_detail(
    samples: str | Path | None,
    reference: str | Path = "fashion-mnist",
    *,
    features: str | Path | None = None,
    weights: str | Path | None = None,
    metrics: Sequence[str] | None = None,
    resize: str | None = None,
    count: int | None = None,
    seed: int = 0,
    k: int = 3,
    density_k: int = 5,
    strict: bool = False,
    per_class: bool = False,
    train: str | Path | None = None,
    bootstrap: int = 0,
    skip_bad: bool = False,
    model: str | Path | None = None,
    num: int | None = None,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    batch_size: int | None = None,
    workers: int | None = None,
    cache: bool | Path = True,
    progress: bool = False,
) -> Evaluation:
    """Compare samples with a reference."""
    ref = load_reference(reference, device=device)
    given = load_samples(
        samples,
        ref.extractor.image_shape,
        class_names=ref.extractor.class_names,
        count=count,
        seed=seed,
        skip_bad=skip_bad,
        progress=progress,
    )
    number = len(given.images)
    if number < max(k + 1, 2):
        raise InputError(f"samples: {number} of {samples} can be judged; at least {max(k + 1, 2)} are needed")
    with progress_bar("features", number, progress) as advance:
        features = ref.extractor(given.images, advance)
    fd = frechet_distance_from_statistics(FeatureStatistics.from_features(features.values), ref.statistics)
    with progress_bar("neighbours", 2 * len(ref.features) + number, progress) as advance:
        place = "cpu" if torch.device(device).type == "mps" else device  # mps has no float64
        covering = neighbour_metrics(
            ref.features.to(place), features.values.to(place), k=k, density_k=density_k, progress=advance
        )
    figures = {
        "fd": fd,
        "precision": covering.precision,
        "recall": covering.recall,
        "density": covering.density,
        "coverage": covering.coverage,
    }
    labelled = int((given.labels >= 0).sum())
    if labelled:
        figures["accuracy"] = class_accuracy(features.predicted, given.labels)
    warnings = []
    if number < FEW_SAMPLES:
        warnings.append(
            f"{number} samples: below {FEW_SAMPLES} the Frechet distance comes out too large and recall too small; "
            "compare only with figures from as many samples"
        )
    if given.skipped:
        warnings.append(f"{len(given.skipped)} unreadable images left out")
    if 0 < labelled < number:
        warnings.append(f"the class of {number - labelled} samples is not known; accuracy is that of the others")
    protocol = {
        "samples": str(samples),
        "count": number,
        "available": given.available,
        "seed": seed if count is not None else None,
        "labelled": labelled,
        "skipped": given.skipped,
        "reference": str(reference),
        "reference_data": ref.description,
        "reference_count": len(ref.features),
        "features": ref.extractor.name,
        "features_sha256": ref.extractor.sha256,
        "dimensions": ref.statistics.dimensions,
        "covariance": "float64, N - 1",
        "k": k,
        "density_k": density_k,
        "balls": "closed",
        "genflow": genflow.__version__,
        "torch": str(torch.__version__),
        "warnings": warnings,
    }
    result = {"metrics": figures, "protocol": protocol}
    ours = FeatureSet(FeatureStatistics.from_features(features.values), {}, features.values)
    return Evaluation(result, Side(ours), Side(FeatureSet(ref.statistics, {}, ref.features, ref.labels)))


def print_table(result: dict[str, dict[str, Any]], console: Console | None = None) -> None:
    """Print what :func:`evaluate` returned, its protocol in the caption and its warnings below."""
    console = console or Console()
    metrics, protocol = result["metrics"], result["protocol"]
    name = Path(protocol["reference"]).name
    rows = {
        "fd": (f"FD ({name})", "{:.4f}", "0 is best; squared Frechet distance in the reference classifier's features"),
        "precision": ("precision", "{:.4f}", f"share of samples near real images (k = {protocol['k']})"),
        "recall": ("recall", "{:.4f}", f"share of real images near samples (k = {protocol['k']})"),
        "density": ("density", "{:.4f}", f"real balls a sample is in, over k = {protocol['density_k']}"),
        "coverage": ("coverage", "{:.4f}", "share of real balls with a sample inside"),
        "accuracy": ("accuracy", "{:.2%}", f"of {protocol['labelled']} samples whose class is known"),
    }
    table = Table(title=f"{protocol['count']} samples of {protocol['samples']}")
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_column("meaning")
    for key, (label, form, meaning) in rows.items():
        if key in metrics:
            table.add_row(label, form.format(metrics[key]), meaning)
    table.caption = (
        f"against {protocol['reference_count']} images ({protocol['reference_data']}), "
        f"{protocol['dimensions']} features of {protocol['features']} {protocol['features_sha256'][:12]}"
    )
    console.print(table)
    for warning in protocol["warnings"]:
        console.print(f"warning: {warning}", style="yellow", highlight=False)


def main(
    samples: Annotated[str, typer.Argument(help="A folder, .npz, .npy or IDX file, or fashion-mnist[:train|:test].")],
    reference: Annotated[str, typer.Option(help="A shipped reference or the folder of one.")] = "fashion-mnist",
    count: Annotated[int | None, typer.Option(help="Judge this many, drawn by --seed.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unreadable images out.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write metrics and protocol here.")] = None,
) -> None:
    """Score samples against reference features; print a table."""
    result = evaluate(samples, reference, count=count, seed=seed, skip_bad=skip_bad, device=device, progress=True)
    print_table(result)
    if json_file is not None:
        write_json(json_file, result)


if __name__ == "__main__":
    run(main)
