"""The command that scores samples, as ``genflow evaluate`` and ``python evaluate/run.py`` have it."""

import warnings
from typing import Annotated

import typer

from genflow.evaluate import options
from genflow.files import check_output_files, write_json

__all__ = ["evaluate"]


def evaluate(
    samples: Annotated[
        str | None,
        typer.Argument(
            help="A folder, .zip or .tar of images, an .npz, .npy or IDX file, fashion-mnist[:train|:test], a data "
            "set's id, or a file of features or statistics.",
            show_default=False,
        ),
    ] = None,
    reference: options.Reference = "fashion-mnist",
    model: options.Model = None,
    num: options.Num = None,
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
    per_class: options.PerClass = False,
    train: options.Train = None,
    bootstrap: options.Bootstrap = 0,
    device: options.Device = "auto",
    batch_size: options.BatchSize = None,
    workers: options.Workers = None,
    cache: options.Cache = True,
    json_file: options.Json = None,
    report: options.Report = None,
) -> None:
    """Score images against a reference: Frechet distance, precision, recall, density, coverage, and more by --metrics.

    The Frechet distance in the features of the Inception network that papers use is called FID; in any other features
    it is FD with their name, and compares only with figures of those features. Compare figures of one reference and
    one number of samples.

    Metrics: fid or fd, fid-infinity, intra-fid, kid, is, precision, recall, density, coverage, authenticity,
    memorization, accuracy, saturation, contrast, colourfulness, clipped-share.

    Two more commands: 'genflow evaluate features SAMPLES --out FILE' keeps features and statistics, and 'genflow
    evaluate compare A B ... --reference REFERENCE' sets several sets of samples side by side. A folder called
    features or compare is given as ./features or ./compare.

    Examples:

    \b
      genflow evaluate out/
      genflow evaluate out/ --json scores.json --report scores.html
      genflow evaluate samples.zip --reference photos/ --metrics fid,kid
      genflow evaluate samples.npz --reference adm.npz --resize legacy
      genflow evaluate out/ --metrics fd,precision,recall --bootstrap 200
      genflow evaluate --model fashion-mnist --num 10000
      genflow evaluate fashion-mnist:train --count 10000
    """
    check_output_files(json=json_file, report=report)
    warnings.filterwarnings("ignore", category=FutureWarning)
    from genflow.evaluate import evaluate_in_detail, print_table
    from genflow.processes import choose_device, processes

    if model is not None:
        from genflow.pipelines.opening import quiet

        quiet()
    place = choose_device(device)
    evaluation = evaluate_in_detail(
        samples,
        reference,
        features=features,
        weights=weights,
        metrics=metrics,
        resize=resize,
        count=count,
        seed=seed,
        k=k,
        density_k=density_k,
        strict=strict,
        per_class=per_class,
        train=train,
        bootstrap=bootstrap,
        skip_bad=skip_bad,
        model=model,
        num=num,
        device=place,
        dtype=dtype,
        batch_size=batch_size,
        workers=workers,
        cache=cache,
        progress=True,
    )
    if not processes(cpu=place.type == "cpu").first:
        return
    print_table(evaluation.result)
    if json_file is not None:
        write_json(json_file, evaluation.result)
    if report is not None:
        from genflow.evaluate.report import write_report

        write_report(report, evaluation)
