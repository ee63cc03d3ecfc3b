"""Samples to be judged: a folder of generated images with what their files remember, an array, or real data."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genflow.data import image_files, load_images, open_image
from genflow.errors import InputError, check_number
from genflow.evaluate.console import progress_bar
from genflow.images import METADATA_KEY

__all__ = ["Samples", "load_samples"]

_EIGHT_BIT = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"})


@dataclass(frozen=True)
class Samples:
    """uint8 images ``(N, C, H, W)``; int64 labels ``(N,)``, -1 where unknown; how many there were; files left out."""

    images: Tensor
    labels: Tensor
    source: str
    available: int
    skipped: list[str] = field(default_factory=list)


def load_samples(
    source: str | Path,
    shape: tuple[int, int, int],
    *,
    class_names: Sequence[str] | None = None,
    count: int | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    progress: bool = True,
) -> Samples:
    """Read samples of ``shape`` (channels, height, width).

    Args:
        source: a folder of images (sub-folders too; ``grid.png`` and hidden files are passed over), whose labels are
            what their PNG metadata says; an ``.npz``/``.npy`` of uint8 images; an IDX file; or
            ``fashion-mnist[:train|:test]``.
        class_names: the classes by whose names the metadata's are understood.
        count: this many, drawn without replacement by ``seed``; all by default.
        skip_bad: leave unreadable images of a folder out, and list them, instead of refusing.

    Raises InputError: nothing there, fewer than ``count``, an unreadable image or one of another size (both named).
    """
    name, _, split = str(source).partition(":")
    if name == "fashion-mnist" and not Path(source).exists():
        data = load_images(name, split=split or "test")
    elif Path(source).is_dir():
        files = _image_files(Path(source))
        chosen = [files[i] for i in _choose(len(files), count, seed)]
        images, labels, skipped = _read_folder(chosen, shape, class_names, skip_bad, progress)
        return Samples(images, labels, str(source), len(files), skipped)
    elif Path(source).is_file():
        data = load_images(source)
    else:
        raise InputError(
            f"samples: {str(source)!r} is neither a folder nor a file here, nor fashion-mnist[:train|:test]"
        )
    if tuple(data.images.shape[1:]) != shape:
        raise InputError(
            f"samples: {source} holds images of {_size(data.images.shape[1:])}; the reference's are {_size(shape)}"
        )
    labels = data.labels if data.labels is not None else torch.full((len(data),), -1)
    index = torch.tensor(_choose(len(data), count, seed))
    return Samples(data.images[index], labels[index], str(source), len(data))


def _choose(available: int, count: int | None, seed: int) -> list[int]:
    if count is None:
        return list(range(available))
    check_number("count", count, at_least=1, integer=True)
    if count > available:
        raise InputError(f"count: got {count}; there are {available} samples")
    return np.sort(np.random.default_rng(seed).permutation(available)[:count]).tolist()


def _image_files(folder: Path) -> list[Path]:
    files = image_files(folder)
    if not files:
        raise InputError(f"samples: {folder} holds no image")
    return files


def _read_folder(
    files: list[Path],
    shape: tuple[int, int, int],
    class_names: Sequence[str] | None,
    skip_bad: bool,
    progress: bool,
) -> tuple[Tensor, Tensor, list[str]]:
    arrays, labels, skipped = [], [], []
    with progress_bar("reading images", len(files), progress) as advance:
        for file in files:
            try:
                image = open_image(file)
            except InputError:
                if not skip_bad:
                    raise
                skipped.append(str(file))
            else:
                arrays.append(_to_array(image, file, shape))
                labels.append(_label(image.info.get(METADATA_KEY), class_names))
            advance(1)
    if not arrays:
        raise InputError(f"samples: none of {len(files)} images could be read")
    return torch.from_numpy(np.stack(arrays)), torch.tensor(labels), skipped


def _to_array(image: Image.Image, file: Path, shape: tuple[int, int, int]) -> np.ndarray:
    channels, height, width = shape
    if image.size != (width, height):
        raise InputError(
            f"samples: {file} is {image.size[0]}x{image.size[1]} pixels; the reference's images are {width}x{height}"
        )
    if image.mode not in _EIGHT_BIT:
        raise InputError(f"samples: {file} has mode {image.mode}; allowed: images of eight bits a channel")
    array = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _label(text: str | None, class_names: Sequence[str] | None) -> int:
    """The class that an image's metadata records, or -1; a name counts before a number, since numbers are a model's."""
    try:
        record = json.loads(text) if text else {}
    except ValueError:
        return -1
    number, name = record.get("class"), record.get("class_name")
    if name is not None and class_names:
        return class_names.index(name) if name in class_names else -1
    known = isinstance(number, int) and not isinstance(number, bool) and number >= 0
    return number if known and (not class_names or number < len(class_names)) else -1


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, (*shape[1:], shape[0])))
