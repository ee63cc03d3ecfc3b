"""Image data for training and evaluation: folders, numpy arrays, IDX files, Fashion-MNIST, ``datasets`` ids."""

import functools
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from genflow.arrays import read_idx_pair, read_numpy
from genflow.errors import InputError, check_choice, nearest
from genflow.images import GRID_NAME, UnreadableImageError, decode_image

__all__ = [
    "FASHION_MNIST_CLASSES",
    "FASHION_MNIST_ID",
    "IMAGE_SUFFIXES",
    "ImageData",
    "fashion_mnist_file",
    "image_files",
    "is_image_name",
    "load_images",
    "natural_key",
    "open_image",
    "open_table",
]

FASHION_MNIST_CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

FASHION_MNIST_ID = "zalando-datasets/fashion_mnist"
"""Its name as a data set of the hub."""

_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_IDX_FILES = {"train": "train", "test": "t10k"}
_MODE_CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}


@dataclass(frozen=True)
class ImageData:
    """Images of one size in memory.

    Attributes:
        images: uint8 ``(N, C, H, W)``.
        labels: int64 ``(N,)``, or None where the data has no classes.
        class_names: one name a class, or None.
        names: where each image lies, as a path below the folder it came from, or None.
    """

    images: Tensor
    labels: Tensor | None = None
    class_names: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise InputError(
                f"images: got {self.images.dtype} of shape {tuple(self.images.shape)}; allowed: uint8 (N, C, H, W)"
            )
        if len(self.images) == 0:
            raise InputError("images: got none; allowed: at least one")
        if self.labels is not None and len(self.labels) != len(self.images):
            raise InputError(f"labels: got {len(self.labels)} for {len(self.images)} images; allowed: one an image")

    def __len__(self) -> int:
        return len(self.images)

    @functools.cached_property
    def num_classes(self) -> int | None:
        if self.labels is None:
            return None
        return len(self.class_names) if self.class_names else int(self.labels.max()) + 1

    def select(self, classes: Sequence[str | int]) -> "ImageData":
        """The images of some classes alone, in the order they had; a label is now the place in ``classes``.

        One class alone makes images without labels.

        Args:
            classes: names or numbers.

        Raises:
            InputError: an unknown class or one named twice, none at all, or images without labels.
        """
        if self.labels is None:
            raise InputError(f"classes: {list(classes)!r} of images without labels; allowed: none")
        numbers = [self._class_number(name) for name in classes]
        if not numbers or len(set(numbers)) < len(numbers):
            raise InputError(f"classes: {list(classes)!r}; allowed: one or more, none twice")
        place = torch.full((self.num_classes,), -1)
        place[numbers] = torch.arange(len(numbers))
        labels = place[self.labels]
        kept = torch.nonzero(labels >= 0)[:, 0]
        if len(kept) == 0:
            raise InputError(f"classes: there is no image of {list(classes)!r}")
        return ImageData(
            self.images[kept],
            labels[kept] if len(numbers) > 1 else None,
            tuple(self.class_names[number] for number in numbers) if self.class_names and len(numbers) > 1 else None,
            tuple(self.names[index] for index in kept.tolist()) if self.names else None,
        )

    def _class_number(self, name: str | int) -> int:
        names = self.class_names or ()
        if str(name) in names:
            return names.index(str(name))
        if str(name).isdecimal() and int(name) < self.num_classes:
            return int(name)
        known = ", ".join(names) or "none, these classes have no names"
        raise InputError(
            f"classes: {name!r} is not known{nearest(str(name), names)}; allowed: 0 to {self.num_classes - 1}, "
            f"or a name: {known}"
        )


def load_images(
    source: str | Path, split: str = "train", *, skip_bad: bool = False, classes: Sequence[str | int] | None = None
) -> ImageData:
    """Load images and, where there are any, labels.

    Args:
        source: ``"fashion-mnist"`` (Debian's dataset-fashion-mnist package where installed, else the
            ``datasets`` library); a folder of images, whose sub-folders are the classes; an ``.npz`` with
            ``arr_0`` (uint8 NHWC, and labels in ``arr_1`` or ``labels``) or an ``.npy``; an IDX image file,
            gzipped or not, whose labels lie beside it under the usual name; else the id of a data set.
        split: ``"train"`` or ``"test"``, for the sources that have splits.
        skip_bad: leave unreadable images of a folder out, with one warning, instead of refusing.
        classes: only images of these, see :meth:`ImageData.select`.

    Raises:
        InputError: nothing there, an unreadable image (named), images of several sizes, labels that do not fit.
    """
    check_choice("split", split, _IDX_FILES)
    data = _load(source, split, skip_bad)
    return data if classes is None else data.select(classes)


def _load(source: str | Path, split: str, skip_bad: bool) -> ImageData:
    if str(source) == "fashion-mnist":
        return _load_fashion_mnist(split)
    path = Path(source).expanduser()
    if path.is_dir():
        return _load_folder(path, skip_bad)
    if path.is_file():
        return _image_data(*(read_numpy if path.suffix in {".npz", ".npy"} else read_idx_pair)(path))
    if path.is_absolute() or str(source).startswith(".") or path.suffix or str(source).count("/") > 1:
        raise InputError(f"data.source: {str(source)!r} is neither a file nor a folder here")
    return _load_datasets(str(source), split)


def _image_data(array: np.ndarray, labels: np.ndarray | None, class_names: tuple[str, ...] | None = None) -> ImageData:
    images = torch.from_numpy(np.array(array[:, None] if array.ndim == 3 else array.transpose(0, 3, 1, 2)))
    if labels is None:
        return ImageData(images)
    return ImageData(images, torch.from_numpy(labels), class_names)


def fashion_mnist_file(split: str) -> Path | None:
    """Fashion-MNIST's images (IDX, gzipped) where Debian's package is installed."""
    path = _DEBIAN_FASHION_MNIST / f"{_IDX_FILES[check_choice('split', split, _IDX_FILES)]}-images-idx3-ubyte.gz"
    return path if path.is_file() else None


def _load_fashion_mnist(split: str) -> ImageData:
    path = fashion_mnist_file(split)
    if path is not None:
        return _image_data(*read_idx_pair(path), FASHION_MNIST_CLASSES)
    loaded = _load_datasets(FASHION_MNIST_ID, split)
    return ImageData(loaded.images, loaded.labels, FASHION_MNIST_CLASSES)


def open_table(name: str, split: str) -> tuple[Any, str, str | None]:
    """A table of the ``datasets`` library, with the names of its columns of images and (or None) of classes.

    Raises InputError where the library is not installed, where the data set is not to be had, or without images.
    """
    try:
        import datasets
    except ImportError:
        debian = ", or apt-get install dataset-fashion-mnist" if name == FASHION_MNIST_ID else ""
        raise InputError(
            f"{name!r} is no file or folder here; to load it as a data set of the hub, "
            f"pip install 'genflow[data]'{debian}"
        ) from None
    try:
        table = datasets.load_dataset(name, split=split)
    except Exception as error:
        raise InputError(f"{name!r} cannot be loaded ({type(error).__name__}: {error})") from error
    image_column = next((k for k, f in table.features.items() if isinstance(f, datasets.Image)), None)
    label_column = next((k for k, f in table.features.items() if isinstance(f, datasets.ClassLabel)), None)
    if image_column is None:
        raise InputError(f"{name!r} has no image column; its columns: {', '.join(table.features)}")
    return table, image_column, label_column


def _load_datasets(name: str, split: str) -> ImageData:
    try:
        table, image_column, label_column = open_table(name, split)
    except InputError as error:
        raise InputError(f"data.source: {error}") from error
    images = _stack(((name, image) for image in table[image_column]), len(table))
    if label_column is None:
        return ImageData(images)
    return ImageData(images, torch.tensor(table[label_column]), tuple(table.features[label_column].names))


def natural_key(path: str) -> tuple[Any, ...]:
    """A key by which ``9.png`` stands before ``10.png``, folder by folder."""
    parts = (re.split(r"([0-9]+)", part) for part in path.split("/"))
    return tuple(tuple(int(p) if i % 2 else p for i, p in enumerate(part)) for part in parts), path


def is_image_name(path: str) -> bool:
    """Whether a path inside a folder or an archive is that of an image: by its suffix. Hidden files and folders, and
    genflow's grids, are none."""
    parts = path.split("/")
    hidden = any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in parts)
    if hidden or parts[-1] == GRID_NAME:
        return False
    return os.path.splitext(parts[-1])[1].lower() in IMAGE_SUFFIXES


def image_files(folder: Path) -> list[Path]:
    """The images below ``folder`` (see :func:`is_image_name`), in natural order (see :func:`natural_key`).

    Raises InputError: a folder that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be listed ({error.strerror})") from error

    found = []
    for root, inner, files in os.walk(folder, onerror=refuse):
        inner[:] = [name for name in inner if not name.startswith(".")]
        below = os.path.relpath(root, folder).replace(os.sep, "/")
        found += [file if below == "." else f"{below}/{file}" for file in files]
    return [folder / path for path in sorted(filter(is_image_name, found), key=natural_key)]


def open_image(path: Path) -> Image.Image:
    """A decoded image (see :func:`genflow.images.decode_image`). Raises InputError, which names it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableImageError(str(path), error.strerror or str(error)) from error
    return decode_image(data, str(path))[0]


def _load_folder(folder: Path, skip_bad: bool) -> ImageData:
    files = image_files(folder)
    if not files:
        raise InputError(f"data.source: {folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    classes = sorted({p.relative_to(folder).parts[0] for p in files if len(p.relative_to(folder).parts) > 1})
    flat = [p for p in files if len(p.relative_to(folder).parts) == 1]
    if classes and flat:
        raise InputError(f"data.source: {flat[0]} lies beside the class folders of {folder}; allowed: one or the other")

    kept: list[Path] = []
    bad: list[str] = []

    def readable() -> Sequence[tuple[str, Image.Image]]:
        for path in files:
            try:
                loaded = open_image(path)
            except InputError:
                if not skip_bad:
                    raise
                bad.append(str(path))
                continue
            kept.append(path)
            yield str(path), loaded

    images = _stack(readable(), len(files))
    if bad:
        warnings.warn(f"skipped {len(bad)} unreadable image(s): {', '.join(bad[:5])}", stacklevel=3)
    names = tuple(p.relative_to(folder).as_posix() for p in kept)
    if not classes:
        return ImageData(images, names=names)
    index = {name: i for i, name in enumerate(classes)}
    labels = torch.tensor([index[p.relative_to(folder).parts[0]] for p in kept])
    return ImageData(images, labels, tuple(classes), names)


def _stack(named_images: Sequence[tuple[str, Image.Image]], total: int) -> Tensor:
    """Stack PIL images into uint8 (N, C, H, W), in the first one's mode; all must have its size."""
    arrays: list[np.ndarray] = []
    mode, size = "", (0, 0)
    for name, image in tqdm(named_images, total=total, desc="reading images", delay=2, leave=False):
        if not arrays:
            mode = image.mode if image.mode in _MODE_CHANNELS else ("L" if image.mode in {"1", "LA"} else "RGB")
            size = image.size
        if image.size != size:
            raise InputError(
                f"{name}: {image.size[0]}x{image.size[1]} pixels where the first image has {size[0]}x{size[1]}"
            )
        arrays.append(np.asarray(image.convert(mode)))
    if not arrays:
        raise InputError("images: none could be read")
    stacked = torch.from_numpy(np.stack(arrays))
    return (stacked[:, None] if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2)).contiguous()
