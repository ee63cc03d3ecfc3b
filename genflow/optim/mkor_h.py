"""MKOR-H. Mozaffari et al., arXiv 2306.01685, section 3.3: MKOR that falls back to first order."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, ParamsT

from genflow.errors import check_number
from genflow.optim.kronecker import Form
from genflow.optim.mkor import FACTORS, MKOR, SHARED, averaged
from genflow.optim.options import Flags

__all__ = ["MKORH"]


class MKORH(MKOR):
    r"""MKOR-H: MKOR that falls back to its base optimizer when second-order steps no longer pay.

    The paper gives the idea; the rule is ours. At each update of the inverses the mean loss since the last one is
    taken, and an average (rate ``loss_beta``, debiased) of its decreases. When, after ``patience`` updates, that
    average is below ``fallback_ratio`` of the largest it has been, the inverses are dropped and the base optimizer
    goes on alone, for good. The decision is in the state, and equal on all processes.

    The loss comes from a closure, or from :meth:`observe` before each step.

    Args:
        params: as MKOR's.
        model: as MKOR's.
        lr: as MKOR's.
        weight_decay: as MKOR's.
        fallback_ratio: in [0, 1); default 0.1.
        loss_beta: in [0, 1); default 0.9.
        patience: updates of the inverses before the first decision; default 10.
        **options: MKOR's other options and flags.

    Raises:
        InputError: as MKOR.
    """

    hybrid = True

    def __init__(
        self,
        params: nn.Module | ParamsT,
        model: nn.Module | None = None,
        lr: float | Tensor = 1e-3,
        weight_decay: float | None = None,
        *,
        fallback_ratio: float = 0.1,
        loss_beta: float = 0.9,
        patience: int = 10,
        base: str | type[Optimizer] = "sgd",
        base_options: dict[str, Any] | None = None,
        decay: float = 0.95,
        inverse_gap: int = 10,
        warmup: int = 0,
        threshold: float = 2.0,
        stabilization: float = 0.1,
        form: Form = "exact",
        clip: float = 100.0,
        half_precision: bool = False,
        exclude: Sequence[str] = (),
        unsupported: Literal["raise", "base"] = "raise",
        loss_scale: float | Callable[[], float] = 1.0,
        **flags: Unpack[Flags],
    ) -> None:
        values = {
            "decay": decay,
            "inverse_gap": inverse_gap,
            "warmup": warmup,
            "threshold": threshold,
            "stabilization": stabilization,
            "form": form,
            "clip": clip,
            "half_precision": half_precision,
            "fallback_ratio": fallback_ratio,
            "loss_beta": loss_beta,
            "patience": patience,
        }
        self._set_up(
            params, model, lr, weight_decay, base, base_options, exclude, unsupported, loss_scale, values, flags
        )

    def _check(self, group: dict[str, Any]) -> None:
        check_number("fallback_ratio", group["fallback_ratio"], at_least=0, below=1)
        check_number("loss_beta", group["loss_beta"], at_least=0, below=1)
        check_number("patience", group["patience"], at_least=1, integer=True)
        super()._check(group)

    def state_dict(self) -> dict[str, Any]:
        """As any optimizer's, and safe for JSON but for the state's tensors."""
        for group in self.param_groups:
            group["loss_sum"] = float(group["loss_sum"])
        return super().state_dict()

    def _decide(self) -> None:
        if self.first_order:
            return
        values = {key: self.param_groups[0][key] for key in (*SHARED, "fallback_ratio", "loss_beta", "patience")}
        if not values["loss_seen"]:
            raise RuntimeError("MKOR-H needs the loss: call observe(loss) before step(), or give step a closure")
        if not self._due():
            return
        mean = float(averaged([torch.as_tensor(values["loss_sum"] / values["loss_seen"])[None]])[0])
        values["loss_sum"], values["loss_seen"] = 0, 0
        if values["loss_mean"] is not None:
            beta = values["loss_beta"]
            values["loss_count"] += 1
            values["loss_rate"] = beta * values["loss_rate"] + (1 - beta) * (values["loss_mean"] - mean)
            rate = values["loss_rate"] / (1 - beta ** values["loss_count"])
            if values["loss_count"] >= values["patience"]:
                values["first_order"] = rate < values["fallback_ratio"] * values["loss_best"]
            values["loss_best"] = max(values["loss_best"], rate)
        values["loss_mean"] = mean
        for group in self.param_groups:
            group.update({key: values[key] for key in SHARED})
        if values["first_order"]:
            for layer in self._layers:
                layer.statistics.take()
                for key in FACTORS:
                    self.state[layer.weight].pop(key, None)
