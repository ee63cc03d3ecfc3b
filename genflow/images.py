"""Pictures at the edges: files to PIL, tensors in [-1, 1] to PIL and back, grids, PNG files that remember how they
were made."""

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from genflow.errors import InputError
from genflow.files import atomic_path

__all__ = [
    "FIRST_FRAME",
    "GRID_NAME",
    "METADATA_KEY",
    "SIXTEEN_BITS",
    "UnreadableImageError",
    "decode_image",
    "grid",
    "read_metadata",
    "save_png",
    "to_pil",
    "to_uint8",
]

GRID_NAME = "grid.png"
"""The file, beside the images that a command makes, which shows all of them; no image itself."""

METADATA_KEY = "genflow"
"""The PNG text chunk that holds the JSON record of how an image was made."""

FIRST_FRAME = "of several frames the first was taken"
SIXTEEN_BITS = "of 16 bits a channel the upper 8 were taken"

_FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # of pillow's others, some run programs
_SIXTEEN_BIT_FILES = ("PNG", "PPM")  # whose mode "I" never holds more than 16 bits


class UnreadableImageError(InputError):
    """A damaged, empty or unsupported picture; ``place`` is where it lies and ``reason`` what is wrong with it."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: unreadable image ({reason}); mend or remove it, or skip such with --skip-bad")
        self.place, self.reason = place, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.place, self.reason)


def decode_image(data: bytes, place: str) -> tuple[Image.Image, tuple[str, ...]]:
    """The picture in a file's bytes, in a mode of eight bits a channel, and notes on what of it was left behind.

    Of several frames the first is taken (a note says so). Of 16 bits a channel the upper 8 are taken (noted): what
    pillow itself does to 16-bit colour, and the inverse of both usual ways to widen 8 bits, times 256 and times 257;
    pillow's own conversion of 16-bit grey clips. An EXIF orientation is not followed, as in the tools that compute FID.

    Args:
        data: of a BMP, GIF, JPEG, PNG, PPM, TIFF or WebP file, whatever its name.
        place: where the file lies, for the message.

    Raises:
        UnreadableImageError: damaged, cut short, empty, another format, more pixels than pillow's limit (a bomb), or
            32-bit integers and floats, whose range no file tells.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        deep = any("16" in str(tile[3]) for tile in image.tile) or image.mode.startswith("I;16")
        notes = (FIRST_FRAME,) if getattr(image, "is_animated", False) else ()
        image.load()
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BIT_FILES):
            deep, upper = True, (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
            info, image = image.info, Image.fromarray(upper)
            image.info = dict(info)
    except MemoryError:
        raise
    except Exception as error:  # on damaged bytes pillow's readers raise nearly anything
        if not data:
            reason = "empty file"
        elif isinstance(error, UnidentifiedImageError):
            reason = "damaged, or of no known format"
        else:
            reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImageError(place, reason) from error
    if image.mode in ("I", "F"):
        raise UnreadableImageError(place, f"mode {image.mode}: 32 bits a channel, whose range is not known")
    return image, (*notes, SIXTEEN_BITS) if deep else notes


def to_uint8(images: Tensor) -> np.ndarray:
    """``(B, C, H, W)`` in [-1, 1] to uint8 ``(B, H, W, C)``, rounded to the nearest level."""
    scaled = (images.detach().float() * 127.5 + 127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def to_pil(images: Tensor) -> list[Image.Image]:
    """``(B, C, H, W)`` in [-1, 1] with 1 (grey), 3 (RGB) or 4 (RGBA) channels to PIL images."""
    arrays = to_uint8(images)
    return [Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array) for array in arrays]


def grid(images: Sequence[Image.Image], columns: int | None = None, padding: int = 2, zoom: int = 1) -> Image.Image:
    """Lay images of one size out in rows, ``columns`` a row (the square root of their number by default)."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = (side * zoom + padding for side in images[0].size)
    sheet = Image.new(images[0].mode, (columns * width + padding, rows * height + padding))
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        tile = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST) if zoom > 1 else image
        sheet.paste(tile, (column * width + padding, row * height + padding))
    return sheet


def save_png(image: Image.Image, path: str | Path, metadata: dict[str, Any] | None = None) -> None:
    """Write a PNG atomically; ``metadata`` goes into its ``genflow`` text chunk as JSON."""
    info = PngImagePlugin.PngInfo()
    if metadata is not None:
        info.add_text(METADATA_KEY, json.dumps(metadata, sort_keys=True))
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)


def read_metadata(path: str | Path) -> dict[str, Any] | None:
    """The ``genflow`` record of a PNG, or None where it has none.

    Raises:
        InputError: the file is missing, is no image, or its record is no JSON object.
    """
    try:
        with Image.open(path) as image:
            text = image.info.get(METADATA_KEY)
        record = json.loads(text) if text else None
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (OSError, SyntaxError, ValueError) as error:  # pillow says SyntaxError of a broken PNG
        raise InputError(f"{path} cannot be read as an image: {error}") from error
    if record is not None and not isinstance(record, dict):
        raise InputError(f"{path}: its {METADATA_KEY} record is not a JSON object")
    return record
