"""The projection of AdamP and SGDP. Heo et al., arXiv 2006.08217, Algorithms 1 and 2, equations 11 and 12."""

import math
import warnings

import torch
from torch import Tensor

from genflow.optim.scalars import Scalar, Scalars

__all__ = ["decay_", "decay_many_", "is_projected", "project", "warn_if_flat"]


def is_projected(param: Tensor, complex_view: bool) -> bool:
    """Whether a parameter can be scale invariant row by row: it has at least two dimensions of its own."""
    return param.ndim - complex_view > 1


def project(
    param: Tensor, grad: Tensor, update: Tensor, *, delta: float, wd_ratio: float, eps: float
) -> tuple[Tensor, Tensor]:
    """``update`` without its part along the weights, where these look scale invariant.

    They do where gradient and weights are nearly orthogonal: every row's (output channel's) |cosine| below
    ``delta / sqrt(row length)``, else the whole tensor's below ``delta / sqrt(entries)``. No value is read back.

    Returns:
        The update, and what multiplies the weight decay: ``wd_ratio`` if projected, else 1; no dimensions.
    """
    if torch.is_grad_enabled():
        param = param.clone()  # it will change in place, and autograd needs this one
    inner = tuple(range(1, param.ndim))
    dot = (grad * param).sum(inner, keepdim=True)
    grad_square = grad.square().sum(inner, keepdim=True)
    square = param.square().sum(inner, keepdim=True)
    along = (update * param).sum(inner, keepdim=True)

    def cosine(dot: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return dot.abs() / (a.sqrt().clamp_min(eps) * b.sqrt().clamp_min(eps))

    rows = cosine(dot, grad_square, square).amax() < delta / math.sqrt(param[0].numel())
    whole = cosine(dot.sum(), grad_square.sum(), square.sum()) < delta / math.sqrt(param.numel())
    by_row = along / (square.sqrt() + eps).square()
    at_once = along.sum() / (square.sum().sqrt() + eps).square()
    coefficient = torch.where(rows, by_row, torch.where(whole, at_once, 0))
    ratio = torch.where(rows | whole, wd_ratio, torch.ones_like(at_once))
    return torch.addcmul(update, param, coefficient, value=-1), ratio


def decay_(param: Tensor, ratio: Tensor | None, shrink: Scalar) -> None:
    """``p -= shrink * ratio * p``, with ratio 1 for None. In float32, ``1 - shrink * ratio`` would lose digits."""
    if ratio is None:
        param.mul_(1 - shrink)
    else:
        weights = param.clone() if torch.is_grad_enabled() else param
        param.sub_(weights * (shrink * ratio))


def decay_many_(params: list[Tensor], ratios: list[Tensor | None], shrink: Scalars) -> None:
    """:func:`decay_` for each."""
    shrinks = shrink if isinstance(shrink, (list, tuple)) else [shrink] * len(params)
    for param, ratio, each in zip(params, ratios, shrinks, strict=True):
        decay_(param, ratio, each)


def warn_if_flat(name: str, params: list[Tensor]) -> None:
    """FSDP1 and ZeRO hand over flattened parameters: without rows there is nothing to project."""
    if params and all(param.ndim <= 1 for param in params):
        warnings.warn(
            f"{name}: all {len(params)} parameters have one dimension, so nothing will be projected "
            "(FSDP without use_orig_params and ZeRO flatten weights)",
            stacklevel=4,
        )
