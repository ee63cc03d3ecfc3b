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
    many_addcdiv_scaled_,
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
        return {"beta1": beta1, "beta2": beta2, **{name: group[name] for name in names}}

    def _scalars(self, group: dict[str, Any], lr: Scalar, t: Scalar) -> dict[str, Scalar]:
        beta1, beta2 = group["betas"]
        correction1, correction2 = 1 - beta1**t, 1 - beta2**t
        decay = 1 - (1 if group["fixed_decay"] else lr) * group["weight_decay"]
        if not group["rectify"]:
            values = {"step_size": -lr / correction1, "root_correction": sqrt(correction2), "adaptive": 1.0}
            return {"decay": decay, **values}
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
            "root_correction": 1.0,  # it is part of the rectified step size
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
        eps: float,
        weight_decay: float,
        weight_decouple: bool,
        rectify: bool,
        accumulate_eps: bool,
        decay: Scalar,
        step_size: Scalar,
        root_correction: Scalar,
        adaptive: Scalar,
    ) -> None:
        """One tensor."""
        if weight_decay and weight_decouple:
            param.mul_(decay)
        elif weight_decay:
            grad = grad.add(param, alpha=weight_decay)
        exp_avg.lerp_(grad, 1 - beta1)
        surprise = grad - exp_avg
        exp_avg_var.mul_(beta2).addcmul_(surprise, surprise, value=1 - beta2)
        variance = exp_avg_var.add_(eps) if accumulate_eps else exp_avg_var + eps
        root = variance.sqrt()
        denominator = root + eps if rectify else (root / root_correction).add_(eps)
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
        eps: float,
        weight_decay: float,
        weight_decouple: bool,
        rectify: bool,
        accumulate_eps: bool,
        decay: Scalars,
        step_size: Scalars,
        root_correction: Scalars,
        adaptive: Scalars,
    ) -> None:
        """Many tensors at once."""
        if weight_decay and weight_decouple:
            torch._foreach_mul_(params, decay)
        elif weight_decay:
            grads = torch._foreach_add(grads, params, alpha=weight_decay)
        torch._foreach_lerp_(exp_avg, grads, 1 - beta1)
        surprise = torch._foreach_sub(grads, exp_avg)
        torch._foreach_mul_(exp_avg_var, beta2)
        torch._foreach_addcmul_(exp_avg_var, surprise, surprise, value=1 - beta2)
        if accumulate_eps:
            torch._foreach_add_(exp_avg_var, eps)
            denominators = torch._foreach_sqrt(exp_avg_var)
        else:
            denominators = torch._foreach_add(exp_avg_var, eps)
            torch._foreach_sqrt_(denominators)
        if not rectify:
            torch._foreach_div_(denominators, root_correction)
        torch._foreach_add_(denominators, eps)
        if rectify and not (isinstance(adaptive, float) and adaptive == 1):
            each = adaptive if isinstance(adaptive, (list, tuple)) else [adaptive] * len(params)
            denominators = [d * a + (1 - a) for d, a in zip(denominators, each, strict=True)]
        many_addcdiv_scaled_(params, exp_avg, denominators, step_size)
