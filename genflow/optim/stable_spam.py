"""Stable-SPAM. Huang et al., "Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam", arXiv 2502.17055."""

import math
from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from genflow.errors import check_number
from genflow.optim.base import OptimizerBase
from genflow.optim.execution import scalar_dtype, whole
from genflow.optim.options import Flags, check_betas
from genflow.optim.scalars import (
    Scalar,
    Scalars,
    add_scaled_,
    addcdiv_scaled_,
    cosine,
    many_add_scaled_,
    many_addcdiv_scaled_,
    many_root_plus,
    root_plus,
    select,
    sqrt,
)

__all__ = ["StableSPAM"]


class StableSPAM(OptimizerBase):
    r"""AdamW on gradients that are clipped against their own history and rescaled, with momentum resets.

    A step, in this order (Algorithm 1), with step count :math:`t`, every average debiased by :math:`t`:

    1. decoupled weight decay;
    2. spike clipping: entries above the average of :math:`\max|g|` are scaled so that the largest lands on it;
    3. norm: the gradient's norm becomes :math:`\overline{n} / (\sqrt{\overline{n^2}} + \epsilon)`, averages of its
       norm and squared norm (a zero gradient stays zero);
    4. every ``gap`` steps both moments are zeroed and their count starts again at 1, in this same step;
    5. Adam.

    The authors' code differs where it resets: it uses the old moments once more and restarts the count of 2 and 3
    as well, which switches the clipping off for long. Here, as in the paper, only the moments restart.
    Sharded parameters: 2 and 3 are over the whole tensor with DTensor, over the shard with FSDP's flat parameters.

    Args:
        params: parameters, named parameters or groups.
        lr: step size; default 1e-3.
        betas: of the two moments; default (0.9, 0.999).
        eps: default 1e-8.
        weight_decay: decoupled, times ``lr``; default 0.
        gamma1: average of the norm; None takes ``betas[0]``. Default 0.7.
        gamma2: average of the squared norm; default 0.9.
        gamma3: average of the largest entry; default 0.999.
        gap: steps between resets, 0 for none; default 1000. Keep it fixed within a run: the count since the last
            reset is read off the step count.
        total_steps: if given, a half cosine from 1 to ``eta_min`` over these steps multiplies ``gamma1`` and
            ``betas[0]``; default None.
        eta_min: default 0.5.
        clip: do part 2; default True.
        normalize: do part 3; default True.
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
        gamma1: float | None = 0.7,
        gamma2: float = 0.9,
        gamma3: float = 0.999,
        gap: int = 1000,
        total_steps: int | None = None,
        eta_min: float = 0.5,
        clip: bool = True,
        normalize: bool = True,
        **flags: Unpack[Flags],
    ) -> None:
        values = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "gamma1": gamma1,
            "gamma2": gamma2,
            "gamma3": gamma3,
            "gap": gap,
            "total_steps": total_steps,
            "eta_min": eta_min,
            "clip": clip,
            "normalize": normalize,
        }
        super().__init__(params, values, flags)

    def _check(self, group: dict[str, Any]) -> None:
        check_betas(group["betas"])
        for name in ("gamma1", "gamma2", "gamma3"):
            if name != "gamma1" or group[name] is not None:
                check_number(name, group[name], at_least=0, below=1)
        check_number("gap", group["gap"], at_least=0, integer=True)
        if group["total_steps"] is not None:
            check_number("total_steps", group["total_steps"], at_least=1, integer=True)
        check_number("eta_min", group["eta_min"], at_least=0, at_most=1)

    def _new_state(self, group: dict[str, Any], param: Tensor) -> dict[str, Tensor]:
        zero = torch.zeros((), dtype=scalar_dtype(param), device=param.device)
        names = ("max_avg", "norm_avg", "norm_sq_avg")
        return super()._new_state(group, param) | {name: zero.clone() for name in names}

    def _constants(self, group: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        names = ("eps", "weight_decay", "gamma2", "gamma3", "clip", "normalize")
        return {"beta2": group["betas"][1], **{name: group[name] for name in names}}

    def _scalars(self, group: dict[str, Any], lr: Scalar, t: Scalar) -> dict[str, Scalar]:
        beta1, beta2 = group["betas"]
        gamma1: Scalar = beta1 if group["gamma1"] is None else group["gamma1"]
        if group["total_steps"] is not None:
            progress = select(t < group["total_steps"], t / group["total_steps"], 1.0 + 0 * t)
            factor = group["eta_min"] + (1 - group["eta_min"]) * (1 + cosine(math.pi * progress)) / 2
            beta1, gamma1 = beta1 * factor, gamma1 * factor
        keep, since = 1.0, t
        if gap := group["gap"]:
            keep = select(t % gap == 0, 0.0, 1.0)
            since = select(t >= gap, t % gap + 1, t)
        root = sqrt(1 - beta2**since)
        return {
            "decay": 1 - lr * group["weight_decay"],
            "max_correction": 1 - group["gamma3"] ** t,
            "norm_keep": gamma1,
            "norm_correction": 1 - gamma1**t,
            "norm_sq_correction": 1 - group["gamma2"] ** t,
            "first_keep": keep * beta1,
            "first_take": 1 - beta1,
            "second_keep": keep * beta2,
            # the correction of the denominator is moved to what it divides
            "step_size": -lr * root / (1 - beta1**since),
            "floor": group["eps"] * root,
        }

    @staticmethod
    def single(
        param: Tensor,
        grad: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        max_avg: Tensor,
        norm_avg: Tensor,
        norm_sq_avg: Tensor,
        *,
        beta2: float,
        eps: float,
        weight_decay: float,
        gamma2: float,
        gamma3: float,
        clip: bool,
        normalize: bool,
        decay: Scalar,
        max_correction: Scalar,
        norm_keep: Scalar,
        norm_correction: Scalar,
        norm_sq_correction: Scalar,
        first_keep: Scalar,
        first_take: Scalar,
        second_keep: Scalar,
        step_size: Scalar,
        floor: Scalar,
    ) -> None:
        """One tensor."""
        if weight_decay:
            param.mul_(decay)
        if clip or normalize:
            corrections = max_correction, norm_keep, norm_correction, norm_sq_correction
            averages = max_avg, norm_avg, norm_sq_avg
            grad = _adapt(grad, averages, corrections, eps, gamma2, gamma3, clip, normalize)
        exp_avg.mul_(first_keep)
        add_scaled_(exp_avg, grad, first_take)
        exp_avg_sq.mul_(second_keep).addcmul_(grad, grad, value=1 - beta2)
        addcdiv_scaled_(param, exp_avg, root_plus(exp_avg_sq, floor), step_size)

    @staticmethod
    def many(
        params: list[Tensor],
        grads: list[Tensor],
        exp_avg: list[Tensor],
        exp_avg_sq: list[Tensor],
        max_avg: list[Tensor],
        norm_avg: list[Tensor],
        norm_sq_avg: list[Tensor],
        *,
        beta2: float,
        eps: float,
        weight_decay: float,
        gamma2: float,
        gamma3: float,
        clip: bool,
        normalize: bool,
        decay: Scalars,
        max_correction: Scalars,
        norm_keep: Scalars,
        norm_correction: Scalars,
        norm_sq_correction: Scalars,
        first_keep: Scalars,
        first_take: Scalars,
        second_keep: Scalars,
        step_size: Scalars,
        floor: Scalars,
    ) -> None:
        """Many tensors at once."""
        if weight_decay:
            torch._foreach_mul_(params, decay)
        if _readable(grads[0], max_correction):
            corrections = max_correction, norm_keep, norm_correction, norm_sq_correction
            grads = [
                _adapt(grad, averages, corrections, eps, gamma2, gamma3, clip, normalize)
                for grad, *averages in zip(grads, max_avg, norm_avg, norm_sq_avg, strict=True)
            ]
            clip = normalize = False  # done
        if clip:
            peaks = torch._foreach_norm(grads, math.inf)
            torch._foreach_lerp_(max_avg, peaks, 1 - gamma3)
            thresholds = torch._foreach_div(max_avg, max_correction)
            grads = [
                torch.where(grad.abs() > threshold, grad * (threshold / torch.where(peak > 0, peak, 1)), grad)
                for grad, peak, threshold in zip(grads, peaks, thresholds, strict=True)
            ]
        if normalize:
            norms = torch._foreach_norm(grads)
            torch._foreach_mul_(norm_avg, norm_keep)
            take = [1 - keep for keep in norm_keep] if isinstance(norm_keep, (list, tuple)) else 1 - norm_keep
            torch._foreach_add_(norm_avg, torch._foreach_mul(norms, take))
            torch._foreach_lerp_(norm_sq_avg, torch._foreach_mul(norms, norms), 1 - gamma2)
            wanted = torch._foreach_div(norm_avg, norm_correction)
            roots = torch._foreach_div(norm_sq_avg, norm_sq_correction)
            torch._foreach_sqrt_(roots)
            torch._foreach_add_(roots, eps)
            torch._foreach_div_(wanted, roots)
            factors = [
                torch.where(norm > 0, want / torch.where(norm > 0, norm, 1), 1)
                for want, norm in zip(wanted, norms, strict=True)
            ]
            grads = torch._foreach_mul(grads, factors)
        torch._foreach_mul_(exp_avg, first_keep)
        many_add_scaled_(exp_avg, grads, first_take)
        torch._foreach_mul_(exp_avg_sq, second_keep)
        torch._foreach_addcmul_(exp_avg_sq, grads, grads, value=1 - beta2)
        many_addcdiv_scaled_(params, exp_avg, many_root_plus(exp_avg_sq, floor), step_size)


def _readable(grad: Tensor, correction: Scalars) -> bool:
    """Whether values may be read back for nothing: on a CPU, in an eager step."""
    eager = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return eager and grad.device.type == "cpu" and type(grad) is Tensor and isinstance(correction, float)


def _adapt(
    grad: Tensor,
    averages: Sequence[Tensor],
    corrections: tuple[Scalar, Scalar, Scalar, Scalar],
    eps: float,
    gamma2: float,
    gamma3: float,
    clip: bool,
    normalize: bool,
) -> Tensor:
    """Parts 2 and 3 for one tensor."""
    max_avg, norm_avg, norm_sq_avg = averages
    max_correction, norm_keep, norm_correction, norm_sq_correction = corrections
    if _readable(grad, max_correction):
        if clip:
            low, high = torch.aminmax(grad)  # the infinity norm takes 20 times longer
            peak = max(-low.item(), high.item())
            average = max_avg.item()
            average += (peak - average) * (1 - gamma3)
            max_avg.fill_(average)
            threshold = average / max_correction
            if peak > threshold:
                grad = torch.where(grad.abs() > threshold, grad * (threshold / peak), grad)
        if normalize:
            norm = torch.linalg.vector_norm(grad).item()
            mean = norm_avg.item() * norm_keep + norm * (1 - norm_keep)
            square = norm_sq_avg.item() * gamma2 + norm * norm * (1 - gamma2)
            norm_avg.fill_(mean)
            norm_sq_avg.fill_(square)
            if norm > 0:
                grad = grad * (mean / norm_correction / (math.sqrt(square / norm_sq_correction) + eps) / norm)
        return grad
    if clip:
        size = grad.abs()
        peak = whole(size.amax())
        max_avg.lerp_(peak, 1 - gamma3)
        threshold = max_avg / max_correction
        grad = torch.where(size > threshold, grad * (threshold / torch.where(peak > 0, peak, 1)), grad)
    if normalize:
        norm = whole(torch.linalg.vector_norm(grad))
        norm_avg.mul_(norm_keep).add_(norm * (1 - norm_keep))
        norm_sq_avg.lerp_(norm.square(), 1 - gamma2)
        wanted = norm_avg / norm_correction / ((norm_sq_avg / norm_sq_correction).sqrt() + eps)
        grad = grad * torch.where(norm > 0, wanted / torch.where(norm > 0, norm, 1), 1)
    return grad
