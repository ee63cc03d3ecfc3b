"""Stochastic interpolants (Albergo, Boffi and Vanden-Eijnden 2023, arXiv 2303.08797): a bridge between two densities.

    x_t = I(t, x0, x1) + gamma(t) z,     I = a(t) x0 + b(t) x1,     z standard normal

``x0`` is drawn from the density at ``t = 0``, ``x1`` from the one at ``t = 1`` (in a coupling of the caller's choice),
so ``t = 0`` is data here as everywhere. What a sampler needs are conditional means given ``x_t = x``:

| name      | symbol   | mean of             | relations                                            |
|-----------|----------|---------------------|------------------------------------------------------|
| flow      | v        | dI/dt               |                                                      |
| denoiser  | eta      | z                   |                                                      |
| score     | s        | -z / gamma          | s = grad log p_t = -eta / gamma                      |
| velocity  | b        | dI/dt + gamma' z    | b = v + gamma' eta = v - gamma gamma' s              |

(Given x0 and x1, x is normal with mean I and deviation gamma, and its score is -z / gamma: hence the signs.)
The densities move with ``dx = b dt``; :mod:`genflow.bridges` samples with it and with the SDEs of the same marginals.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from genflow.errors import InputError, check_choice, check_keys
from genflow.interpolants.gammas import Gamma, create_gamma
from genflow.paths import expand_like, working_dtype
from genflow.paths.base import Time, evaluate_at

__all__ = ["INTERPOLANTS", "StochasticInterpolant", "check_finite"]

INTERPOLANTS: dict[str, type["StochasticInterpolant"]] = {}
"""Every interpolant by its name (classes enter themselves)."""

Weight = Callable[[Tensor], Tensor]


def check_finite(value: float | Tensor, what: str, t: float | Tensor) -> float | Tensor:
    """``value``; InputError where it is not finite. Tensors on an accelerator are not looked at: that would sync."""
    tensor = torch.as_tensor(value)
    if tensor.device.type == "cpu" and not bool(torch.isfinite(tensor).all()):
        raise InputError(f"t: {what} is not finite at t={t}; allowed: times inside (0, 1), away from its ends")
    return value


class StochasticInterpolant(ABC):
    """``x_t = a(t) x0 + b(t) x1 + gamma(t) z``. Subclasses give a, b and their derivatives.

    Args:
        gamma: the weight of the latent noise; a :class:`~genflow.interpolants.Gamma`, its name or its config.

    Attributes:
        needs_x1: whether ``x1`` has a weight at all.
    """

    name: ClassVar[str]
    needs_x1: ClassVar[bool] = True
    default_gamma: ClassVar[str] = "brownian"
    gamma: Gamma

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            INTERPOLANTS[cls.name] = cls

    def __init__(self, gamma: str | dict[str, Any] | Gamma | None = None) -> None:
        gamma = self.default_gamma if gamma is None else gamma
        if isinstance(gamma, dict):
            gamma = create_gamma(**gamma)
        elif not isinstance(gamma, Gamma):
            gamma = create_gamma(gamma)
        self.gamma = gamma

    @abstractmethod
    def _weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """a and b."""

    @abstractmethod
    def _weights_dot(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Their derivatives."""

    def a(self, t: Time) -> Time:
        """Weight of ``x0``; ``a(0) = 1``."""
        return evaluate_at(lambda u: self._weights(u)[0], t)

    def b(self, t: Time) -> Time:
        """Weight of ``x1``."""
        return evaluate_at(lambda u: self._weights(u)[1], t)

    def a_dot(self, t: Time) -> Time:
        """``da/dt``."""
        return evaluate_at(lambda u: self._weights_dot(u)[0], t)

    def b_dot(self, t: Time) -> Time:
        """``db/dt``."""
        return evaluate_at(lambda u: self._weights_dot(u)[1], t)

    def _sum(self, x0: Tensor, x1: Tensor | None, t: float | Tensor, first: Weight, second: Weight) -> Tensor:
        if self.needs_x1:
            if x1 is None or x1.shape != x0.shape:
                shape = None if x1 is None else tuple(x1.shape)
                raise InputError(f"x1: shape {shape}; allowed for {self.name!r}: that of x0, {tuple(x0.shape)}")
            x0 = x0.to(working_dtype(x0, x1))
            return expand_like(first(t), x0) * x0 + expand_like(second(t), x0) * x1.to(x0.dtype)
        x0 = x0.to(working_dtype(x0))
        return expand_like(first(t), x0) * x0

    def mean(self, x0: Tensor, x1: Tensor | None, t: float | Tensor) -> Tensor:
        """``I(t, x0, x1)``: ``(B, ...)``, float32 at least; ``t`` is a number or ``(B,)``."""
        return self._sum(x0, x1, t, self.a, self.b)

    def mean_dot(self, x0: Tensor, x1: Tensor | None, t: float | Tensor) -> Tensor:
        """``dI/dt``, the target of the flow v."""
        return self._sum(x0, x1, t, self.a_dot, self.b_dot)

    def interpolate(self, x0: Tensor, x1: Tensor | None, z: Tensor, t: float | Tensor) -> Tensor:
        """``x_t``: ``(B, ...)``, float32 at least. Raises InputError where the shapes do not fit."""
        if z.shape != x0.shape:
            raise InputError(f"z: shape {tuple(z.shape)} does not fit x0 of shape {tuple(x0.shape)}")
        return self.mean(x0, x1, t) + expand_like(self.gamma.value(t), z) * z.to(working_dtype(z))

    # conversions between the four conditional means, all (B, ...) with t a number or (B,)

    def score_from_denoiser(self, eta: Tensor, t: float | Tensor) -> Tensor:
        """``s = -eta / gamma``. Raises InputError where gamma is 0."""
        return -expand_like(check_finite(self.inverse_gamma(t), "1 / gamma", t), eta) * eta

    def denoiser_from_score(self, score: Tensor, t: float | Tensor) -> Tensor:
        """``eta = -gamma s``."""
        return -expand_like(self.gamma.value(t), score) * score

    def velocity_from_score(self, flow: Tensor, score: Tensor, t: float | Tensor) -> Tensor:
        """``b = v - gamma gamma' s``, finite at the ends."""
        return flow - expand_like(self.gamma.product(t), score) * score

    def velocity_from_denoiser(self, flow: Tensor, eta: Tensor, t: float | Tensor) -> Tensor:
        """``b = v + gamma' eta``. Raises InputError where gamma' is infinite."""
        return flow + expand_like(check_finite(self.gamma.dot(t), "gamma'", t), eta) * eta

    def flow_from_score(self, velocity: Tensor, score: Tensor, t: float | Tensor) -> Tensor:
        """``v = b + gamma gamma' s``, finite at the ends."""
        return velocity + expand_like(self.gamma.product(t), score) * score

    def flow_from_denoiser(self, velocity: Tensor, eta: Tensor, t: float | Tensor) -> Tensor:
        """``v = b - gamma' eta``. Raises InputError where gamma' is infinite."""
        return velocity - expand_like(check_finite(self.gamma.dot(t), "gamma'", t), eta) * eta

    def inverse_gamma(self, t: float | Tensor) -> float | Tensor:
        """``1 / gamma``, infinite where gamma is 0."""
        return evaluate_at(lambda u: 1 / self.gamma.value(u), t)

    def to_config(self) -> dict[str, Any]:
        """A JSON-safe description that :meth:`from_config` reads."""
        return {"interpolant": self.name, "gamma": self.gamma.to_config()}

    @staticmethod
    def from_config(config: dict[str, Any]) -> "StochasticInterpolant":
        """Build the interpolant that ``config`` describes; raises InputError for an unknown name or key."""
        options = dict(config)
        cls = INTERPOLANTS[check_choice("interpolant", options.pop("interpolant", None), INTERPOLANTS)]
        check_keys(f"interpolant {cls.name!r}", options, cls.config_keys())
        return cls(**options)

    @classmethod
    def config_keys(cls) -> tuple[str, ...]:
        """The keys of a config besides ``interpolant``: the constructor's arguments."""
        return ("gamma",)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StochasticInterpolant) and self.to_config() == other.to_config()

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_config(), sort_keys=True))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.gamma!r})"
