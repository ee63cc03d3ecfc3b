"""The interpolants of Albergo, Boffi and Vanden-Eijnden 2023 (table 2 and section 3), one class each."""

import math
from typing import Any

import torch
from torch import Tensor

from genflow.errors import InputError
from genflow.interpolants.base import StochasticInterpolant
from genflow.interpolants.gammas import Gamma, PathGamma
from genflow.paths import Path

__all__ = [
    "EncoderDecoderInterpolant",
    "LinearInterpolant",
    "MirrorInterpolant",
    "OneSidedInterpolant",
    "TrigonometricInterpolant",
]

HALF_PI = math.pi / 2


class LinearInterpolant(StochasticInterpolant):
    """``I = (1 - t) x0 + t x1``."""

    name = "linear"

    def _weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def _weights_dot(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(t, -1), torch.ones_like(t)


class TrigonometricInterpolant(StochasticInterpolant):
    """``I = sqrt(1 - gamma^2) (cos(pi t / 2) x0 + sin(pi t / 2) x1)``: unit variance kept throughout.

    Raises InputError for a gamma that reaches 1: there the root has a kink, and dI/dt no value.
    """

    name = "trigonometric"

    def __init__(self, gamma: str | dict[str, Any] | Gamma | None = None) -> None:
        super().__init__(gamma)
        if self.gamma.peak >= 1 - 1e-12:
            raise InputError(
                f"gamma: {self.gamma!r} reaches {self.gamma.peak:g}; allowed for 'trigonometric': below 1 throughout"
            )

    def _parts(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # sin(pi/2 (1 - t)) is exactly 0 at t = 1, which cos(pi/2) is not
        return torch.sqrt(1 - self.gamma.value(t) ** 2), torch.sin(HALF_PI * (1 - t)), torch.sin(HALF_PI * t)

    def _weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        root, cosine, sine = self._parts(t)
        return root * cosine, root * sine

    def _weights_dot(self, t: Tensor) -> tuple[Tensor, Tensor]:
        root, cosine, sine = self._parts(t)
        rate = -self.gamma.product(t) / root
        return rate * cosine - HALF_PI * root * sine, rate * sine + HALF_PI * root * cosine


class EncoderDecoderInterpolant(StochasticInterpolant):
    """``I = cos^2(pi t) x0`` up to t = 1/2 and ``cos^2(pi t) x1`` from there: all data to noise, then noise to data.

    With gamma = sin^2(pi t), the default, the state at t = 1/2 is z itself.
    """

    name = "encoder-decoder"
    default_gamma = "sine"

    def _weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        weight = torch.sin(math.pi * (t - 0.5)) ** 2  # cos^2(pi t), exactly 0 at 1/2
        return torch.where(t <= 0.5, weight, 0.0), torch.where(t > 0.5, weight, 0.0)

    def _weights_dot(self, t: Tensor) -> tuple[Tensor, Tensor]:
        rate = -math.pi * torch.sin(2 * math.pi * t)
        return torch.where(t <= 0.5, rate, 0.0), torch.where(t > 0.5, rate, 0.0)


class MirrorInterpolant(StochasticInterpolant):
    """``x_t = x0 + gamma z``: out from one density into noise and back to it; ``x1`` is ``x0`` again and not used.

    v = 0, so ``b = gamma' eta = -gamma gamma' s``: the denoiser or the score alone drives ODE and SDE.
    """

    name = "mirror"
    needs_x1 = False

    def _weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), torch.zeros_like(t)

    def _weights_dot(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.zeros_like(t)


class OneSidedInterpolant(StochasticInterpolant):
    """``x_t = alpha(t) x0 + sigma(t) z``: a Gaussian path as an interpolant; the density at t = 1 is the noise's.

    ``LinearPath``, ``TrigonometricPath`` (SiT's GVP) and ``VPPath.linear()`` give SiT's three. ``b`` is the path's
    velocity and ``eta`` its epsilon, so that :func:`genflow.sampling.sample` and every scheduler serve these
    networks; the objectives and two-way sampling here are an addition.

    Args:
        path: a Gaussian path or its config.
    """

    name = "one-sided"
    needs_x1 = False

    def __init__(self, path: Path | dict[str, Any]) -> None:
        self.path = path if isinstance(path, Path) else Path.from_config(path)
        super().__init__(PathGamma(self.path))

    def _weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.path.alpha(t), torch.zeros_like(t)

    def _weights_dot(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.path.alpha_dot(t), torch.zeros_like(t)

    def to_config(self) -> dict[str, Any]:
        """See :meth:`StochasticInterpolant.to_config`."""
        return {"interpolant": self.name, "path": self.path.to_config()}

    @classmethod
    def config_keys(cls) -> tuple[str, ...]:
        """See :meth:`StochasticInterpolant.config_keys`."""
        return ("path",)

    def __repr__(self) -> str:
        return f"OneSidedInterpolant({self.path!r})"
