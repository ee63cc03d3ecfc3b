"""SGDP. Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights",
arXiv 2006.08217, Algorithm 1."""

from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from genflow.errors import check_number
from genflow.optim.base import OptimizerBase
from genflow.optim.options import Flags
from genflow.optim.projection import descend_, descend_many_, warn_if_flat
from genflow.optim.scalars import Scalar, Scalars

__all__ = ["SGDP"]


class SGDP(OptimizerBase):
    r"""SGD with momentum that drops the update's part along scale-invariant weights; see :class:`genflow.optim.AdamP`.

    The buffer starts at zero, so ``dampening`` acts on the first step too (torch's SGD starts it at the gradient).
    The decay is decoupled: :math:`1 - \eta\lambda\rho / (1 - \mu)` with the momentum :math:`\mu` and :math:`\rho` 1 or
    ``wd_ratio``. The momentum buffer itself is never projected.

    Args:
        params: parameters, named parameters or groups.
        lr: step size; default 0.1 (section 5.1).
        momentum: in [0, 1); default 0.
        dampening: weight taken from new gradients; default 0.
        weight_decay: default 0.
        delta, wd_ratio: as :class:`genflow.optim.AdamP`; default 0.1 each.
        eps: default 1e-8.
        nesterov: default False.
        **flags: see :class:`genflow.optim.Flags`.

    Raises:
        InputError: a hyperparameter out of range, named.
    """

    buffers = ("momentum_buffer",)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        *,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        eps: float = 1e-8,
        nesterov: bool = False,
        **flags: Unpack[Flags],
    ) -> None:
        values = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "delta": delta,
            "wd_ratio": wd_ratio,
            "eps": eps,
            "nesterov": nesterov,
        }
        super().__init__(params, values, flags)
        warn_if_flat(type(self).__name__, [param for group in self.param_groups for param in group["params"]])

    def _check(self, group: dict[str, Any]) -> None:
        check_number("momentum", group["momentum"], at_least=0, below=1)
        check_number("dampening", group["dampening"], at_least=0, at_most=1)
        check_number("delta", group["delta"], at_least=0)
        check_number("wd_ratio", group["wd_ratio"], at_least=0, at_most=1)

    def _constants(self, group: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        names = ("momentum", "dampening", "weight_decay", "delta", "wd_ratio", "eps", "nesterov")
        return {"complex_view": dtype.is_complex, **{name: group[name] for name in names}}

    def _scalars(self, group: dict[str, Any], lr: Scalar, t: Scalar) -> dict[str, Scalar]:
        return {"shrink": lr * group["weight_decay"] / (1 - group["momentum"]), "step_size": -lr}

    @staticmethod
    def single(
        param: Tensor,
        grad: Tensor,
        momentum_buffer: Tensor,
        *,
        momentum: float,
        dampening: float,
        weight_decay: float,
        delta: float,
        wd_ratio: float,
        eps: float,
        nesterov: bool,
        complex_view: bool,
        shrink: Scalar,
        step_size: Scalar,
    ) -> None:
        """One tensor."""
        momentum_buffer.mul_(momentum).add_(grad, alpha=1 - dampening)
        update = grad.add(momentum_buffer, alpha=momentum) if nesterov else momentum_buffer.clone()
        limits = {"delta": delta, "wd_ratio": wd_ratio, "eps": eps}
        descend_(param, grad, update, complex_view, weight_decay > 0, shrink, step_size, **limits)

    @staticmethod
    def many(
        params: list[Tensor],
        grads: list[Tensor],
        momentum_buffer: list[Tensor],
        *,
        momentum: float,
        dampening: float,
        weight_decay: float,
        delta: float,
        wd_ratio: float,
        eps: float,
        nesterov: bool,
        complex_view: bool,
        shrink: Scalars,
        step_size: Scalars,
    ) -> None:
        """Many tensors at once."""
        torch._foreach_mul_(momentum_buffer, momentum)
        torch._foreach_add_(momentum_buffer, grads, alpha=1 - dampening)
        if nesterov:
            updates = list(torch._foreach_add(grads, momentum_buffer, alpha=momentum))
        else:
            updates = [buffer.clone() for buffer in momentum_buffer]
        limits = {"delta": delta, "wd_ratio": wd_ratio, "eps": eps}
        descend_many_(params, grads, updates, complex_view, weight_decay > 0, shrink, step_size, **limits)
