"""The command that sets samples side by side: ``genflow evaluate compare``."""

import warnings
from typing import Annotated

import typer

from genflow.evaluate import options
from genflow.files import check_output_files, write_json

__all__ = ["evaluate_compare"]


def evaluate_compare(
    samples: Annotated[
        list[str],
        typer.Argument(
            help="Two or more: folders, archives or arrays of images, data sets, files of features.",
            show_default=False,
        ),
    ],
    reference: options.Reference = "fashion-mnist",
    paired: Annotated[
        bool,
        typer.Option(
            "--paired", help="Sample i of each belongs to sample i of the others, as of the same seeds: finds more."
        ),
    ] = False,
    count: options.Count = None,
    seed: options.Seed = 0,
    skip_bad: options.SkipBad = False,
    features: options.Features = None,
    weights: options.Weights = None,
    resize: options.Resize = None,
    dtype: options.Dtype = "float32",
    metrics: options.Metrics = None,
    k: options.K = 3,
    density_k: options.DensityK = 5,
    strict: options.Strict = False,
    train: options.Train = None,
    bootstrap: options.Bootstrap = 200,
    device: options.Device = "auto",
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    cache: options.Cache = True,
    json_file: options.Json = None,
    report: options.Report = None,
) -> None:
    """Score several sets of samples against one reference, and tell which differences are more than chance.

    Each set is resampled (200 times unless --bootstrap says otherwise), and so is the difference of each pair; p-values
    are corrected for the number of pairs by Holm's method. The sets should be of one size: --count takes as many from
    each.

    Examples:

    \b
      genflow evaluate compare heun/ ghvb/
      genflow evaluate compare a/ b/ c/ --reference photos.safetensors
      genflow evaluate compare a/ b/ --metrics fd,precision,recall --paired
      genflow evaluate compare a.zip b.zip --json r.json --report r.html
    """
    check_output_files(json=json_file, report=report)
    warnings.filterwarnings("ignore", category=FutureWarning)
    from genflow.evaluate.compare import compare_in_detail
    from genflow.evaluate.table import print_comparison
    from genflow.processes import choose_device, processes

    place = choose_device(device)
    result, evaluations = compare_in_detail(
        samples,
        reference,
        paired=paired,
        features=features,
        weights=weights,
        metrics=metrics,
        resize=resize,
        count=count,
        seed=seed,
        k=k,
        density_k=density_k,
        strict=strict,
        train=train,
        bootstrap=bootstrap,
        skip_bad=skip_bad,
        device=place,
        dtype=dtype,
        batch_size=batch_size,
        workers=workers,
        cache=cache,
        progress=True,
    )
    if not processes(cpu=place.type == "cpu").first:
        return
    print_comparison(result)
    if json_file is not None:
        write_json(json_file, result)
    if report is not None:
        from genflow.evaluate.report import write_comparison_report

        write_comparison_report(report, result, evaluations)
