"""Images in one array: numpy files, IDX files, Fashion-MNIST."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from genflow.errors import InputError
from genflow.evaluate.sources.labels import renumbered
from genflow.evaluate.sources.pixels import Picture, with_fewer_channels
from genflow.evaluate.sources.source import Source

__all__ = ["ArraySource"]

_BLOCK = 2**24  # bytes that are hashed at once


class ArraySource(Source):
    """uint8 images ``(N, H, W)`` or ``(N, H, W, C)``, C 1 to 4, in memory or mapped into it.

    Args:
        array: the images; what is read of it is copied, so that it can stay on the disk.
        name: as the user gave it.
        labels: int64 ``(N,)``.
        own_names: names of these labels.
        class_names: names among which labels are to be numbers, by their own names where they have such.

    Raises:
        InputError: no image, or channels that are not the last axis.
    """

    def __init__(
        self,
        array: np.ndarray,
        name: str,
        labels: np.ndarray | None = None,
        own_names: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        if array.ndim == 3:
            array = array[..., None]
        if 0 in array.shape:
            raise InputError(f"{name} holds no image: its shape is {array.shape}")
        if array.shape[3] > 4:
            hint = ", transpose it" if array.shape[1] <= 4 else ""
            raise InputError(f"{name} has shape {array.shape}; allowed: (N, H, W) or (N, H, W, C), C 1 to 4{hint}")
        self.array, self.name = array, name
        self.names = tuple(f"[{index}]" for index in range(len(array)))
        if labels is not None:
            self.labels, self.class_names = renumbered(torch.from_numpy(labels), own_names, class_names)

    def place(self, index: int) -> str:
        return f"{self.name}{self.names[index]}"

    def picture(self, index: int) -> Picture:
        return with_fewer_channels(np.array(self.array[index]))

    def content_hash(self, indices: Sequence[int] | None = None) -> str:
        digest = hashlib.sha256(f"array {self.array.shape[1:]}\n".encode())
        rows = np.arange(len(self)) if indices is None else np.asarray(indices, np.int64)
        step = max(1, _BLOCK // self.array[0].size)
        for start in range(0, len(rows), step):
            block = rows[start : start + step]
            run = len(block) > 0 and block[-1] - block[0] + 1 == len(block) and bool((np.diff(block) == 1).all())
            held = self.array[block[0] : block[-1] + 1] if run else self.array[block]
            digest.update(np.ascontiguousarray(held).data)
        return digest.hexdigest()
