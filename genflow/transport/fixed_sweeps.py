"""Entropic plans by a number of sweeps that is fixed beforehand: nothing is asked of the device, no host waits.

Sinkhorn's sweeps on the whole batch with forbidden pairs between classes, overrelaxed: each moves the logarithmic
scalings 1.5 times as far as it would (Thibault et al. 2021, arXiv 1711.01851; locally convergent below 2).
"""

import math

import torch
from torch import Tensor

from genflow.transport.exact import pairwise_cost

__all__ = ["LEAST_REG", "fixed_sweeps", "relative_size"]

LEAST_REG = 0.05
"""Below, scalings may leave float64 and sweeps grow many."""
RELAXATION = 1.5
SWEEPS = 4.0
"""Sweeps times ``reg``: measured on images and on points of a plane, of one class and of ten, to leave 1e-3."""
FEWEST = 15
_ROUNDING = 1e-12
"""Of squared distances, as a share of the largest, with room to spare."""


def relative_size(square: Tensor, largest: Tensor) -> Tensor:
    """The unit of a cost whose mean square is ``square``, after means of rows and columns were taken off, and whose
    largest entry was ``largest`` before. One image alone, or points that all coincide, leave rounding and no unit."""
    return torch.maximum(square.sqrt(), torch.finfo(torch.float32).tiny + _ROUNDING * largest)


def fixed_sweeps(x0: Tensor, noise: Tensor, labels: Tensor | None, reg: float) -> Tensor:
    """Rows of the plan (n, n), float64 with sums 1, between x0 and noise (n, ...) within classes; 0 between classes.

    ``reg``, at least LEAST_REG, is relative as in :func:`genflow.transport.couplings.relative_cost`, class by class.
    """
    cost = pairwise_cost(x0.flatten(1), noise.flatten(1))
    same = torch.ones_like(cost) if labels is None else (labels[:, None] == labels).to(cost.dtype)
    share = same / same.sum(1, keepdim=True)
    largest = (cost * same).amax(1)
    cost = cost - (share * cost).sum(1, keepdim=True)
    cost = cost - (share * cost).sum(0)
    square = share @ (share * cost.square()).sum(1)
    # every row of a class has the class's own largest entry, so that all have one unit
    largest = (same * largest).amax(1)
    exponent = (cost / (reg * relative_size(square, largest)[:, None])).masked_fill(same == 0, torch.inf)
    # with its least entry at 0 in every column, and then in every row, no sum below can vanish
    exponent = exponent - exponent.amin(0)
    kernel = (exponent.amin(1, keepdim=True) - exponent).exp()
    rows, columns = kernel.new_ones(len(kernel)), kernel.new_ones(len(kernel))
    for _ in range(max(FEWEST, math.ceil(SWEEPS / reg))):
        columns = columns ** (1 - RELAXATION) * (rows @ kernel) ** -RELAXATION
        rows = rows ** (1 - RELAXATION) * (kernel @ columns) ** -RELAXATION
    columns = 1 / (rows @ kernel)
    plan = kernel * columns
    return plan / plan.sum(1, keepdim=True)
