"""Pictures at the edges: tensors in [-1, 1] to PIL and back, grids, PNG files that remember how they were made."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from genflow.errors import InputError
from genflow.files import atomic_path

__all__ = ["GRID_NAME", "METADATA_KEY", "grid", "read_metadata", "save_png", "to_pil", "to_uint8"]

GRID_NAME = "grid.png"
"""The file, beside the images that a command makes, which shows all of them; no image itself."""

METADATA_KEY = "genflow"
"""The PNG text chunk that holds the JSON record of how an image was made."""


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
