"""Image data for training and evaluation: folders, numpy arrays, IDX files, Fashion-MNIST, ``datasets`` ids."""

import functools
import gzip
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from genflow.errors import InputError, check_choice, nearest
from genflow.images import GRID_NAME

__all__ = [
    "FASHION_MNIST_CLASSES",
    "IMAGE_SUFFIXES",
    "ImageData",
    "image_files",
    "load_images",
    "open_image",
    "read_idx",
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
        if path.suffix in {".npz", ".npy"}:
            return _load_numpy(path)
        return _load_idx_pair(path)
    if path.is_absolute() or str(source).startswith(".") or path.suffix or str(source).count("/") > 1:
        raise InputError(f"data.source: {str(source)!r} is neither a file nor a folder here")
    return _load_datasets(str(source), split)


def read_idx(path: str | Path) -> np.ndarray:
    """Read one IDX file of unsigned bytes (LeCun's MNIST format), gzipped or not.

    Raises:
        InputError: not an IDX file of unsigned bytes, or cut short.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as IDX: {error}") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise InputError(f"{path}: not an IDX file of unsigned bytes (it must begin with 00 00 08)")
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">u4", count=dimensions, offset=4).astype(np.int64)
    body = np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions)
    if body.size != shape.prod():
        raise InputError(f"{path}: {body.size} bytes of data where its header promises {shape.prod()}")
    return body.reshape(shape)


def _load_idx_pair(images_path: Path, class_names: tuple[str, ...] | None = None) -> ImageData:
    array = read_idx(images_path)
    if array.ndim not in (3, 4):
        raise InputError(f"{images_path}: {array.ndim} dimensions; allowed: (N, H, W) or (N, H, W, C)")
    images = torch.from_numpy(array.copy())
    images = images[:, None] if array.ndim == 3 else images.permute(0, 3, 1, 2)
    labels_path = images_path.with_name(images_path.name.replace("images", "labels").replace("idx3", "idx1"))
    labels = None
    if labels_path != images_path and labels_path.is_file():
        labels = torch.from_numpy(read_idx(labels_path).astype(np.int64))
    return ImageData(images.contiguous(), labels, class_names if labels is not None else None)


def _load_fashion_mnist(split: str) -> ImageData:
    path = _DEBIAN_FASHION_MNIST / f"{_IDX_FILES[split]}-images-idx3-ubyte.gz"
    if path.is_file():
        return _load_idx_pair(path, FASHION_MNIST_CLASSES)
    try:
        import datasets  # noqa: F401
    except ImportError:
        raise InputError(
            "data.source: Fashion-MNIST is not on this machine; install Debian's package (apt-get install "
            "dataset-fashion-mnist) or the datasets library (pip install 'genflow[data]')"
        ) from None
    loaded = _load_datasets("zalando-datasets/fashion_mnist", split)
    return ImageData(loaded.images, loaded.labels, FASHION_MNIST_CLASSES)


def _load_datasets(name: str, split: str) -> ImageData:
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"data.source: {name!r} is no file or folder here; to load it as a data set of the hub, "
            "pip install 'genflow[data]'"
        ) from None
    try:
        table = datasets.load_dataset(name, split=split)
    except Exception as error:
        raise InputError(f"data.source: {name!r} cannot be loaded ({type(error).__name__}: {error})") from error
    image_column = next((k for k, f in table.features.items() if isinstance(f, datasets.Image)), None)
    label_column = next((k for k, f in table.features.items() if isinstance(f, datasets.ClassLabel)), None)
    if image_column is None:
        raise InputError(f"data.source: {name!r} has no image column; its columns: {', '.join(table.features)}")
    images = _stack(((name, image) for image in table[image_column]), len(table))
    if label_column is None:
        return ImageData(images)
    return ImageData(images, torch.tensor(table[label_column]), tuple(table.features[label_column].names))


def _load_numpy(path: Path) -> ImageData:
    labels = None
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            array = loaded
        else:
            with loaded:
                key = next((k for k in ("arr_0", "images") if k in loaded.files), None)
                if key is None:
                    raise InputError(f"{path}: no array 'arr_0' or 'images'; it holds: {', '.join(loaded.files)}")
                array = loaded[key]
                label_key = next((k for k in ("labels", "arr_1") if k in loaded.files), None)
                labels = torch.from_numpy(loaded[label_key].astype(np.int64)) if label_key else None
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read as a numpy file: {error}") from error
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise InputError(f"{path}: {array.dtype} of shape {array.shape}; allowed: uint8 (N, H, W) or (N, H, W, C)")
    images = torch.from_numpy(np.ascontiguousarray(array))
    images = images[:, None] if array.ndim == 3 else images.permute(0, 3, 1, 2)
    return ImageData(images.contiguous(), labels)


def image_files(folder: Path) -> list[Path]:
    """The images below ``folder``, by their suffixes, in order; hidden files and folders, and genflow's grids, are
    passed over."""
    files = (p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    files = (p for p in files if p.name != GRID_NAME)
    return sorted(p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def open_image(path: Path) -> Image.Image:
    """A decoded image, closed on disk. Raises InputError, which names it, where it is damaged or empty."""
    try:
        with Image.open(path) as image:
            image.load()
            return image.copy()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "empty file" if path.stat().st_size == 0 else error
        raise InputError(
            f"{path}: unreadable image ({reason}); mend or remove it, or skip such with --skip-bad"
        ) from error


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
            mode = image.mode if image.mode in _MODE_CHANNELS else ("L" if image.mode in {"1", "I;16", "LA"} else "RGB")
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
