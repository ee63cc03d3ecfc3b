"""Lion. Chen et al., "Symbolic Discovery of Optimization Algorithms", arXiv 2302.06675, Algorithm 2."""

from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from genflow.optim.base import OptimizerBase
from genflow.optim.kappas import L1, Kappa
from genflow.optim.options import Flags, check_betas
from genflow.optim.scalars import Scalar, Scalars, add_scaled_, many_add_scaled_

__all__ = ["Lion"]


class Lion(OptimizerBase):
    r"""Sign of an interpolated momentum; one buffer a parameter.

    .. math::
        c_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
        p_t = (1 - \eta\lambda) p_{t-1} - \eta \operatorname{sign}(c_t), \quad
        m_t = \beta_2 m_{t-1} + (1 - \beta_2) g_t

    Every entry moves by exactly ``lr`` a step, so ``lr`` is 3 to 10 times smaller than AdamW's and ``weight_decay``
    as many times larger (section 5 of the paper). Where :math:`c_t` is zero, only the decay acts.

    Args:
        params: parameters, named parameters or groups.
        lr: step size; default 1e-4 (Algorithm 2).
        betas: interpolation and momentum; default (0.9, 0.99) (Algorithm 2).
        weight_decay: decoupled, times ``lr``; default 0.
        **flags: see :class:`genflow.optim.Flags`.

    Raises:
        InputError: a hyperparameter out of range, named.
    """

    buffers = ("exp_avg",)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **flags: Unpack[Flags],
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay}, flags)

    def _check(self, group: dict[str, Any]) -> None:
        check_betas(group["betas"])

    def _kappa(self, group: dict[str, Any]) -> Kappa:
        return L1()

    def _entrywise(self, group: dict[str, Any]) -> bool:
        return self._kappa(group).entrywise

    def _constants(self, group: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        return {
            "beta1": beta1,
            "beta2": beta2,
            "weight_decay": group["weight_decay"],
            "kappa": self._kappa(group),
        }

    def _scalars(self, group: dict[str, Any], lr: Scalar, t: Scalar) -> dict[str, Scalar]:
        return {"decay": 1 - lr * group["weight_decay"], "step_size": -lr}

    @staticmethod
    def single(
        param: Tensor,
        grad: Tensor,
        exp_avg: Tensor,
        *,
        beta1: float,
        beta2: float,
        weight_decay: float,
        kappa: Kappa,
        decay: Scalar,
        step_size: Scalar,
    ) -> None:
        """One tensor."""
        update = kappa.grad_(exp_avg.lerp(grad, 1 - beta1))
        exp_avg.lerp_(grad, 1 - beta2)
        if weight_decay:
            param.mul_(decay)
        add_scaled_(param, update, step_size)

    @staticmethod
    def many(
        params: list[Tensor],
        grads: list[Tensor],
        exp_avg: list[Tensor],
        *,
        beta1: float,
        beta2: float,
        weight_decay: float,
        kappa: Kappa,
        decay: Scalars,
        step_size: Scalars,
    ) -> None:
        """Many tensors at once."""
        updates = kappa.grads_(torch._foreach_lerp(exp_avg, grads, 1 - beta1))
        torch._foreach_lerp_(exp_avg, grads, 1 - beta2)
        if weight_decay:
            torch._foreach_mul_(params, decay)
        many_add_scaled_(params, updates, step_size)
