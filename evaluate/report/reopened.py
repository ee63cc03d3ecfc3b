"""The pictures behind a file of features, where they still lie where they were."""

from dataclasses import replace
from pathlib import Path

import torch

from genflow.data import fashion_mnist_file
from genflow.errors import InputError
from genflow.evaluate.evaluation import Side
from genflow.evaluate.extraction import draw_indices
from genflow.evaluate.feature_set import FeatureSet
from genflow.evaluate.sources import ImageSource, open_source

__all__ = ["with_pictures"]


def with_pictures(side: Side) -> Side:
    """The same with its source opened again, where it has none but its features say where they come from.

    Only what is on this machine is opened, and only what is proved to be the same: by the hash of the images, or, where
    none was recorded, by as many images of the same classes throughout, as for the shipped reference. Else the side
    stays as it is.
    """
    features = side.features
    name = features.protocol.get("source")
    if side.source is not None or features.features is None or not isinstance(name, str) or not _is_here(name):
        return side
    try:
        source = open_source(name)
        rows = _rows(features, source)
    except InputError:
        return side
    if rows is None:
        return side
    names = features.names or tuple(source.names[row] for row in rows)
    return Side(replace(features, names=names), source)


def _is_here(name: str) -> bool:
    """Whether opening it asks no network."""
    first, _, split = name.partition(":")
    if first == "fashion-mnist" and split in ("train", "test"):
        return fashion_mnist_file(split) is not None
    return Path(name).expanduser().exists()


def _rows(features: FeatureSet, source: ImageSource) -> list[int] | None:
    """Which images of the source the features are of, those that could not be read among them; None where in doubt.

    Raises InputError where the source has too few.
    """
    protocol = features.protocol
    skipped = len(protocol.get("skipped", []))
    drawn = None if protocol.get("seed") is None else len(features.features) + skipped
    rows = draw_indices(len(source), drawn, protocol.get("seed") or 0)
    whole = len(rows) == len(features.features) + skipped and (not skipped or features.names is not None)
    if not whole:
        return None
    recorded = protocol.get("content_sha256")
    if recorded is not None:
        return rows if source.content_hash(rows) == recorded else None
    if features.labels is None or source.labels is None or skipped:
        return None
    return rows if torch.equal(source.labels[torch.tensor(rows)], features.labels) else None
