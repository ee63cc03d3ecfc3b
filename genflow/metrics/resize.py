"""What happens to an image between its file and a feature network: channels, and the size that the network wants.

Resizing changes a Frechet distance by more than most methods differ (Parmar et al. 2022, "On Aliased Resizing and
Surprising Subtleties in GAN Evaluation"), so the mode is part of the protocol:

==================  ================================================================================================
``clean``           clean-fid's: pillow's bicubic filter, which widens with the reduction (antialias), every channel by
                    itself in 32-bit float, clipped to [0, 255], not rounded to whole levels again
``legacy``          TensorFlow 1's bilinear, as in the graph of the first FID code; so ADM, EDM, torch-fidelity and
                    clean-fid's ``legacy_tensorflow``: output pixel i looks at coordinate i * in / out (pixels have no
                    centres, so the picture moves by up to half a pixel), no antialias
``legacy-pytorch``  torch's bilinear with ``align_corners=False``: coordinate (i + 1/2) * in / out - 1/2, no antialias;
                    pytorch-fid and clean-fid's ``legacy_pytorch``
``none``            the image must have the network's size already
==================  ================================================================================================
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from genflow.errors import InputError

__all__ = ["RESIZE_MODES", "Preparation", "resize_clean", "resize_legacy", "resize_legacy_pytorch"]

RESIZE_MODES = ("clean", "legacy", "legacy-pytorch", "none")


def resize_clean(image: np.ndarray, size: int) -> Tensor:
    """``(H, W, C)`` to float32 ``(C, size, size)`` in [0, 255] as clean-fid does."""
    planes = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(image[:, :, channel], dtype=np.float32)).resize(
                (size, size), Image.Resampling.BICUBIC
            )
        )
        for channel in range(image.shape[2])
    ]
    return torch.from_numpy(np.stack(planes).clip(0, 255))


def _tf1_axis(images: Tensor, axis: int, size: int) -> Tensor:
    """Linear interpolation of one axis at the coordinates 0, s, 2 s, ... with s = length / size, in float32 as TF1."""
    length = images.shape[axis]
    scale = torch.tensor(length / size, dtype=torch.float32)
    place = torch.arange(size, dtype=torch.float32) * scale
    low = place.long().clamp_max(length - 1)
    shape = [1] * images.ndim
    shape[axis] = size
    weight = (place - low).view(shape).to(images.device)
    low = low.to(images.device)
    first = images.index_select(axis, low)
    return torch.lerp(first, images.index_select(axis, (low + 1).clamp_max(length - 1)), weight)


def resize_legacy(images: Tensor, size: int) -> Tensor:
    """``(..., H, W)`` to float32 ``(..., size, size)`` as TensorFlow 1's ``resize_bilinear`` does."""
    rows, columns = images.ndim - 2, images.ndim - 1
    # the axes may go in either order; whole rows are picked fast, so rows first where there are fewer afterwards
    first, second = (rows, columns) if images.shape[rows] > size else (columns, rows)
    return _tf1_axis(_tf1_axis(images.float(), first, size), second, size)


def resize_legacy_pytorch(images: Tensor, size: int) -> Tensor:
    """``(B, C, H, W)`` to float32 ``(B, C, size, size)`` as pytorch-fid does."""
    return F.interpolate(images.float(), (size, size), mode="bilinear", align_corners=False)


_IN_TENSORS = {"legacy": resize_legacy, "legacy-pytorch": resize_legacy_pytorch}


@dataclass(frozen=True)
class Preparation:
    """What a network wants of its images. Small, so that it travels to the workers that decode without the network.

    Attributes:
        network: its name, for messages.
        mode: one of :data:`RESIZE_MODES`.
        size: the side of the square it takes; None where it takes images of any size (only with mode ``none``).
        channels: 1 (grey) or 3 (RGB).
    """

    network: str
    mode: str
    size: int | None
    channels: int

    def __call__(self, image: np.ndarray) -> Tensor:
        """uint8 ``(H, W, C)``, C 1 or 3, to ``(channels, size, size)``: float32 in [0, 255], or with ``none`` uint8.

        Colour becomes grey by Rec. 601, as pillow does it (``convert("L")``); grey becomes RGB by repetition.

        Raises:
            InputError: not such an image, or with ``none`` one of another size.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
            raise InputError(f"image: got {image.dtype} {image.shape}; allowed: uint8 (H, W, 1) or (H, W, 3)")
        if self.mode == "none" and self.size is not None and image.shape[:2] != (self.size, self.size):
            raise InputError(
                f"image: got {image.shape[1]}x{image.shape[0]}; {self.network} takes {self.size}x{self.size}, "
                "or choose how to resize: clean, legacy"
            )
        if self.channels == 1 and image.shape[2] == 3:
            image = np.asarray(Image.fromarray(image).convert("L"))[:, :, None]
        if self.mode == "clean":
            prepared = resize_clean(image, self.size)
        else:
            prepared = torch.from_numpy(image.transpose(2, 0, 1).copy())  # from whoever may reuse or lock it
            if self.mode != "none":
                prepared = self.resize(prepared[None])[0]
        return prepared.repeat(self.channels, 1, 1) if prepared.shape[0] < self.channels else prepared

    def resize(self, images: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` of one size, 0..255, on any device, to what the network takes; float32 if resized.

        Raises:
            InputError: the mode is pillow's or ``none``, and the size is not the network's.
        """
        if self.size is None or tuple(images.shape[2:]) == (self.size, self.size):
            return images if self.mode == "none" else images.float()
        if self.mode not in _IN_TENSORS:
            height, width = images.shape[2:]
            raise InputError(
                f"images: got {width}x{height}; {self.network} takes {self.size}x{self.size}: prepare() resizes one "
                f"image (resize mode {self.mode!r})"
            )
        return _IN_TENSORS[self.mode](images, self.size)
