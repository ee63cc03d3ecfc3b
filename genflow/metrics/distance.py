"""How far apart two solutions from the same noise are."""

import torch
from torch import Tensor

from genflow.errors import InputError

__all__ = ["rms_distance"]


def rms_distance(samples: Tensor, reference: Tensor) -> Tensor:
    """Root of the mean squared difference of each sample from its reference: ``(N, ...)`` twice to ``(N,)`` float32.

    In the units of the samples: 2 is the whole range of images in [-1, 1]. Raises InputError on other shapes.
    """
    if samples.shape != reference.shape or samples.ndim < 2:
        raise InputError(f"reference: got shape {tuple(reference.shape)}; samples have {tuple(samples.shape)}")
    return (samples.to(torch.float32) - reference.to(torch.float32)).square().flatten(1).mean(1).sqrt()
