"""AdaBelief. Zhuang et al., "Adapting Stepsizes by the Belief in Observed Gradients", arXiv 2010.07468, Algorithm 2."""

from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from genflow.optim.base import OptimizerBase
from genflow.optim.options import Flags, check_betas
from genflow.optim.scalars import (
    Scalar,
    Scalars,
    addcdiv_scaled_,
    decay_weights_,
    many_addcdiv_scaled_,
    many_decay_weights_,
    many_root_plus,
    root_plus,
    select,
    sqrt,
)

__all__ = ["AdaBelief"]


class AdaBelief(OptimizerBase):
    r"""Adam with the variance of the gradient around its running mean in place of its square.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
        s_t = \beta_2 s_{t-1} + (1 - \beta_2)(g_t - m_t)^2 + \epsilon, \quad
        p_t = (1 - \eta\lambda) p_{t-1} - \eta\, \hat m_t / (\sqrt{\hat s_t} + \epsilon)

    The :math:`\epsilon` inside :math:`s_t` adds up to :math:`\epsilon / (1 - \beta_2)`, as in the paper and in every
    implementation. At the first step :math:`g - m = \beta_1 g`: steps start larger than Adam's.

    Args:
        params: parameters, named parameters or groups.
        lr: step size; default 1e-3.
        betas: of mean and variance; default (0.9, 0.999).
        eps: default 1e-16 (the authors' code); its square root bounds the variance from below.
        weight_decay: default 0.
        weight_decouple: decay the weights themselves (default, as AdamW), or add ``weight_decay * p`` to the gradient.
        fixed_decay: decoupled decay without the factor ``lr``; default False.
        rectify: RAdam's variance rectification (the authors' default); False is Algorithm 2.
        degenerated_to_sgd: while rectification has no variance to use (its first steps), take momentum steps; else
            none. Default True.
        accumulate_eps: keep ``eps`` in :math:`s_t`; False adds it under the root only. Default True.
        **flags: see :class:`genflow.optim.Flags`.

    Raises:
        InputError: a hyperparameter out of range, named.
    """

    buffers = ("exp_avg", "exp_avg_var")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float = 0.0,
        *,
        weight_decouple: bool = True,
        fixed_decay: bool = False,
        rectify: bool = True,
        degenerated_to_sgd: bool = True,
        accumulate_eps: bool = True,
        **flags: Unpack[Flags],
    ) -> None:
        values = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "weight_decouple": weight_decouple,
            "fixed_decay": fixed_decay,
            "rectify": rectify,
            "degenerated_to_sgd": degenerated_to_sgd,
            "accumulate_eps": accumulate_eps,
        }
        super().__init__(params, values, flags)

    def _check(self, group: dict[str, Any]) -> None:
        check_betas(group["betas"])

    def _entrywise(self, group: dict[str, Any]) -> bool:
        return True

    def _constants(self, group: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        names = ("eps", "weight_decay", "weight_decouple", "rectify", "accumulate_eps")
        # g - m is taken at the mean before the step, 1 / beta1 times what the paper squares
        take = (1 - beta2) * beta1**2
        return {"beta1": beta1, "beta2": beta2, "take": take, **{name: group[name] for name in names}}

    def _scalars(self, group: dict[str, Any], lr: Scalar, t: Scalar) -> dict[str, Scalar]:
        beta1, beta2 = group["betas"]
        correction1, correction2 = 1 - beta1**t, 1 - beta2**t
        decay = 1 - (1 if group["fixed_decay"] else lr) * group["weight_decay"]
        if not group["rectify"]:
            root = sqrt(correction2)  # of the denominator, here moved to what it divides
            return {
                "decay": decay,
                "step_size": -lr * root / correction1,
                "floor": group["eps"] * root,
                "adaptive": 1.0,
            }
        # RAdam (arXiv 1908.03265), Algorithm 2: n is the length of the moving average that the variance amounts to
        n_max = 2 / (1 - beta2) - 1
        n = n_max - 2 * t * beta2**t / correction2
        adaptive = n >= 5
        ratio = (n - 4) / max(n_max - 4, 1e-30) * (n - 2) / n * n_max / max(n_max - 2, 1e-30)
        rectified = sqrt(correction2 * ratio)
        factor = select(adaptive, rectified, 1.0 if group["degenerated_to_sgd"] else 0.0)
        return {
            "decay": decay,
            "step_size": -lr * factor / correction1,
            "floor": group["eps"],
            "adaptive": select(adaptive, 1.0, 0.0),
        }

    @staticmethod
    def single(
        param: Tensor,
        grad: Tensor,
        exp_avg: Tensor,
        exp_avg_var: Tensor,
        *,
        beta1: float,
        beta2: float,
        take: float,
        eps: float,
        weight_decay: float,
        weight_decouple: bool,
        rectify: bool,
        accumulate_eps: bool,
        decay: Scalar,
        step_size: Scalar,
        floor: Scalar,
        adaptive: Scalar,
    ) -> None:
        """One tensor."""
        grad = decay_weights_(param, grad, weight_decay, weight_decouple, decay)
        surprise = grad - exp_avg
        exp_avg.add_(surprise, alpha=1 - beta1)
        exp_avg_var.mul_(beta2).addcmul_(surprise, surprise, value=take)
        denominator = root_plus(exp_avg_var.add_(eps) if accumulate_eps else exp_avg_var + eps, floor)
        if rectify and not (isinstance(adaptive, float) and adaptive == 1):
            denominator = denominator * adaptive + (1 - adaptive)  # 1 while there is no variance to use
        addcdiv_scaled_(param, exp_avg, denominator, step_size)

    @staticmethod
    def many(
        params: list[Tensor],
        grads: list[Tensor],
        exp_avg: list[Tensor],
        exp_avg_var: list[Tensor],
        *,
        beta1: float,
        beta2: float,
        take: float,
        eps: float,
        weight_decay: float,
        weight_decouple: bool,
        rectify: bool,
        accumulate_eps: bool,
        decay: Scalars,
        step_size: Scalars,
        floor: Scalars,
        adaptive: Scalars,
    ) -> None:
        """Many tensors at once."""
        grads = many_decay_weights_(params, grads, weight_decay, weight_decouple, decay)
        surprise = torch._foreach_sub(grads, exp_avg)
        torch._foreach_add_(exp_avg, surprise, alpha=1 - beta1)
        torch._foreach_mul_(exp_avg_var, beta2)
        torch._foreach_addcmul_(exp_avg_var, surprise, surprise, value=take)
        variances = exp_avg_var
        if accumulate_eps:
            torch._foreach_add_(exp_avg_var, eps)
        else:
            variances = list(torch._foreach_add(exp_avg_var, eps))
        denominators = many_root_plus(variances, floor)
        if rectify and not (isinstance(adaptive, float) and adaptive == 1):
            each = adaptive if isinstance(adaptive, (list, tuple)) else [adaptive] * len(params)
            denominators = [d * a + (1 - a) for d, a in zip(denominators, each, strict=True)]
        many_addcdiv_scaled_(params, exp_avg, denominators, step_size)
