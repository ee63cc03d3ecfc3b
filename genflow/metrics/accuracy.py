"""Whether conditional samples are of the class that was asked for."""

import torch
from torch import Tensor

from genflow.errors import InputError

__all__ = ["class_accuracy"]


def class_accuracy(predicted: Tensor, wanted: Tensor) -> float:
    """Share of samples whose ``predicted`` class ``(N,)`` is the ``wanted`` one; negative labels are unknown, left out.

    Raises InputError where no label is known.
    """
    if predicted.shape != wanted.shape:
        raise InputError(f"wanted: got shape {tuple(wanted.shape)}; predicted has {tuple(predicted.shape)}")
    known = wanted >= 0
    if not known.any():
        raise InputError("wanted: no class is known")
    return float((predicted[known] == wanted[known]).to(torch.float64).mean())
