"""From a decoded picture of any mode to what feature networks take: eight bits, one channel or three.

The rules are those of the tools that published figures come from, whose ``convert("RGB")`` is pillow's:

- grey (modes 1, L, LA) gives one channel; everything else (palettes too, CMYK, YCbCr, HSV) gives RGB;
- transparency is dropped, not laid over a background; where it was not opaque a note says so;
- of several frames the first, of 16 bits the upper 8, each with a note: see :func:`genflow.images.decode_image`;
- an EXIF orientation is not followed.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from genflow.images import UnreadableImageError

__all__ = ["ALPHA_DROPPED", "Picture", "picture_of", "with_fewer_channels"]

ALPHA_DROPPED = "transparency was dropped"

_GREY = frozenset({"1", "L", "LA", "La"})
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}


@dataclass(frozen=True)
class Picture:
    """``array``: uint8 ``(H, W, C)``, C 1 or 3; ``notes``: what of the file is not in it."""

    array: np.ndarray
    notes: tuple[str, ...] = ()


def picture_of(image: Image.Image, notes: tuple[str, ...], place: str) -> Picture:
    """A decoded picture by the rules above. Raises UnreadableImageError on a mode that pillow cannot turn into RGB."""
    try:
        if image.mode in _PREMULTIPLIED:
            image = image.convert(_PREMULTIPLIED[image.mode])
        if _is_transparent(image):
            notes = (*notes, ALPHA_DROPPED)
        mode = "L" if image.mode in _GREY else "RGB"
        array = np.array(image if image.mode == mode else image.convert(mode))
    except (ValueError, OSError) as error:
        raise UnreadableImageError(place, f"mode {image.mode}: {error}") from error
    return Picture(array[:, :, None] if array.ndim == 2 else array, notes)


def _is_transparent(image: Image.Image) -> bool:
    """Whether a pixel is less than opaque."""
    if image.mode in ("LA", "RGBA", "PA"):
        return image.getchannel("A").getextrema()[0] < 255
    return "transparency" in image.info and image.convert("RGBA").getchannel("A").getextrema()[0] < 255


def with_fewer_channels(array: np.ndarray) -> Picture:
    """A picture ``(H, W, C)`` of an array: the last of two or four channels is its opacity, which is dropped."""
    channels = array.shape[2]
    if channels % 2:
        return Picture(array)
    notes = (ALPHA_DROPPED,) if array[:, :, -1].min() < 255 else ()
    return Picture(np.ascontiguousarray(array[:, :, :-1]), notes)
