"""From what a user names to the source that reads it."""

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from genflow.arrays import read_idx_pair, read_numpy
from genflow.data import FASHION_MNIST_CLASSES, FASHION_MNIST_ID, IMAGE_SUFFIXES, fashion_mnist_file
from genflow.errors import InputError, check_choice
from genflow.evaluate.sources.archives import ARCHIVE_SUFFIXES, DAMAGED, open_archive
from genflow.evaluate.sources.arrays import ArraySource
from genflow.evaluate.sources.datasets import DatasetSource
from genflow.evaluate.sources.files import FolderSource
from genflow.evaluate.sources.source import Source

__all__ = ["holds_images", "is_statistics_file", "open_source"]

_FASHION_MNIST = "fashion-mnist"
_SPLITS = ("train", "test")
_DATASET_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_SUFFIXES = (*ARCHIVE_SUFFIXES, ".npz", ".npy", ".gz", ".safetensors")  # a file that is not there, not a data set


def open_source(
    source: str | Path,
    *,
    split: str = "test",
    class_names: Sequence[str] | None = None,
    argument: str = "samples",
) -> Source:
    """The images at ``source``, ready to be read one by one; none is read yet.

    Args:
        source: a folder of images, its sub-folders among them; a ``.zip``, ``.tar``, ``.tar.gz`` or ``.tgz`` of
            images; an ``.npz`` with ``arr_0`` (uint8 NHWC, labels in ``arr_1`` or ``labels``: ADM's form) or an
            ``.npy``; an IDX file, gzipped or not; ``fashion-mnist[:train|:test]``; else the id of a data set that the
            ``datasets`` library loads.
        split: of a data set, and of Fashion-MNIST where its name does not say.
        class_names: the classes by which labels are understood: labels are numbers among these then, -1 for others.
            By default the labels are the source's own.
        argument: what errors call the source.

    Raises:
        InputError: nothing there, nothing in it, damaged, or a statistics file.
    """
    try:
        return _open(str(source), split, tuple(class_names) if class_names else None)
    except InputError as error:
        raise InputError(f"{argument}: {error}") from error


def _open(name: str, split: str, class_names: tuple[str, ...] | None) -> Source:
    if not name:
        raise InputError("got an empty name; allowed: a folder, a file, or the id of a data set")
    path = Path(name).expanduser()
    if path.is_dir():
        return FolderSource(path, name, class_names=class_names)
    if path.is_file():
        return _open_file(path, name, class_names)
    first, colon, rest = name.partition(":")
    if first == _FASHION_MNIST:
        split = check_choice("split", rest if colon else split, _SPLITS)
        file = fashion_mnist_file(split)
        if file is not None:
            array, labels = read_idx_pair(file)
            return ArraySource(array, name, labels, FASHION_MNIST_CLASSES, class_names)
        return DatasetSource(FASHION_MNIST_ID, split, own_names=FASHION_MNIST_CLASSES, class_names=class_names)
    if not _DATASET_ID.fullmatch(name) or name.lower().endswith(_SUFFIXES):
        raise InputError(
            f"{name!r} is neither a folder nor a file here, nor {_FASHION_MNIST}[:train|:test], nor a data set's id"
        )
    return DatasetSource(name, split, class_names=class_names)


def _open_file(path: Path, name: str, class_names: tuple[str, ...] | None) -> Source:
    if not path.stat().st_size:
        raise InputError(f"{name} is an empty file")
    suffix = path.suffix.lower()
    if path.name.lower().endswith(ARCHIVE_SUFFIXES):
        return open_archive(path, name, class_names)
    if suffix in IMAGE_SUFFIXES:
        raise InputError(f"{name} is one image; allowed: a folder, an archive or an array of images")
    if is_statistics_file(path) and not holds_images(path):
        raise InputError(f"{name} holds statistics of features, no images")
    array, labels = (read_numpy if suffix in (".npz", ".npy") else _read_idx)(path)
    return ArraySource(array, name, labels, None, class_names)


def _read_idx(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] != b"\x1f\x8b" and start[:3] != b"\0\0\x08":
        raise InputError(
            f"{path} is no file of images; allowed: {', '.join(ARCHIVE_SUFFIXES)}, .npz, .npy, or IDX of unsigned bytes"
        )
    return read_idx_pair(path)


def is_statistics_file(path: str | Path) -> bool:
    """Whether a file holds statistics of features: an ``.npz`` with ``mu`` and ``sigma`` (pytorch-fid, clean-fid, EDM,
    ADM), or a safetensors file of genflow's. Only the list of what is in it is read."""
    path = Path(path)
    if not path.is_file():
        return False
    if path.suffix.lower() == ".safetensors":
        return True
    return path.suffix.lower() == ".npz" and {"mu.npy", "sigma.npy"} <= _members(path)


def holds_images(path: Path) -> bool:
    """Whether an ``.npz`` holds images, beside statistics as ADM's references do or without."""
    return path.suffix.lower() == ".npz" and bool({"arr_0.npy", "images.npy"} & _members(path))


def _members(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist())
    except DAMAGED:
        return set()
