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
    "decay_weights_",
    "many_add_scaled_",
    "many_addcdiv_scaled_",
    "many_decay_weights_",
    "many_root_plus",
    "root_plus",
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


def root_plus(x: Tensor, floor: Scalar) -> Tensor:
    """``sqrt(x) + floor``."""
    root = x.sqrt()
    return root + floor if torch.is_grad_enabled() else root.add_(floor)  # autograd keeps the root


def many_root_plus(xs: list[Tensor], floor: Scalars) -> list[Tensor]:
    """:func:`root_plus` for each."""
    roots = list(torch._foreach_sqrt(xs))
    if isinstance(floor, Tensor):  # in a compiled step alone, where _foreach_add_ would read it back
        for root in roots:
            root.add_(floor)
    else:
        torch._foreach_add_(roots, floor)
    return roots


def decay_weights_(param: Tensor, grad: Tensor, weight_decay: float, decoupled: bool, decay: Scalar) -> Tensor:
    """``param *= decay`` if decoupled; returns the gradient, plus ``weight_decay * param`` if not."""
    if weight_decay and decoupled:
        param.mul_(decay)
    elif weight_decay:
        grad = grad.add(param, alpha=weight_decay)
    return grad


def many_decay_weights_(
    params: list[Tensor], grads: list[Tensor], weight_decay: float, decoupled: bool, decay: Scalars
) -> list[Tensor]:
    """:func:`decay_weights_` for each."""
    if weight_decay and decoupled:
        torch._foreach_mul_(params, decay)
    elif weight_decay:
        grads = list(torch._foreach_add(grads, params, alpha=weight_decay))
    return grads
