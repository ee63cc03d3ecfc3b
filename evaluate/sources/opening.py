"""From what a user names to the source that reads it."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

from genflow.arrays import read_idx_pair, read_numpy
from genflow.data import FASHION_MNIST_CLASSES, FASHION_MNIST_ID, fashion_mnist_file
from genflow.errors import InputError
from genflow.evaluate.sources.arrays import ArraySource
from genflow.evaluate.sources.files import FolderSource
from genflow.evaluate.sources.source import Source

__all__ = ["is_statistics_file", "open_source"]

_FASHION_MNIST = "fashion-mnist"


def open_source(source: str | Path, *, split: str = "test", class_names: Sequence[str] | None = None) -> Source:
    """The images at ``source``, ready to be read one by one; none is read yet.

    Args:
        source: a folder of images, its sub-folders among them; a ``.zip``, ``.tar``, ``.tar.gz`` or ``.tgz`` of
            images; an ``.npz`` with ``arr_0`` (uint8 NHWC, labels in ``arr_1`` or ``labels``: ADM's form) or an
            ``.npy``; an IDX file, gzipped or not; ``fashion-mnist[:train|:test]``; else the id of a data set that the
            ``datasets`` library loads.
        split: of a data set, and of Fashion-MNIST where its name does not say.
        class_names: the classes by which labels are understood: labels are numbers among these then, -1 for others.
            By default the labels are the source's own.

    Raises:
        InputError: nothing there, nothing in it, damaged, or a statistics file.
    """
    name = str(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return FolderSource(path, name, class_names=class_names)
    if path.is_file():
        return _open_file(path, name, class_names)
    first, colon, rest = name.partition(":")
    if first == _FASHION_MNIST:
        file = fashion_mnist_file(rest if colon else split)
        if file is None:
            raise InputError(
                "samples: Fashion-MNIST is not on this machine; install Debian's package (apt-get install "
                f"dataset-fashion-mnist), or name {FASHION_MNIST_ID} where the datasets library is installed"
            )
        array, labels = read_idx_pair(file)
        return ArraySource(array, name, labels, FASHION_MNIST_CLASSES, class_names)
    raise InputError(
        f"samples: {name!r} is neither a folder nor a file here, nor {_FASHION_MNIST}[:train|:test], nor a data set's "
        "id"
    )


def _open_file(path: Path, name: str, class_names: Sequence[str] | None) -> Source:
    suffix = path.suffix.lower()
    if is_statistics_file(path) and not _holds_images(path):
        raise InputError(f"samples: {name} holds statistics of features, no images")
    if suffix in (".npz", ".npy"):
        array, labels = read_numpy(path)
    else:
        array, labels = read_idx_pair(path)
    return ArraySource(array, name, labels, None, class_names)


def is_statistics_file(path: str | Path) -> bool:
    """Whether a file holds statistics of features: an ``.npz`` with ``mu`` and ``sigma`` (pytorch-fid, clean-fid, EDM,
    ADM), or a safetensors file of genflow's. Only the list of what is in it is read."""
    path = Path(path)
    if not path.is_file():
        return False
    if path.suffix.lower() == ".safetensors":
        return True
    return path.suffix.lower() == ".npz" and {"mu.npy", "sigma.npy"} <= _members(path)


def _holds_images(path: Path) -> bool:
    return path.suffix.lower() == ".npz" and bool({"arr_0.npy", "images.npy"} & _members(path))


def _members(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return set()
