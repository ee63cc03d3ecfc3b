"""Which images, labels and random draws each step gets: a function of the seed and the step alone."""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genflow.data import ImageData

__all__ = ["BatchStream", "batch_indices", "flip_half", "mixed_seed", "stream_indices"]


def mixed_seed(*words: int) -> int:
    """One well-mixed 63-bit seed from a few integers."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def stream_indices(seed: int, start: int, stop: int, count: int) -> np.ndarray:
    """Positions ``start`` to ``stop`` of the endless stream that visits all ``count`` images once an epoch."""
    parts = []
    while start < stop:
        epoch, offset = divmod(start, count)
        taken = min(stop - start, count - offset)
        parts.append(_permutation(seed, epoch, count)[offset : offset + taken])
        start += taken
    return np.concatenate(parts)


def batch_indices(seed: int, start: int, size: int, data: Tensor) -> Tensor:
    """Positions ``start`` on of the endless stream of ``data``'s rows, where ``data`` is.

    Of data kept on a GPU they come from pinned memory, which nothing waits for.
    """
    indices = torch.from_numpy(stream_indices(seed, start, start + size, len(data)))
    return indices.pin_memory().to(data.device, non_blocking=True) if data.is_cuda else indices


def flip_half(images: Tensor, generator: torch.Generator) -> Tensor:
    """``(B, C, H, W)`` with about half of the images mirrored left to right."""
    flipped = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)


@dataclass(frozen=True)
class BatchStream:
    """Micro-batches of ``size`` images; ``slots`` of them, over processes and accumulation, make a step's batch."""

    data: ImageData
    seed: int
    size: int
    slots: int
    device: torch.device
    flip: bool = False
    label_dropout: float = 0.0

    def draw(self, step: int, slot: int) -> tuple[Tensor, Tensor | None, torch.Generator]:
        """Images in [-1, 1], labels and the generator for the rest of this micro-batch's draws."""
        indices = self._indices(step, slot)
        generator = torch.Generator(self.device).manual_seed(mixed_seed(self.seed, step, slot))
        images = self.data.images[indices].to(self.device).float() / 127.5 - 1
        if self.flip:
            images = flip_half(images, generator)
        if self.data.labels is None:
            return images, None, generator
        labels = self.data.labels[indices].to(self.device)
        dropped = torch.rand(len(labels), generator=generator, device=self.device) < self.label_dropout
        return images, torch.where(dropped, self.data.num_classes, labels), generator

    def classes(self, step: int, slot: int) -> Tensor | None:
        """The labels of this micro-batch with none of them dropped, int64 ``(B,)``; None where there are none."""
        labels = self.data.labels
        return None if labels is None else labels[self._indices(step, slot)].to(self.device)

    def _indices(self, step: int, slot: int) -> Tensor:
        return batch_indices(self.seed, (step * self.slots + slot) * self.size, self.size, self.data.images)
