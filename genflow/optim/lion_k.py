"""Lion-K: Lion with the gradient of any convex function in place of the sign.

Chen, Liu, Liang and Liu, "Lion Secretly Solves Constrained Optimization: As Lyapunov Predicts", arXiv 2310.05898.
"""

from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from genflow.errors import InputError
from genflow.optim.kappas import Kappa, create_kappa
from genflow.optim.lion import Lion
from genflow.optim.options import Flags

__all__ = ["LionK"]


class LionK(Lion):
    r"""Lion with :math:`\nabla\kappa(c_t)` in place of :math:`\operatorname{sign}(c_t)`.

    With ``weight_decay`` :math:`\lambda > 0` it minimizes :math:`f(x) + \kappa^*(\lambda x)/\lambda`; the proof needs
    ``betas[1] >= betas[0]``. Outside the implied constraint set the distance to it shrinks by
    :math:`1 - \eta\lambda` a step; inside, an iterate stays inside while :math:`\eta\lambda \le 1`.

    Args:
        params: parameters, named parameters or groups.
        kappa: a name of :data:`genflow.optim.KAPPAS`, a :class:`genflow.optim.Kappa`, or its config (a dict with
            ``name`` and parameters); may differ between groups. Default "l1": Lion.
        lr: step size; default 1e-4, as Lion.
        betas: interpolation and momentum; default (0.9, 0.99), as Lion.
        weight_decay: decoupled, times ``lr``; default 0: no constraint and no penalty.
        **flags: see :class:`genflow.optim.Flags`.

    Raises:
        InputError: a hyperparameter out of range or an unknown kappa, named.
    """

    def __init__(
        self,
        params: ParamsT,
        kappa: str | dict[str, Any] | Kappa = "l1",
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **flags: Unpack[Flags],
    ) -> None:
        # groups hold the config, not the object: a state dict is tensors, numbers and words
        values = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "kappa": create_kappa(kappa).config()}
        super(Lion, self).__init__(params, values, flags)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As the base's; a group may bring its own ``kappa``."""
        if isinstance(param_group, dict) and "kappa" in param_group:
            param_group["kappa"] = create_kappa(param_group["kappa"]).config()
        super().add_param_group(param_group)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        create_kappa(group["kappa"])

    def _kappa(self, group: dict[str, Any]) -> Kappa:
        return create_kappa(group["kappa"])

    @torch.no_grad()
    def kappa_constraint(self) -> list[dict[str, Any]]:
        """Where each parameter stands to what its kappa and weight decay imply.

        Returns:
            One dict a parameter, in the groups' order: ``name`` (or position), ``implies`` in words with
            ``y = weight_decay * x``, ``gauge`` (at most 1 inside the constraint set, 0 where there is none),
            ``inside``, and ``penalty``: the term added to the loss, kappa*(y) / weight_decay without the constraint.

        Raises:
            InputError: a group without weight decay, which implies nothing.
        """
        report = []
        for index, group in enumerate(self.param_groups):
            decay = group["weight_decay"]
            if not decay:
                raise InputError(
                    f"weight_decay: 0 in group {index}; allowed: > 0, for without it kappa implies nothing"
                )
            kappa = self._kappa(group)
            names = group.get("param_names", [f"{index}.{i}" for i in range(len(group["params"]))])
            for name, param in zip(names, group["params"], strict=True):
                real = torch.view_as_real(param) if param.is_complex() else param
                y = decay * (real if real.dtype == torch.float64 else real.float())
                gauge = kappa.gauge(y).item()
                report.append(
                    {
                        "name": name,
                        "implies": kappa.implies,
                        "gauge": gauge,
                        "inside": gauge <= 1,
                        "penalty": kappa.penalty(y).item() / decay,
                    }
                )
        return report
