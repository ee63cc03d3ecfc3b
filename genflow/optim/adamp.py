"""AdamP. Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights",
arXiv 2006.08217, Algorithm 2."""

from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from genflow.errors import check_number
from genflow.optim.base import OptimizerBase
from genflow.optim.options import Flags, check_betas
from genflow.optim.projection import descend_, descend_many_, warn_if_flat
from genflow.optim.scalars import Scalar, Scalars, many_root_plus, root_plus, sqrt

__all__ = ["AdamP"]


class AdamP(OptimizerBase):
    r"""AdamW that drops the update's part along scale-invariant weights.

    A weight followed by a normalization does not change the loss along itself; momentum steps still let it grow,
    which shrinks the effective step. Where the weights look so (see :func:`genflow.optim.projection.project`), the
    Adam update :math:`u` becomes :math:`u - w (w \cdot u) / \|w\|^2`, by row or at once, and the decay is multiplied
    by ``wd_ratio``. On other weights, and on vectors, it is AdamW.

    Rows are the first dimension; transposed convolutions keep their outputs in the second, so they are seen at once.

    Args:
        params: parameters, named parameters or groups.
        lr: step size; default 1e-3.
        betas: of the two moments; default (0.9, 0.999).
        eps: default 1e-8.
        weight_decay: decoupled, times ``lr``; default 0.
        delta: threshold of the cosine; default 0.1 (section 3.3).
        wd_ratio: decay of projected weights relative to ``weight_decay``; default 0.1.
        nesterov: look ahead by one momentum step; default False.
        **flags: see :class:`genflow.optim.Flags`.

    Raises:
        InputError: a hyperparameter out of range, named.
    """

    buffers = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        nesterov: bool = False,
        **flags: Unpack[Flags],
    ) -> None:
        values = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, values | {"delta": delta, "wd_ratio": wd_ratio, "nesterov": nesterov}, flags)
        warn_if_flat(type(self).__name__, [param for group in self.param_groups for param in group["params"]])

    def _check(self, group: dict[str, Any]) -> None:
        check_betas(group["betas"])
        check_number("delta", group["delta"], at_least=0)
        check_number("wd_ratio", group["wd_ratio"], at_least=0, at_most=1)

    def _constants(self, group: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        names = ("eps", "weight_decay", "delta", "wd_ratio", "nesterov")
        return {
            "beta1": beta1,
            "beta2": beta2,
            "complex_view": dtype.is_complex,
            **{name: group[name] for name in names},
        }

    def _scalars(self, group: dict[str, Any], lr: Scalar, t: Scalar) -> dict[str, Scalar]:
        beta1, beta2 = group["betas"]
        root = sqrt(1 - beta2**t)  # of the denominator, here moved to what it divides
        return {
            "shrink": lr * group["weight_decay"],
            "step_size": -lr * root / (1 - beta1**t),
            "floor": group["eps"] * root,
        }

    @staticmethod
    def single(
        param: Tensor,
        grad: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        *,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        delta: float,
        wd_ratio: float,
        nesterov: bool,
        complex_view: bool,
        shrink: Scalar,
        step_size: Scalar,
        floor: Scalar,
    ) -> None:
        """One tensor."""
        exp_avg.lerp_(grad, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        momentum = exp_avg.lerp(grad, 1 - beta1) if nesterov else exp_avg
        update = momentum / root_plus(exp_avg_sq, floor)
        limits = {"delta": delta, "wd_ratio": wd_ratio, "eps": eps}
        descend_(param, grad, update, complex_view, weight_decay > 0, shrink, step_size, **limits)

    @staticmethod
    def many(
        params: list[Tensor],
        grads: list[Tensor],
        exp_avg: list[Tensor],
        exp_avg_sq: list[Tensor],
        *,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        delta: float,
        wd_ratio: float,
        nesterov: bool,
        complex_view: bool,
        shrink: Scalars,
        step_size: Scalars,
        floor: Scalars,
    ) -> None:
        """Many tensors at once."""
        torch._foreach_lerp_(exp_avg, grads, 1 - beta1)
        torch._foreach_mul_(exp_avg_sq, beta2)
        torch._foreach_addcmul_(exp_avg_sq, grads, grads, value=1 - beta2)
        momenta = torch._foreach_lerp(exp_avg, grads, 1 - beta1) if nesterov else exp_avg
        updates = list(torch._foreach_div(momenta, many_root_plus(exp_avg_sq, floor)))
        limits = {"delta": delta, "wd_ratio": wd_ratio, "eps": eps}
        descend_many_(params, grads, updates, complex_view, weight_decay > 0, shrink, step_size, **limits)
