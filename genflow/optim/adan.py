"""Adan. Xie et al., "Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models", arXiv 2208.06677."""

from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from genflow.errors import check_number
from genflow.optim.base import OptimizerBase
from genflow.optim.batches import Collected
from genflow.optim.execution import whole
from genflow.optim.options import Flags, check_betas
from genflow.optim.scalars import (
    Scalar,
    Scalars,
    addcdiv_scaled_,
    many_addcdiv_scaled_,
    many_root_plus,
    root_plus,
    select,
    sqrt,
)

__all__ = ["Adan"]


class Adan(OptimizerBase):
    r"""Nesterov momentum estimated from gradient differences; four buffers a parameter (Algorithm 1).

    With :math:`d_t = g_t - g_{t-1}` (0 at the first step):

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) d_t, \quad
        n_t = \beta_3 n_{t-1} + (1 - \beta_3)(g_t + \beta_2 d_t)^2

    .. math::
        p_t = \Bigl(p_{t-1} - \eta\, \frac{\hat m_t + \beta_2 \hat v_t}{\sqrt{\hat n_t} + \epsilon}\Bigr)
        / (1 + \eta\lambda)

    Betas are what is kept (the authors' code); the paper writes what is replaced, ``1 - beta``. With ``betas[1] = 0``
    it is Adam with ``(betas[0], betas[2])``.

    Args:
        params: parameters, named parameters or groups.
        lr: step size; default 1e-3; the paper uses larger ones than for Adam.
        betas: of gradient, difference and square; default (0.98, 0.92, 0.99).
        eps: default 1e-8.
        weight_decay: default 0; the paper uses 0.02.
        no_prox: decay before the update, as AdamW, in place of the paper's proximal division. Default False.
        max_grad_norm: scale all gradients so that their joint norm is at most this; 0 (default): not.
        **flags: see :class:`genflow.optim.Flags`.

    Raises:
        InputError: a hyperparameter out of range, named.
    """

    buffers = ("exp_avg", "exp_avg_diff", "exp_avg_sq", "previous_grad")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        no_prox: bool = False,
        max_grad_norm: float = 0.0,
        **flags: Unpack[Flags],
    ) -> None:
        values = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, values | {"no_prox": no_prox, "max_grad_norm": max_grad_norm}, flags)

    def _check(self, group: dict[str, Any]) -> None:
        check_betas(group["betas"], 3)
        check_number("max_grad_norm", group["max_grad_norm"], at_least=0)

    def restart(self) -> None:
        """Forget all moments (the paper's restart condition is the caller's); the next step is a first one."""
        for state in self.state.values():
            for value in state.values():
                value.zero_()

    def _begin_step(self, collected: list[Collected]) -> None:
        self._norm: Tensor | None = None
        if any(part.group["max_grad_norm"] for part in collected):
            norms = [whole(torch.linalg.vector_norm(g)) for part in collected for g in part.grads]
            if norms:
                self._norm = torch.linalg.vector_norm(
                    torch.stack([n.to(norms[0].device, torch.float64) for n in norms])
                )

    def _entrywise(self, group: dict[str, Any]) -> bool:
        return True

    def _constants(self, group: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        beta1, beta2, beta3 = group["betas"]
        return {
            "beta1": beta1,
            "beta2": beta2,
            "beta3": beta3,
            "clipped": group["max_grad_norm"] > 0,
            "weight_decay": group["weight_decay"],
            "no_prox": group["no_prox"],
        }

    def _scalars(self, group: dict[str, Any], lr: Scalar, t: Scalar) -> dict[str, Scalar]:
        beta1, beta2, beta3 = group["betas"]
        clip = 1.0
        if group["max_grad_norm"] and self._norm is not None:
            clip = (group["max_grad_norm"] / (self._norm + group["eps"])).clamp_max(1)
        shrink = lr * group["weight_decay"]
        correction1, root = 1 - beta1**t, sqrt(1 - beta3**t)
        return {
            "clip": clip,
            "follows": select(t > 1, 1.0, 0.0),
            "decay": 1 - shrink if group["no_prox"] else 1 / (1 + shrink),
            # the correction of the denominator is moved to what it divides, that of the mean out of the sum
            "diff_weight": beta2 * correction1 / (1 - beta2**t),
            "step_size": -lr * root / correction1,
            "floor": group["eps"] * root,
        }

    @staticmethod
    def single(
        param: Tensor,
        grad: Tensor,
        exp_avg: Tensor,
        exp_avg_diff: Tensor,
        exp_avg_sq: Tensor,
        previous_grad: Tensor,
        *,
        beta1: float,
        beta2: float,
        beta3: float,
        weight_decay: float,
        no_prox: bool,
        clipped: bool,
        clip: Scalar,
        follows: Scalar,
        decay: Scalar,
        diff_weight: Scalar,
        step_size: Scalar,
        floor: Scalar,
    ) -> None:
        """One tensor."""
        if clipped:
            grad = grad * clip
        diff = grad - previous_grad
        if not (isinstance(follows, float) and follows == 1):
            diff = diff * follows
        previous_grad.copy_(grad)
        exp_avg.lerp_(grad, 1 - beta1)
        exp_avg_diff.lerp_(diff, 1 - beta2)
        ahead = grad.add(diff, alpha=beta2)
        exp_avg_sq.mul_(beta3).addcmul_(ahead, ahead, value=1 - beta3)
        if isinstance(diff_weight, Tensor):
            update = exp_avg + exp_avg_diff * diff_weight
        else:
            update = exp_avg.add(exp_avg_diff, alpha=diff_weight)
        if weight_decay and no_prox:
            param.mul_(decay)
        addcdiv_scaled_(param, update, root_plus(exp_avg_sq, floor), step_size)
        if weight_decay and not no_prox:
            param.mul_(decay)

    @staticmethod
    def many(
        params: list[Tensor],
        grads: list[Tensor],
        exp_avg: list[Tensor],
        exp_avg_diff: list[Tensor],
        exp_avg_sq: list[Tensor],
        previous_grad: list[Tensor],
        *,
        beta1: float,
        beta2: float,
        beta3: float,
        weight_decay: float,
        no_prox: bool,
        clipped: bool,
        clip: Scalars,
        follows: Scalars,
        decay: Scalars,
        diff_weight: Scalars,
        step_size: Scalars,
        floor: Scalars,
    ) -> None:
        """Many tensors at once."""
        if clipped:
            grads = torch._foreach_mul(grads, clip)
        diffs = torch._foreach_sub(grads, previous_grad)
        if not (isinstance(follows, float) and follows == 1):
            torch._foreach_mul_(diffs, follows)
        torch._foreach_copy_(previous_grad, grads)
        torch._foreach_lerp_(exp_avg, grads, 1 - beta1)
        torch._foreach_lerp_(exp_avg_diff, diffs, 1 - beta2)
        ahead = torch._foreach_add(grads, diffs, alpha=beta2)
        torch._foreach_mul_(exp_avg_sq, beta3)
        torch._foreach_addcmul_(exp_avg_sq, ahead, ahead, value=1 - beta3)
        if isinstance(diff_weight, float):
            updates = torch._foreach_add(exp_avg, exp_avg_diff, alpha=diff_weight)
        else:
            updates = torch._foreach_mul(exp_avg_diff, diff_weight)
            torch._foreach_add_(updates, exp_avg)
        if weight_decay and no_prox:
            torch._foreach_mul_(params, decay)
        many_addcdiv_scaled_(params, list(updates), many_root_plus(exp_avg_sq, floor), step_size)
        if weight_decay and not no_prox:
            torch._foreach_mul_(params, decay)
