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

    def _guide(self, cond: Tensor, uncond: Tensor, x: Tensor, noise_level: float | Tensor, step: int) -> Tensor:
        return torch.lerp(uncond, cond, self.scale_like(cond))  # exact at scales 0 and 1
