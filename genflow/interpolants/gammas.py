"""How much latent noise an interpolant carries: gamma(t), its derivative, and their product in closed form.

gamma often starts as ``sqrt(t)``: its derivative is then infinite at the ends while ``gamma gamma'``, which is what
velocities and SDEs need, stays finite. So the product is a formula of its own, never ``0 * inf``.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from genflow.errors import check_number
from genflow.paths import Path, VPPath
from genflow.paths.base import Time, evaluate_at
from genflow.registry import create_by_name

__all__ = ["GAMMAS", "Brownian", "Gamma", "Parabola", "PathGamma", "Sigmoid", "Sine", "Zero", "create_gamma"]

GAMMAS: dict[str, type["Gamma"]] = {}
"""Every gamma that has a name, by that name (classes enter themselves)."""


class Gamma(ABC):
    """gamma(t) on [0, 1], float64; every method takes a number, an array or a tensor and gives back its kind."""

    name: ClassVar[str]
    option_names: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            GAMMAS[cls.name] = cls

    @abstractmethod
    def _value(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _dot(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _product(self, t: Tensor) -> Tensor: ...

    def value(self, t: Time) -> Time:
        """gamma(t), at least 0."""
        return evaluate_at(self._value, t)

    def dot(self, t: Time) -> Time:
        """``d gamma / dt``; infinite where gamma starts or ends as a square root."""
        return evaluate_at(self._dot, t)

    def product(self, t: Time) -> Time:
        """``gamma * d gamma / dt``, finite on all of [0, 1]."""
        return evaluate_at(self._product, t)

    @property
    def peak(self) -> float:
        """gamma(1/2), the largest value."""
        return self.value(0.5)

    def to_config(self) -> dict[str, Any]:
        """A JSON-safe description that :func:`create_gamma` reads: ``create_gamma(**config)``."""
        return {"name": self.name, **{option: getattr(self, option) for option in self.option_names}}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Gamma) and self.to_config() == other.to_config()

    def __hash__(self) -> int:
        return hash(tuple(self.to_config().items()))

    def __repr__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in self.to_config().items() if key != "name")
        return f"{type(self).__name__}({options})"


class Brownian(Gamma):
    """``sqrt(scale t (1 - t))``, the deviation of a Brownian bridge; scale 1 by default."""

    name = "brownian"
    option_names = ("scale",)

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = float(check_number("scale", scale, above=0))

    def _value(self, t: Tensor) -> Tensor:
        return torch.sqrt(self.scale * t * (1 - t))

    def _dot(self, t: Tensor) -> Tensor:
        return self._product(t) / self._value(t)

    def _product(self, t: Tensor) -> Tensor:
        return self.scale * (1 - 2 * t) / 2


class Parabola(Gamma):
    """``t (1 - t)``."""

    name = "parabola"

    def _value(self, t: Tensor) -> Tensor:
        return t * (1 - t)

    def _dot(self, t: Tensor) -> Tensor:
        return 1 - 2 * t

    def _product(self, t: Tensor) -> Tensor:
        return t * (1 - t) * (1 - 2 * t)


class Sine(Gamma):
    """``sin^2(pi t)``."""

    name = "sine"

    def _value(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi * torch.minimum(t, 1 - t)) ** 2  # exactly 0 at t = 1

    def _dot(self, t: Tensor) -> Tensor:
        return math.pi * torch.sin(2 * math.pi * t)

    def _product(self, t: Tensor) -> Tensor:
        return self._value(t) * self._dot(t)


class Sigmoid(Gamma):
    """``s(rate (t - 1/2) + 1) - s(rate (t - 1/2) - 1)`` less its value at the ends, s the logistic function.

    A plateau with steep flanks; ``rate`` is 10 by default (Albergo et al.'s code).
    """

    name = "sigmoid"
    option_names = ("rate",)

    def __init__(self, rate: float = 10.0) -> None:
        self.rate = float(check_number("rate", rate, above=0))

    def _hill(self, t: Tensor) -> Tensor:
        u = self.rate * (t - 0.5)
        return torch.sigmoid(u + 1) - torch.sigmoid(u - 1)

    def _value(self, t: Tensor) -> Tensor:
        return (self._hill(torch.minimum(t, 1 - t)) - self._hill(torch.zeros_like(t))).clamp(min=0)

    def _dot(self, t: Tensor) -> Tensor:
        u = self.rate * (t - 0.5)
        up, down = torch.sigmoid(u + 1), torch.sigmoid(u - 1)
        return self.rate * (up * (1 - up) - down * (1 - down))

    def _product(self, t: Tensor) -> Tensor:
        return self._value(t) * self._dot(t)


class Zero(Gamma):
    """No latent noise: flow matching between two densities, which has no denoiser and no score."""

    name = "zero"

    def _value(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    _dot = _product = _value


class PathGamma(Gamma):
    """sigma(t) of a Gaussian path, whose noise is the latent noise of a one-sided interpolant."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _value(self, t: Tensor) -> Tensor:
        return self.path.sigma(t)

    def _dot(self, t: Tensor) -> Tensor:
        return self.path.sigma_dot(t)

    def _product(self, t: Tensor) -> Tensor:
        if isinstance(self.path, VPPath):  # alpha^2 + sigma^2 = 1, and sigma' may be infinite at t = 0
            return -self.path.alpha(t) * self.path.alpha_dot(t)
        return self.path.sigma(t) * self.path.sigma_dot(t)

    def to_config(self) -> dict[str, Any]:
        """The path's own description."""
        return self.path.to_config()

    def __hash__(self) -> int:
        return hash(self.path)


def create_gamma(name: str, **options: Any) -> Gamma:
    """The gamma called ``name``; raises InputError for a name or an option it does not know."""
    return create_by_name("gamma", name, GAMMAS, options)
