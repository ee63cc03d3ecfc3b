"""diffGrad. Dubey et al., "diffGrad: An Optimization Method for Convolutional Neural Networks", arXiv 1909.11015."""

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
    sqrt,
)

__all__ = ["DiffGrad"]


class DiffGrad(OptimizerBase):
    r"""Adam whose step shrinks to a half where the gradient stopped changing.

    .. math::
        \xi_t = \operatorname{sigmoid}(|g_{t-1} - g_t|), \quad g_0 = 0, \quad
        p_t = p_{t-1} - \eta \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \frac{\xi_t m_t}{\sqrt{v_t} + \epsilon}

    with Adam's :math:`m` and :math:`v`. :math:`\xi` lies between 1/2 and 1, so ``lr`` acts like half of Adam's once
    gradients change little. :math:`\epsilon` stands outside the bias correction, as in Adam's first version.

    Args:
        params: parameters, named parameters or groups.
        lr: step size; default 1e-3.
        betas: of the two moments; default (0.9, 0.999).
        eps: default 1e-8.
        weight_decay: default 0.
        weight_decouple: decay the weights themselves (as AdamW); default False, the authors' L2 term in the gradient.
        **flags: see :class:`genflow.optim.Flags`.

    Raises:
        InputError: a hyperparameter out of range, named.
    """

    buffers = ("exp_avg", "exp_avg_sq", "previous_grad")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        weight_decouple: bool = False,
        **flags: Unpack[Flags],
    ) -> None:
        values = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, values | {"weight_decouple": weight_decouple}, flags)

    def _check(self, group: dict[str, Any]) -> None:
        check_betas(group["betas"])

    def _entrywise(self, group: dict[str, Any]) -> bool:
        return True

    def _constants(self, group: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        names = ("eps", "weight_decay", "weight_decouple")
        return {"beta1": beta1, "beta2": beta2, **{name: group[name] for name in names}}

    def _scalars(self, group: dict[str, Any], lr: Scalar, t: Scalar) -> dict[str, Scalar]:
        beta1, beta2 = group["betas"]
        return {
            "decay": 1 - lr * group["weight_decay"],
            "step_size": -lr * sqrt(1 - beta2**t) / (1 - beta1**t),
        }

    @staticmethod
    def single(
        param: Tensor,
        grad: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        previous_grad: Tensor,
        *,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        weight_decouple: bool,
        decay: Scalar,
        step_size: Scalar,
    ) -> None:
        """One tensor."""
        grad = decay_weights_(param, grad, weight_decay, weight_decouple, decay)
        exp_avg.lerp_(grad, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        if torch.is_grad_enabled():
            update = exp_avg * (previous_grad - grad).abs().sigmoid()
        else:  # in what is written anew below
            update = previous_grad.sub_(grad).abs_().sigmoid_().mul_(exp_avg)
        addcdiv_scaled_(param, update, root_plus(exp_avg_sq, eps), step_size)
        previous_grad.copy_(grad)

    @staticmethod
    def many(
        params: list[Tensor],
        grads: list[Tensor],
        exp_avg: list[Tensor],
        exp_avg_sq: list[Tensor],
        previous_grad: list[Tensor],
        *,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        weight_decouple: bool,
        decay: Scalars,
        step_size: Scalars,
    ) -> None:
        """Many tensors at once."""
        grads = many_decay_weights_(params, grads, weight_decay, weight_decouple, decay)
        torch._foreach_lerp_(exp_avg, grads, 1 - beta1)
        torch._foreach_mul_(exp_avg_sq, beta2)
        torch._foreach_addcmul_(exp_avg_sq, grads, grads, value=1 - beta2)
        updates = list(torch._foreach_sub(previous_grad, grads))
        torch._foreach_copy_(previous_grad, grads)
        torch._foreach_abs_(updates)
        torch._foreach_sigmoid_(updates)
        torch._foreach_mul_(updates, exp_avg)
        many_addcdiv_scaled_(params, updates, many_root_plus(exp_avg_sq, eps), step_size)
