"""The projection of AdamP and SGDP. Heo et al., arXiv 2006.08217, Algorithms 1 and 2, equations 11 and 12."""

import math
import warnings

import torch
from torch import Tensor

from genflow.optim.scalars import Scalar, Scalars, add_scaled_, many_add_scaled_

__all__ = ["descend_", "descend_many_", "project", "warn_if_flat"]


def project(
    param: Tensor, grad: Tensor, update: Tensor, *, delta: float, wd_ratio: float, eps: float
) -> tuple[Tensor, Scalar | None]:
    """``update`` without its part along the weights, where these look scale invariant.

    They do where gradient and weights are nearly orthogonal: every row's (output channel's) |cosine| below
    ``delta / sqrt(row length)``, else the whole tensor's below ``delta / sqrt(entries)``. No value is read back from
    an accelerator.

    Returns:
        The update, and what multiplies the weight decay: ``wd_ratio`` if projected, else 1 (or None for it).
    """
    if type(param) is Tensor or type(param) is torch.nn.Parameter:
        readable = param.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if readable:
            return _project_on_host(param, grad, update, delta, wd_ratio, eps)
    return _project_on_device(param, grad, update, delta, wd_ratio, eps)


def _project_on_host(
    param: Tensor, grad: Tensor, update: Tensor, delta: float, wd_ratio: float, eps: float
) -> tuple[Tensor, float | None]:
    """On a CPU a value may be read for nothing, and most weights need no projection."""
    rows, grads = param.reshape(len(param), -1), grad.reshape(len(grad), -1)
    dots = torch.linalg.vecdot(rows, grads)
    lengths, grad_lengths = torch.linalg.vector_norm(rows, dim=1), torch.linalg.vector_norm(grads, dim=1)
    cosines = dots.abs() / (lengths.clamp_min(eps) * grad_lengths.clamp_min(eps))
    if cosines.amax().item() < delta / math.sqrt(rows.shape[1]):
        along = torch.linalg.vecdot(rows, update.reshape(rows.shape)) / (lengths + eps).square()
        return update - param * along.view(-1, *[1] * (param.ndim - 1)), wd_ratio
    length = torch.linalg.vector_norm(lengths).item()
    grad_length = torch.linalg.vector_norm(grad_lengths).item()
    if abs(dots.sum().item()) / (max(length, eps) * max(grad_length, eps)) < delta / math.sqrt(param.numel()):
        return update - param * ((param * update).sum().item() / (length + eps) ** 2), wd_ratio
    return update, None


def _project_on_device(
    param: Tensor, grad: Tensor, update: Tensor, delta: float, wd_ratio: float, eps: float
) -> tuple[Tensor, Tensor]:
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


def descend_(
    param: Tensor,
    grad: Tensor,
    update: Tensor,
    complex_view: bool,
    decays: bool,
    shrink: Scalar,
    step_size: Scalar,
    **limits: float,
) -> None:
    """``p += step_size * update`` after decay by ``shrink``, with projection where ``p`` has rows.

    ``limits``: of :func:`project`; ``complex_view``: the last dimension of ``p`` is real and imaginary part.
    """
    ratio = None
    if param.ndim - complex_view > 1:
        update, ratio = project(param, grad, update, **limits)
    if decays:
        _decay_(param, ratio, shrink)
    add_scaled_(param, update, step_size)


def descend_many_(
    params: list[Tensor],
    grads: list[Tensor],
    updates: list[Tensor],
    complex_view: bool,
    decays: bool,
    shrink: Scalars,
    step_size: Scalars,
    **limits: float,
) -> None:
    """:func:`descend_` for each."""
    shrinks = shrink if isinstance(shrink, (list, tuple)) else [shrink] * len(params)
    for index, (param, grad) in enumerate(zip(params, grads, strict=True)):
        ratio = None
        if param.ndim - complex_view > 1:
            updates[index], ratio = project(param, grad, updates[index], **limits)
        if decays:
            _decay_(param, ratio, shrinks[index])
    many_add_scaled_(params, updates, step_size)


def _decay_(param: Tensor, ratio: Scalar | None, shrink: Scalar) -> None:
    """``p -= shrink * ratio * p``, with ratio 1 for None. In float32, ``1 - shrink * ratio`` would lose digits."""
    if not isinstance(ratio, Tensor):
        param.mul_(1 - shrink * (1 if ratio is None else ratio))
    else:
        weights = param.clone() if torch.is_grad_enabled() else param
        param.sub_(weights * (shrink * ratio))


def warn_if_flat(name: str, params: list[Tensor]) -> None:
    """FSDP1 and ZeRO hand over flattened parameters: without rows there is nothing to project."""
    if params and all(param.ndim <= 1 for param in params):
        warnings.warn(
            f"{name}: all {len(params)} parameters have one dimension, so nothing will be projected "
            "(FSDP without use_orig_params and ZeRO flatten weights)",
            stacklevel=4,
        )
