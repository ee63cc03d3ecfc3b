"""The record of an evaluation: all that the figures depend on, and what has to be said about them."""

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL
import torch

import genflow
from genflow.evaluate.feature_set import SAMPLE_KEYS
from genflow.evaluate.measures import label
from genflow.evaluate.pair import KID_SUBSETS, MEMORIZATION_RATIO, Pair

__all__ = ["FEW_SAMPLES", "MANY_SAMPLES", "notes_on", "protocol_of", "versions", "warnings_about"]

FEW_SAMPLES, MANY_SAMPLES = 2048, 10_000
"""Below the first a Frechet distance is mostly the bias of a small sample, below the second still in part; the result
says how large it is."""

_FRECHET = ("fid", "fd")


def versions() -> dict[str, str]:
    """Of what the figures were computed with."""
    return {
        "genflow": genflow.__version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
    }


def protocol_of(pair: Pair, keys: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the figures ``keys`` depend on, safe for JSON. ``given`` is what the user named and asked for."""
    settings, ours, theirs = pair.settings, pair.generated.protocol, pair.reference.protocol
    network = {
        key: value
        for key, value in (ours if "features" in ours else theirs).items()
        if key not in SAMPLE_KEYS and key != "notes"
    }
    features = str(network.get("features", "unnamed features"))
    statistics, labels = pair.generated.statistics, pair.generated.labels
    protocol: dict[str, Any] = {
        **given,
        "count": statistics.count,
        "available": ours.get("available", statistics.count),
        "seed": ours.get("seed"),
        "labelled": 0 if labels is None else int((labels >= 0).sum()),
        "skipped": list(ours.get("skipped", [])),
        "content_sha256": ours.get("content_sha256"),
        "sampling": ours.get("sampling"),
        "reference_data": str(theirs.get("source", given["reference"])),
        "reference_count": pair.reference.statistics.count,
        "reference_sha256": theirs.get("content_sha256"),
        "reference_skipped": list(theirs.get("skipped", [])),
        "features_sha256": None,
        "resize": None,
        "dtype": None,
        **network,
        "features": features,
        "dimensions": statistics.dimensions,
        "covariance": "float64, N - 1",
        "k": settings.k,
        "density_k": settings.density_k,
        "balls": "open" if settings.strict else "closed",
        "draw_seed": settings.seed,
        "labels": {key: label(key, features) for key in keys},
        **versions(),
    }
    if "kid" in keys:
        protocol |= {"kid_subsets": KID_SUBSETS, "kid_subset_size": pair.kid_subset_size}
    if "is" in keys:
        protocol["is_splits"] = pair.is_splits
    if "memorization" in keys:
        protocol |= {"memorization_ratio": MEMORIZATION_RATIO, "train_count": len(pair.train.features)}
    figures = pair.reference.images
    protocol["reference_images"] = {key: float(figures[key].double().mean()) for key in keys if key in figures}
    return protocol


def warnings_about(pair: Pair, keys: Sequence[str]) -> list[str]:
    """What makes the figures ``keys`` less than they seem: too few samples, with what they add; left-out images."""
    lines = []
    count, theirs = pair.generated.statistics.count, pair.reference.statistics.count
    frechet = any(key in _FRECHET for key in keys)
    if count is not None and (count < MANY_SAMPLES if frechet else count < FEW_SAMPLES and "recall" in keys):
        lines.append(_few(pair, count, frechet))
    if theirs is not None and theirs < FEW_SAMPLES and frechet:
        lines.append(f"the reference has {theirs} images: figures against it compare only with each other")
    if frechet:
        lines += _singular(pair)
    skipped = pair.generated.protocol.get("skipped", [])
    if skipped:
        lines.append(f"{len(skipped)} unreadable images left out")
    left_out = pair.reference.protocol.get("skipped", [])
    if left_out:
        lines.append(f"{len(left_out)} unreadable images of the reference left out")
    labels = pair.generated.labels
    unknown = 0 if labels is None else int((labels < 0).sum())
    if unknown and unknown < len(labels) and "accuracy" in keys:
        lines.append(f"the class of {unknown} samples is not known; accuracy is that of the others")
    return lines


def notes_on(pair: Pair) -> list[str]:
    """What of the images' files is not in the figures, as alpha channels."""
    return [
        f"{text} ({count:,} {'images' if side is pair.generated else 'images of the reference'})"
        for side in (pair.generated, pair.reference)
        for text, count in dict(side.protocol.get("notes") or {}).items()
    ]


def _few(pair: Pair, count: int, frechet: bool) -> str:
    line = f"{count} samples: "
    if count < FEW_SAMPLES:
        line += f"below {FEW_SAMPLES} a Frechet distance comes out too large and recall too small"
    else:
        line += f"below {MANY_SAMPLES:,} a Frechet distance still comes out too large"
    if frechet:
        report = pair.frechet
        counts = [number for number in report.counts if number is not None]
        if report.bias >= report.distance:
            line += f", this one ({report.distance:.4g}) by about as much as it is"
        else:
            about = "about" if min(counts) > report.dimensions else "at least"
            line += f", this one ({report.distance:.4g}) by {about} {report.bias:.3g}"
    return f"{line}; compare only with figures from as many samples"


def _singular(pair: Pair) -> list[str]:
    """Where other tools' square root drops an imaginary part or adds to the diagonal."""
    report = pair.frechet
    sides = zip(("the samples", "the reference"), report.ranks, strict=True)
    low = [f"{rank} of {name}" for name, rank in sides if rank < report.dimensions]
    if not low:
        return []
    return [
        f"covariance of rank {' and '.join(low)}, {report.dimensions} dimensions: the distance is exact here, but "
        "tools that take a matrix's square root drop an imaginary part or add to the diagonal"
    ]
