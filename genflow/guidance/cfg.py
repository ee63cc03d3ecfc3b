"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598)."""

import torch
from torch import Tensor

from genflow.guidance.base import Guidance

__all__ = ["CFG"]


class CFG(Guidance):
    """``uncond + scale (cond - uncond)``: scale 0 is unconditional, 1 conditional, above 1 is away from uncond.

    The rule is linear, so in x0 space it is the same as on the network's raw output. Options: see
    :class:`Guidance`.
    """

    name = "cfg"

    def __call__(self, cond_x0: Tensor, uncond_x0: Tensor, x: Tensor, noise_level: float | Tensor, step: int) -> Tensor:
        """See :meth:`Guidance.__call__`."""
        return torch.lerp(uncond_x0, cond_x0, self.scale_like(cond_x0))  # exact at scales 0 and 1
