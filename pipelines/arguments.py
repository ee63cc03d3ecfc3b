"""What the pipelines' calls have in common: labels, generators, images coming in and going out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genflow.errors import InputError, check_number, nearest
from genflow.images import to_pil

__all__ = ["OUTPUT_TYPES", "convert_output", "generators_for", "image_tensor", "is_single", "label_number"]

OUTPUT_TYPES = ("pil", "pt", "np", "latent")

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as pillow's L


def is_single(labels: Any) -> bool:
    """Whether ``labels`` is one label, not a sequence of them."""
    return isinstance(labels, (int, str)) or (isinstance(labels, Tensor) and labels.ndim == 0)


def label_number(label: Any, names: Sequence[str], highest: int) -> int:
    """A class's number, from its name or itself. Raises InputError, naming ``class_labels``, for another."""
    if isinstance(label, str):
        if label not in names:
            known = ", ".join(names) or "none, the model has no class names"
            raise InputError(f"class_labels: {label!r} is not known{nearest(label, names)}; known names: {known}")
        return list(names).index(label)
    label = label.item() if hasattr(label, "item") else label
    return int(check_number("class_labels", label, at_least=0, at_most=highest, integer=True))


def generators_for(generator: Any, batch: int) -> list[Any]:
    """One generator an image; a single one serves all in turn, and torch's own serves where none is given."""
    if generator is None:
        return [torch.default_generator] * batch
    return [generator] * batch if isinstance(generator, torch.Generator) else list(generator)


def image_tensor(images: Any, channels: int, size: tuple[int, int] | None, resize: bool) -> Tensor:
    """``(B, C, H, W)`` in [-1, 1], float32, from what diffusers calls images.

    Args:
        images: a PIL image or several; numbers in [0, 1] as a tensor ``(B, C, H, W)`` or an array ``(B, H, W, C)``, or
            uint8; one image may come without its first axis.
        channels: 1, 3 or 4: what the network takes.
        size: height and width that it takes; None for any.
        resize: bring other sizes (antialiased, bicubic) and other channels to these.

    Raises:
        InputError: another shape, without ``resize``; values out of range; nothing.
    """
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, Sequence) and images and all(isinstance(image, Image.Image) for image in images):
        rows = [_from_pil(image, channels, resize) for image in images]
        found = {tuple(row.shape[1:]) for row in rows}
        if len(found) > 1 and resize and size is not None:
            rows = [_resized(row[None], size)[0] for row in rows]
        elif len(found) > 1:
            raise InputError(f"images: several sizes, {sorted(found)}; allowed: one, or resize=True")
        values = torch.stack(rows)
    elif isinstance(images, (Tensor, np.ndarray)) and images.ndim in (3, 4):
        values = images if isinstance(images, Tensor) else torch.from_numpy(np.ascontiguousarray(images))
        values = values[None] if values.ndim == 3 else values
        values = values if isinstance(images, Tensor) else values.permute(0, 3, 1, 2)
        values = values.float() / 255 if values.dtype == torch.uint8 else values.float()
        if len(values) == 0 or not bool(((values >= 0) & (values <= 1)).all()):
            raise InputError("images: none, or numbers outside [0, 1]; allowed there: uint8, or latents in [-1, 1]")
    else:
        raise InputError(
            f"images: got {type(images).__name__}; allowed: PIL images, a tensor (B, C, H, W) or an array (B, H, W, C)"
        )
    if resize:
        values = _with_channels(values, channels)
        if size is not None and tuple(values.shape[2:]) != size:
            values = _resized(values, size)
    shape = (values.shape[1], *values.shape[2:])
    wanted = (channels, *(size or values.shape[2:]))
    if shape != wanted:
        raise InputError(
            f"images: {shape[0]} channels of {shape[2]}x{shape[1]} pixels; allowed: {wanted[0]} of "
            f"{wanted[2]}x{wanted[1]}, or resize=True"
        )
    return values * 2 - 1


def _from_pil(image: Image.Image, channels: int, convert: bool) -> Tensor:
    mode = image.mode if image.mode in _MODES.values() else "L" if image.mode in {"1", "LA", "I;16"} else "RGB"
    array = np.asarray(image.convert(_MODES.get(channels, mode) if convert else mode))
    values = torch.from_numpy(array.copy()).float() / 255
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1)


def _with_channels(values: Tensor, channels: int) -> Tensor:
    """Grey, colour and colour with opacity into one another."""
    count = values.shape[1]
    if count == channels or count not in _MODES or channels not in _MODES:
        return values
    colour = values[:, :3] if count > 1 else values.expand(-1, 3, -1, -1)
    if channels == 1:
        weights = torch.tensor(_LUMA, dtype=values.dtype, device=values.device)
        return (colour * weights[:, None, None]).sum(1, keepdim=True)
    return colour if channels == 3 else torch.cat([colour, torch.ones_like(colour[:, :1])], dim=1)


def _resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.nn.functional.interpolate(values, size, mode="bicubic", antialias=True).clamp(0, 1)


def convert_output(images: Tensor, output_type: str) -> Any:
    """``(B, C, H, W)`` in [-1, 1], clipped, to PIL images, or in [0, 1] to a tensor or an array ``(B, H, W, C)``."""
    images = images.float().clamp(-1, 1)
    if output_type == "pil":
        return to_pil(images)
    images = images / 2 + 0.5
    return images if output_type == "pt" else images.permute(0, 2, 3, 1).cpu().numpy()
