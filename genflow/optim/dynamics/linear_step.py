r"""An optimizer's step on a quadratic loss, as far as its stability goes.

With its preconditioner D held fixed, a step with momentum first loses its stability to the mode that changes sign at
every step, where the running means of a sign-changing gradient have the size ``gain``. That mode neither grows nor
shrinks at

.. math::
    \eta\, \mathrm{gain}\, d (\lambda + \mathrm{coupled}) = 2 - \mathrm{decoupled},

which for plain SGD is the threshold :math:`2/\eta`, for heavy-ball momentum :math:`2 (1 + \beta)/\eta`, and for Adam,
with the eigenvalues of :math:`D^{1/2} H D^{1/2}` in place of those of H, :math:`38/\eta` at :math:`\beta_1 = 0.9`
(Cohen et al., "Adaptive Gradient Methods at the Edge of Stability", arXiv 2207.14484).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["STEP_RULES", "LinearStep", "linear_steps"]


class LinearStep(NamedTuple):
    """A parameter's step near a minimum.

    lr: learning rate.
    scale: D, shaped like the parameter; None where the step is plain gradient descent.
    gain: what momentum leaves of a gradient that changes sign at every step, relative to a single gradient.
    coupled: weight decay that is added to the gradient, and so to the Hessian.
    decoupled: weight decay of a step on the weights themselves, times the learning rate; negative where the weights
        are divided by 1 plus it.
    """

    lr: float
    scale: Tensor | None = None
    gain: float = 1.0
    coupled: float = 0.0
    decoupled: float = 0.0

    @property
    def threshold(self) -> float:
        """The (preconditioned) eigenvalue, coupled decay included, above which the step is unstable."""
        return (2 - self.decoupled) / (self.lr * self.gain) if self.lr else float("inf")


Rule = Callable[[dict[str, Any], dict[str, Any]], LinearStep | None]


def _sgd(group: dict[str, Any], state: dict[str, Any]) -> LinearStep:
    beta, lr, decay = group["momentum"], float(group["lr"]), group["weight_decay"]
    mean = (1 - (group["dampening"] if beta else 0.0)) / (1 + beta)
    return LinearStep(lr, None, 1 + beta * mean if group["nesterov"] else mean, coupled=decay)


def _sgdp(group: dict[str, Any], state: dict[str, Any]) -> LinearStep:
    beta, lr = group["momentum"], float(group["lr"])
    mean = (1 - group["dampening"]) / (1 + beta)
    decay = lr * group["weight_decay"] / (1 - beta)
    return LinearStep(lr, None, 1 + beta * mean if group["nesterov"] else mean, decoupled=decay)


def _decay(group: dict[str, Any], decoupled: bool) -> dict[str, float]:
    decay = float(group["weight_decay"])
    return {"decoupled": float(group["lr"]) * decay} if decoupled else {"coupled": decay}


def _adam(
    group: dict[str, Any], state: dict[str, Any], key: str = "exp_avg_sq", decoupled: bool = True
) -> LinearStep | None:
    """Adam and its kin, from the second moments under ``key``; ``decoupled`` where the group does not say."""
    if key not in state:
        return None
    key = f"max_{key}" if group.get("amsgrad") else key
    beta1, beta2 = map(float, group["betas"])
    t = float(state["step"])
    root = state[key].sqrt() / (1 - beta2**t) ** 0.5
    scale = 1 / ((root + float(group["eps"])) * (1 - beta1**t))
    mean = (1 - beta1) / (1 + beta1)
    gain = (1 - beta1) + beta1 * mean if group.get("nesterov") else mean
    return LinearStep(float(group["lr"]), scale, gain, **_decay(group, group.get("decoupled_weight_decay", decoupled)))


def _radam(group: dict[str, Any], state: dict[str, Any]) -> LinearStep | None:
    if "exp_avg_sq" not in state:
        return None
    beta1, beta2 = group["betas"]
    factor = _rectification(beta2, float(state["step"]))
    bias = 1 - beta1 ** float(state["step"])
    if factor is None:
        scale = torch.full_like(state["exp_avg_sq"], 1 / bias)
    else:
        scale = factor / (bias * (state["exp_avg_sq"].sqrt() + group["eps"]))
    decay = _decay(group, group["decoupled_weight_decay"])
    return LinearStep(float(group["lr"]), scale, (1 - beta1) / (1 + beta1), **decay)


def _rectification(beta2: float, t: float) -> float | None:
    """RAdam's factor times the root of the bias correction (arXiv 1908.03265, Algorithm 2); None while it has none."""
    correction = 1 - beta2**t
    longest = 2 / (1 - beta2) - 1
    n = longest - 2 * t * beta2**t / correction
    if n <= 5:
        return None
    ratio = (n - 4) * (n - 2) * longest / ((longest - 4) * (longest - 2) * n)
    return (ratio * correction) ** 0.5


def _adabelief(group: dict[str, Any], state: dict[str, Any]) -> LinearStep | None:
    if group["rectify"] or not group["weight_decouple"] or group["fixed_decay"]:
        return None
    return _adam(group, state, "exp_avg_var")


def _adan(group: dict[str, Any], state: dict[str, Any]) -> LinearStep | None:
    if "exp_avg_sq" not in state:
        return None
    beta1, beta2, beta3 = group["betas"]
    t = float(state["step"])
    scale = 1 / (state["exp_avg_sq"].sqrt() / (1 - beta3**t) ** 0.5 + group["eps"])
    mean = (1 - beta1) / (1 + beta1) / (1 - beta1**t)
    difference = 2 * (1 - beta2) / (1 + beta2) / (1 - beta2**t)  # of a gradient that changes sign: twice the gradient
    decay = float(group["lr"]) * group["weight_decay"]
    decay = decay if group["no_prox"] else -decay
    return LinearStep(float(group["lr"]), scale, mean + beta2 * difference, decoupled=decay)


def _rmsprop(group: dict[str, Any], state: dict[str, Any]) -> LinearStep | None:
    if "square_avg" not in state:
        return None
    square = state["square_avg"]
    if group["centered"]:
        square = square - state["grad_avg"].square()
    scale = 1 / (square.clamp_min(0).sqrt() + group["eps"])
    return LinearStep(float(group["lr"]), scale, 1 / (1 + group["momentum"]), coupled=group["weight_decay"])


def _adagrad(group: dict[str, Any], state: dict[str, Any]) -> LinearStep | None:
    if "sum" not in state:
        return None
    lr = float(group["lr"]) / (1 + (float(state["step"]) - 1) * group["lr_decay"])
    return LinearStep(lr, 1 / (state["sum"].sqrt() + group["eps"]), coupled=group["weight_decay"])


STEP_RULES: dict[str, Rule] = {
    "SGD": _sgd,
    "SGDP": _sgdp,
    "Adam": functools.partial(_adam, decoupled=False),
    "AdamW": _adam,
    "AdamP": _adam,
    "AdaBelief": _adabelief,
    "Adan": _adan,
    "RAdam": _radam,
    "RMSprop": _rmsprop,
    "Adagrad": _adagrad,
}
"""By the name of the optimizer's class. A rule takes the group and the parameter's state, and gives None where the
step has no such form yet. Add a rule for an optimizer of your own here; sign steps, such as Lion's, have none, and the
projections of SGDP and AdamP are left out of account."""


def linear_steps(optimizer: Optimizer) -> list[tuple[Tensor, LinearStep]] | None:
    """The linear step of each parameter that is trained, in the order of the groups.

    None where the optimizer's step has no such form, or none before its first step.
    """
    while type(optimizer).__name__ not in STEP_RULES and isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer  # accelerate's wrapper
    rules = (STEP_RULES[cls.__name__] for cls in type(optimizer).__mro__ if cls.__name__ in STEP_RULES)
    rule = next(rules, None)
    if rule is None:
        return None
    found = []
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.requires_grad:
                step = rule(group, optimizer.state.get(param, {}))
                if step is None:
                    return None
                found.append((param, step))
    return found
