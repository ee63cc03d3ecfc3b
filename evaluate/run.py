"""Score samples against a reference: Frechet distance, precision, recall, density, coverage, class accuracy and more.

Runs as ``python evaluate/run.py SAMPLES`` and behind ``genflow evaluate``, with the same options.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from genflow.evaluate.command import evaluate as command
from genflow.evaluate.console import run
from genflow.evaluate.evaluation import Evaluation
from genflow.evaluate.judging import Request, judge
from genflow.evaluate.record import FEW_SAMPLES
from genflow.evaluate.sides import samples_of
from genflow.evaluate.table import print_table

__all__ = ["FEW_SAMPLES", "evaluate", "evaluate_in_detail", "print_table"]


def evaluate(
    samples: str | Path | None, reference: str | Path = "fashion-mnist", **options: Any
) -> dict[str, dict[str, Any]]:
    """The figures of :func:`evaluate_in_detail`, whose arguments these are: its ``result``, safe for JSON."""
    return evaluate_in_detail(samples, reference, **options).result


def evaluate_in_detail(
    samples: str | Path | None,
    reference: str | Path = "fashion-mnist",
    *,
    features: str | Path | None = None,
    weights: str | Path | None = None,
    metrics: str | Iterable[str] | None = None,
    resize: str | None = None,
    count: int | None = None,
    seed: int = 0,
    k: int = 3,
    density_k: int = 5,
    strict: bool = False,
    per_class: bool = False,
    train: str | Path | None = None,
    bootstrap: int = 0,
    level: float = 0.95,
    skip_bad: bool = False,
    model: str | Path | None = None,
    num: int | None = None,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    batch_size: int | None = None,
    workers: int | None = None,
    cache: bool | str | Path = True,
    progress: bool = False,
) -> Evaluation:
    """Compare samples with a reference.

    Args:
        samples: images (a folder, ``.zip`` or ``.tar``, an ``.npz``/``.npy``, an IDX file, a data set: see
            :func:`genflow.evaluate.sources.open_source`), or a file of features or statistics; None with ``model``.
        reference: the same, or a shipped reference's name or the folder of one.
        features, weights, resize, dtype: the network that sees the images, see
            :func:`genflow.metrics.create_extractor`. By default that of the reference's features; ``inception`` where
            the reference is images.
        metrics: names in :data:`genflow.evaluate.measures.MEASURES`, as a list or separated by commas; by default
            those of :data:`~genflow.evaluate.measures.DEFAULT` that can be had.
        count, seed: judge this many of the samples, drawn by ``seed``; all by default. The seed is also that of
            subsets, splits and resamples.
        k: neighbours for precision and recall (Kynkaanniemi et al. 2019 use 3).
        density_k: neighbours for density and coverage (Naeem et al. 2020 use 5).
        strict: whether a point on a ball's edge is outside, as the ``prdc`` package has it.
        per_class: give figures of each class, and the mean of the distances within classes (intra-FID).
        train: the training images or their features, for ``memorization``.
        bootstrap: resamples for intervals, 0 for none; ``level`` is theirs.
        skip_bad: leave unreadable images out and list them, instead of refusing.
        model, num: sample ``num`` images of this model, of seeds 0 to ``num - 1``, in the place of ``samples``;
            nothing is written.
        device: where features and distances are computed.
        batch_size: images at once in the network.
        workers: threads that decode.
        cache: keep features by content, see :mod:`genflow.evaluate.feature_cache`; a path is another folder.
        progress: show bars on stderr for what takes over two seconds.

    Returns:
        An :class:`~genflow.evaluate.evaluation.Evaluation`, whose ``result`` is ``{"metrics": {key: figure},
        "spreads": {key: standard deviation over subsets or splits}, "intervals": {key: {"low", "high"}}, "per_class":
        None or columns, "protocol": {...}}``, safe for JSON. The protocol holds everything that the figures depend on,
        ``notes`` and ``warnings``.

    Raises:
        InputError: what is asked for cannot be had; samples or reference missing, damaged, or too few. All that can be
            told beforehand is told before any image is seen.
    """
    request = Request(
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
        level=level,
        skip_bad=skip_bad,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        workers=workers,
        cache=cache,
        progress=progress,
    )
    return judge([samples_of(samples, model, num, device=device)], reference, request)[0]


if __name__ == "__main__":
    run(command)
