"""Paths with one closed form each: rectified flow, the trigonometric path, EDM's variance exploding path."""

import math

import torch
from torch import Tensor

from genflow.errors import check_number
from genflow.paths.base import Path

__all__ = ["EDMPath", "LinearPath", "TrigonometricPath"]

HALF_PI = math.pi / 2


class LinearPath(Path):
    """Rectified flow: ``x = (1 - tau) x0 + tau eps`` with ``tau = shift t / (1 + (shift - 1) t)``.

    ``shift`` (default 1) moves the grid towards noise, as Stable Diffusion 3 does (Esser et al. 2024, eq. 23).
    """

    name = "linear"
    option_names = ("shift",)

    def __init__(self, shift: float = 1.0) -> None:
        self.shift = float(check_number("shift", shift, above=0))

    def _alpha(self, t: Tensor) -> Tensor:
        return (1 - t) / (1 + (self.shift - 1) * t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return -self._sigma_dot(t)

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return self.shift / (1 + (self.shift - 1) * t) ** 2

    def _noise_level(self, t: Tensor) -> Tensor:
        return self.shift * t / (1 - t)

    def _time(self, level: Tensor) -> Tensor:
        return 1 / (1 + self.shift / level)  # right at both ends: 0 for level 0, 1 for level inf


class TrigonometricPath(Path):
    """``x = cos(pi t / 2) x0 + sin(pi t / 2) eps`` (the generalised VP path of SiT, Ma et al. 2024)."""

    name = "trigonometric"

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.sin(HALF_PI * (1 - t))  # exactly 0 at t = 1, which cos(pi / 2) is not

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.sin(HALF_PI * t)

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return -HALF_PI * self._sigma(t)

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return HALF_PI * self._alpha(t)

    def _time(self, level: Tensor) -> Tensor:
        return torch.atan(level) / HALF_PI


class EDMPath(Path):
    """Variance exploding: ``x = x0 + sigma_max t eps`` (Karras et al. 2022; their sigma_max is 80)."""

    name = "edm"
    option_names = ("sigma_max",)

    def __init__(self, sigma_max: float = 80.0) -> None:
        self.sigma_max = float(check_number("sigma_max", sigma_max, above=0))

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_max * t

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.sigma_max)

    def _time(self, level: Tensor) -> Tensor:
        return level / self.sigma_max
