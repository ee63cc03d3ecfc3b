"""How a rule meets tensors: sign, complex views, low precision and rounding, in one place for all rules."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Rule",
    "round_stochastically",
    "run_each",
    "run_many",
    "run_single",
    "scalar_dtype",
    "state_dtype",
    "whole",
]

Rule = Callable[..., None]
"""``rule(param, grad, **buffers, **scalars, **constants)``; the multi-tensor form takes lists of tensors."""

_LOW_PRECISION = (torch.bfloat16, torch.float16)
_PLAIN = (torch.float32, torch.float64)


def state_dtype(param: Tensor) -> torch.dtype:
    """The format of a parameter's state: its own, but float32 for 16-bit ones.

    A moving average with rate 1e-3 stands still in bfloat16, whose relative spacing is 2^-8.
    """
    return torch.float32 if param.dtype in _LOW_PRECISION else param.dtype


def scalar_dtype(param: Tensor) -> torch.dtype:
    """The format of a parameter's statistics without dimensions: as :func:`state_dtype`, real for complex ones."""
    # not dtype.to_real(), which torch.compile does not trace
    return {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(param.dtype, state_dtype(param))


def whole(x: Tensor) -> Tensor:
    """A reduction of a DTensor as a plain tensor, the same on every rank; others as they are."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def round_stochastically(x: Tensor) -> Tensor:
    """float32 to bfloat16, up or down at random so that the mean is kept. NaN and infinity stay what they are."""
    bits = x.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, x.shape, dtype=torch.int32, device=x.device)
    rounded = (bits + noise).bitwise_and_(-65536).view(torch.float32)
    # a carry past the largest float32 would turn a huge number into NaN
    return torch.where(rounded.isfinite(), rounded, x).to(torch.bfloat16)


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def _write(param: Tensor, result: Tensor, stochastic: bool) -> None:
    if stochastic and param.dtype == torch.bfloat16:
        result = round_stochastically(result)
    param.copy_(result)


def run_single(
    rule: Rule,
    param: Tensor,
    grad: Tensor,
    buffers: dict[str, Tensor],
    values: dict[str, Any],
    maximize: bool,
    stochastic: bool,
) -> None:
    """One tensor. ``grad`` is never written to; ``param`` and ``buffers`` change in place."""
    if not maximize and param.dtype in _PLAIN:  # nothing to do before or after the rule
        rule(param, grad, **buffers, **values)
        return
    grad = -grad if maximize else grad
    param, grad = _real(param), _real(grad)
    buffers = {name: _real(buffer) for name, buffer in buffers.items()}
    if param.dtype not in _LOW_PRECISION:
        rule(param, grad, **buffers, **values)
        return
    work = param.float()
    rule(work, grad.float(), **buffers, **values)
    _write(param, work, stochastic)


def run_each(
    rule: Rule,
    params: list[Tensor],
    grads: list[Tensor],
    states: list[dict[str, Tensor]],
    values: dict[str, Any],
    maximize: bool,
    stochastic: bool,
) -> None:
    """:func:`run_single` one after another."""
    for param, grad, buffers in zip(params, grads, states, strict=True):
        run_single(rule, param, grad, buffers, values, maximize, stochastic)


def run_many(
    rule: Rule,
    params: list[Tensor],
    grads: list[Tensor],
    buffers: dict[str, list[Tensor]],
    values: dict[str, Any],
    maximize: bool,
    stochastic: bool,
) -> None:
    """Tensors of one device and dtype at once; otherwise as :func:`run_single`."""
    if maximize:
        grads = list(torch._foreach_neg(grads))
    if params[0].is_complex():
        params = [torch.view_as_real(param) for param in params]
        grads = [torch.view_as_real(grad) for grad in grads]
        buffers = {name: [_real(buffer) for buffer in tensors] for name, tensors in buffers.items()}
    if params[0].dtype not in _LOW_PRECISION:
        rule(params, grads, **buffers, **values)
        return
    work = [param.float() for param in params]
    rule(work, [grad.float() for grad in grads], **buffers, **values)
    for param, result in zip(params, work, strict=True):
        _write(param, result, stochastic)
