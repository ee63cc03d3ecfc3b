"""Figures of single pictures, taken while they are decoded, before they are resized."""

import numpy as np
import torch
from torch import Tensor

from genflow.metrics.image_statistics import picture_statistics

__all__ = ["FIGURES", "figures_of"]

FIGURES = ("saturation", "contrast", "colourfulness", "clipped_share")
"""Those of :mod:`genflow.metrics.image_statistics` that 8-bit pictures have. The magnitude score is none of them: it
asks how many standard deviations out a latent lies, and a picture's values end at black and white."""

_VALUES = 2**20  # taken at once: as floats they stay near the processor


def figures_of(arrays: list[np.ndarray]) -> dict[str, Tensor]:
    """Each of :data:`FIGURES`, float32 ``(N,)``, of uint8 pictures ``(H, W, C)`` of any sizes."""
    if not arrays:
        return {name: torch.empty(0) for name in FIGURES}
    parts: list[dict[str, Tensor]] = []
    start = 0
    for end in range(1, len(arrays) + 1):
        first = arrays[start]
        if end == len(arrays) or arrays[end].shape != first.shape or (end - start + 1) * first.size > _VALUES:
            pictures = torch.from_numpy(np.stack(arrays[start:end])).permute(0, 3, 1, 2).contiguous()
            parts.append(picture_statistics(pictures))
            start = end
    return {name: torch.cat([part[name] for part in parts]) for name in FIGURES}
