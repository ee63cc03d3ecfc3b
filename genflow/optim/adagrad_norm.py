"""AdaGrad-Norm. Ward, Wu and Bottou, arXiv 1806.01811; with adaptive batch sizes in Lau et al., arXiv 2402.11215."""

from typing import Any, Literal, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from genflow.errors import check_choice, check_number
from genflow.optim.base import OptimizerBase
from genflow.optim.batches import Collected
from genflow.optim.execution import state_dtype, whole
from genflow.optim.options import Flags
from genflow.optim.scalars import Scalar, Scalars

__all__ = ["AdaGradNorm"]


class AdaGradNorm(OptimizerBase):
    r"""Gradient descent with one step size for all weights, from the norms seen so far.

    .. math::
        b_t^2 = b_{t-1}^2 + \|g_t\|^2, \quad p_t = p_{t-1} - \eta\, g_t / b_t

    The norm is over all parameters of the optimizer. Each parameter keeps its own share of :math:`b_t^2` in float64,
    so that state can be saved, moved and sharded as any other.

    Args:
        params: parameters, named parameters or groups.
        lr: default 1.
        b0: the start :math:`b_0`; default 0.01.
        weight_decay: L2 term in the gradient, as torch's Adagrad; default 0.
        scope: "model" (default), or "tensor" for a :math:`b_t` of each parameter's own.
        **flags: see :class:`genflow.optim.Flags`.

    Raises:
        InputError: a hyperparameter out of range, named.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        b0: float = 1e-2,
        weight_decay: float = 0.0,
        *,
        scope: Literal["model", "tensor"] = "model",
        **flags: Unpack[Flags],
    ) -> None:
        super().__init__(params, {"lr": lr, "b0": b0, "weight_decay": weight_decay, "scope": scope}, flags)

    def _check(self, group: dict[str, Any]) -> None:
        check_number("b0", group["b0"], above=0)
        check_choice("scope", group["scope"], ("model", "tensor"))

    def _state_dtype(self, param: Tensor, key: str) -> torch.dtype:
        return torch.float32 if param.device.type == "mps" else torch.float64

    def _new_state(self, group: dict[str, Any], param: Tensor) -> dict[str, Tensor]:
        return {"sum_sq": torch.zeros((), dtype=self._state_dtype(param, "sum_sq"), device=param.device)}

    def _begin_step(self, collected: list[Collected]) -> None:
        for part in collected:
            decay = part.group["weight_decay"]
            for param, grad in zip(part.params, part.grads, strict=True):
                grad = grad.to(state_dtype(param))
                if decay:
                    grad = grad.add(param, alpha=-decay if part.group["maximize"] else decay)
                norm = whole(torch.linalg.vector_norm(grad))
                state = self.state[param]
                # out of place: with differentiable=True the sum of the last step is in the graph
                state["sum_sq"] = state["sum_sq"] + norm.to(state["sum_sq"].dtype).square()
        sums = [state["sum_sq"] for state in self.state.values() if "sum_sq" in state]
        self._total = torch.stack([s.to(sums[0].device) for s in sums]).sum() if sums else None

    def _constants(self, group: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        return {name: group[name] for name in ("b0", "weight_decay", "scope")}

    def _scalars(self, group: dict[str, Any], lr: Scalar, t: Scalar) -> dict[str, Scalar]:
        return {"step_size": -lr, "total": self._total}

    @staticmethod
    def single(
        param: Tensor,
        grad: Tensor,
        sum_sq: Tensor,
        *,
        b0: float,
        weight_decay: float,
        scope: str,
        step_size: Scalar,
        total: Tensor,
    ) -> None:
        """One tensor."""
        if weight_decay:
            grad = grad.add(param, alpha=weight_decay)
        seen = total if scope == "model" else sum_sq
        param.add_(grad * (step_size / (seen + b0**2).sqrt()).to(grad.dtype))

    @staticmethod
    def many(
        params: list[Tensor],
        grads: list[Tensor],
        sum_sq: list[Tensor],
        *,
        b0: float,
        weight_decay: float,
        scope: str,
        step_size: Scalars,
        total: Tensor,
    ) -> None:
        """Many tensors at once."""
        if weight_decay:
            grads = torch._foreach_add(grads, params, alpha=weight_decay)
        if scope == "model":
            factors = step_size / (total + b0**2).sqrt()
        else:
            factors = [(step_size / (each + b0**2).sqrt()).to(params[0].dtype) for each in sum_sq]
        torch._foreach_add_(params, torch._foreach_mul(grads, factors))
