"""Arithmetic on step-dependent scalars that are numbers on the host, or tensors when nothing may be read back.

A rule computes its scalars once from the step count ``t``: a float usually, a tensor of counts with
``capturable=True``. Tensors may also come in through a tensor learning rate.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "Scalar",
    "Scalars",
    "add_scaled_",
    "addcdiv_scaled_",
    "cosine",
    "many_add_scaled_",
    "many_addcdiv_scaled_",
    "select",
    "sqrt",
]

Scalar = float | Tensor
Scalars = Scalar | list[Tensor]  # what the multi-tensor forms get: one for all, or one a tensor


def sqrt(x: Scalar) -> Scalar:
    """Square root; of negative input zero, for branches that are computed but not taken."""
    return x.clamp_min(0).sqrt() if isinstance(x, Tensor) else math.sqrt(max(x, 0.0))


def cosine(x: Scalar) -> Scalar:
    """Cosine."""
    return x.cos() if isinstance(x, Tensor) else math.cos(x)


def select(condition: bool | Tensor, yes: Scalar, no: Scalar) -> Scalar:
    """``yes`` where ``condition`` holds, else ``no``."""
    if isinstance(condition, Tensor):
        chosen = torch.where(condition, yes, no)
        # of two numbers torch makes float32; 0 and 1 it keeps, but what they are multiplied with it would round
        return chosen if condition.device.type == "mps" else chosen.double()
    return yes if condition else no


def add_scaled_(x: Tensor, y: Tensor, scale: Scalar) -> None:
    """``x += scale * y``."""
    if isinstance(scale, Tensor):
        x.add_(y * scale)
    else:
        x.add_(y, alpha=scale)


def addcdiv_scaled_(x: Tensor, a: Tensor, b: Tensor, scale: Scalar) -> None:
    """``x += scale * a / b``."""
    if isinstance(scale, Tensor):
        x.add_(a / b * scale)
    else:
        x.addcdiv_(a, b, value=scale)


def many_add_scaled_(xs: list[Tensor], ys: Sequence[Tensor], scale: Scalars) -> None:
    """``x += scale * y`` for each pair."""
    if isinstance(scale, float):
        torch._foreach_add_(xs, ys, alpha=scale)
    else:
        torch._foreach_add_(xs, torch._foreach_mul(ys, scale))


def many_addcdiv_scaled_(
    xs: list[Tensor], numerators: list[Tensor], denominators: list[Tensor], scale: Scalars
) -> None:
    """``x += scale * a / b`` for each triple."""
    if isinstance(scale, float):
        torch._foreach_addcdiv_(xs, numerators, denominators, value=scale)
    else:
        quotients = torch._foreach_div(numerators, denominators)
        torch._foreach_mul_(quotients, scale)
        torch._foreach_add_(xs, quotients)
