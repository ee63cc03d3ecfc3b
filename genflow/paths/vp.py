"""Variance-preserving paths: from a continuous beta schedule, the cosine schedule, or a table of alphas_cumprod."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genflow.errors import InputError, check_number
from genflow.paths.base import Path

__all__ = ["VPCosinePath", "VPLinearPath", "VPPath", "VPScaledLinearPath", "VPTablePath"]

HALF_PI = math.pi / 2


class VPPath(Path):
    """Variance preserving, ``alpha^2 + sigma^2 = 1``; made by one of the four constructors below."""

    num_train_timesteps: int | None = None  # a table's length; None on a continuous path

    @staticmethod
    def linear(beta_min: float = 0.1, beta_max: float = 20.0) -> "VPLinearPath":
        """``beta(t) = beta_min + t (beta_max - beta_min)``, ``alpha = exp(-1/2 int beta)`` (Song et al. 2021)."""
        return VPLinearPath(beta_min, beta_max)

    @staticmethod
    def scaled_linear(beta_min: float = 0.85, beta_max: float = 12.0) -> "VPScaledLinearPath":
        """``sqrt(beta)`` linear in t; the defaults are Stable Diffusion's betas times its 1000 steps."""
        return VPScaledLinearPath(beta_min, beta_max)

    @staticmethod
    def cosine(offset: float = 0.008) -> "VPCosinePath":
        """``alpha = cos(theta(t)) / cos(theta(0))``, ``theta = pi/2 (t + offset)/(1 + offset)`` (Nichol 2021)."""
        return VPCosinePath(offset)

    @staticmethod
    def from_alphas_cumprod(table: Sequence[float] | np.ndarray | Tensor) -> "VPTablePath":
        """A discrete schedule of N values of ``alpha^2``; see :class:`VPTablePath`."""
        return VPTablePath(table)


class _BetaPath(VPPath):
    """A VP path given by ``beta(t)`` and its integral from 0 to t."""

    option_names = ("beta_min", "beta_max")

    def __init__(self, beta_min: float, beta_max: float) -> None:
        self.beta_min = float(check_number("beta_min", beta_min, above=0))
        self.beta_max = float(check_number("beta_max", beta_max, at_least=self.beta_min))

    @abstractmethod
    def _beta(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _integral(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _integral_inverse(self, value: Tensor) -> Tensor: ...

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self._integral(t) / 2)

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return -self._beta(t) / 2 * self._alpha(t)

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return self._beta(t) / 2 * torch.exp(-self._integral(t)) / self._sigma(t)

    def _noise_level(self, t: Tensor) -> Tensor:
        return torch.sqrt(torch.expm1(self._integral(t)))

    def _time(self, level: Tensor) -> Tensor:
        # log(1 + level^2), written so that the square of a huge level does not overflow
        large = 2 * torch.log(level.clamp(min=1)) + torch.log1p(level.clamp(min=1) ** -2)
        return self._integral_inverse(torch.where(level > 1, large, torch.log1p(level.clamp(max=1) ** 2)))


class VPLinearPath(_BetaPath):
    """See :meth:`VPPath.linear`."""

    name = "vp_linear"

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        super().__init__(beta_min, beta_max)

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + (self.beta_max - self.beta_min) / 2 * t)

    def _integral_inverse(self, value: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        root = torch.sqrt(self.beta_min**2 + 2 * slope * value)
        return torch.where(torch.isinf(value), value, 2 * value / (self.beta_min + root))


class VPScaledLinearPath(_BetaPath):
    """See :meth:`VPPath.scaled_linear`."""

    name = "vp_scaled_linear"

    def __init__(self, beta_min: float = 0.85, beta_max: float = 12.0) -> None:
        super().__init__(beta_min, beta_max)
        self._first = math.sqrt(self.beta_min)
        self._slope = math.sqrt(self.beta_max) - self._first

    def _beta(self, t: Tensor) -> Tensor:
        return (self._first + self._slope * t) ** 2

    def _integral(self, t: Tensor) -> Tensor:
        root = self._first + self._slope * t
        return t * (root**2 + root * self._first + self._first**2) / 3

    def _integral_inverse(self, value: Tensor) -> Tensor:
        root = (self._first**3 + 3 * self._slope * value) ** (1 / 3)
        time = 3 * value / (root**2 + root * self._first + self._first**2)
        return torch.where(torch.isinf(value), value, time)


class VPCosinePath(VPPath):
    """See :meth:`VPPath.cosine`."""

    name = "vp_cosine"
    option_names = ("offset",)

    def __init__(self, offset: float = 0.008) -> None:
        self.offset = float(check_number("offset", offset, above=0))
        self._rate = HALF_PI / (1 + self.offset)
        self._start = self._rate * self.offset  # theta(0)

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.sin(self._rate * (1 - t)) / math.cos(self._start)

    def _sigma(self, t: Tensor) -> Tensor:
        # cos(a)^2 - cos(b)^2 = sin(b - a) sin(b + a): no cancellation near t = 0
        product = torch.sin(self._rate * t) * torch.sin(self._rate * t + 2 * self._start)
        return torch.sqrt(product.clamp(min=0)) / math.cos(self._start)

    def _alpha_dot(self, t: Tensor) -> Tensor:
        return -self._rate * torch.cos(self._rate * (1 - t)) / math.cos(self._start)

    def _sigma_dot(self, t: Tensor) -> Tensor:
        return -self._alpha(t) * self._alpha_dot(t) / self._sigma(t)

    def _time(self, level: Tensor) -> Tensor:
        theta = torch.atan(torch.sqrt(level**2 + math.sin(self._start) ** 2) / math.cos(self._start))
        small = level.clamp(max=1) ** 2  # below level 1 the difference theta - start is formed without cancellation
        sine = small / (1 + small) * math.cos(self._start) ** 2 / torch.sin(theta + self._start)
        return torch.where(level < 1, torch.asin(sine.clamp(max=1)), theta - self._start) / self._rate


class VPTablePath(VPPath):
    """A discrete VP schedule of N values of ``alpha^2`` (``alphas_cumprod``), made continuous.

    Knot ``i`` (0 to N - 1) stands at ``t = (i + 1) / N``, so the network's timestep is ``N t - 1``, and ``t = 0`` is
    clean data. Between knots the log of the noise level is linear in t, as diffusers interpolates it. Before the
    first knot, and in a last interval that ends in ``alpha = 0`` (zero terminal SNR), where that log is infinite,
    ``atan(noise_level)`` is linear instead. Raises InputError unless the values fall strictly inside (0, 1); the
    last may be 0.
    """

    name = "vp_table"
    option_names = ("alphas_cumprod",)

    def __init__(self, alphas_cumprod: Sequence[float] | np.ndarray | Tensor) -> None:
        table = (
            alphas_cumprod
            if isinstance(alphas_cumprod, Tensor)
            else torch.as_tensor(alphas_cumprod, dtype=torch.float64)
        )
        table = table.detach().cpu().double().clone()
        if table.ndim != 1 or len(table) < 2:
            raise InputError(f"alphas_cumprod: shape {tuple(table.shape)}; allowed: one dimension, two values or more")
        falling = bool((table[1:] < table[:-1]).all())
        if not (falling and bool(table[0] < 1) and bool(table[-1] >= 0)):
            raise InputError("alphas_cumprod: allowed: values in (0, 1) that fall strictly; only the last may be 0")
        self.num_train_timesteps = len(table)
        self._table = table
        self._ends_in_noise = bool(table[-1] == 0)
        self._log_levels = (torch.log1p(-table) - torch.log(table)) / 2
        # interval i ends at knot i; the first, and a last one that ends in pure noise, have an angle instead of a log
        self._left, self._slope = torch.zeros(2, len(table), dtype=torch.float64)
        finite = slice(1, len(table) - self._ends_in_noise)
        self._left[finite] = self._log_levels[: finite.stop - 1]
        self._slope[finite] = self._log_levels[finite] - self._left[finite]
        self._first_angle = torch.atan(torch.exp(self._log_levels[0])).item()
        self._last_angle = torch.atan(torch.exp(-self._log_levels[-2])).item()  # from pi/2, at the last knot but one
        self._copies: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    def _options(self) -> dict[str, Any]:
        return {"alphas_cumprod": self._table.tolist()}

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Log levels, left ends and slopes on ``device``: kept, since a copy from the host waits for it."""
        if device not in self._copies:
            tables = (self._log_levels, self._left, self._slope)
            self._copies[device] = tuple(table.to(device) for table in tables)  # type: ignore[assignment]
        return self._copies[device]

    def __repr__(self) -> str:
        return f"VPTablePath(<{self.num_train_timesteps} values>)"

    def _angles(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The angle ``atan(noise_level)``, its complement to pi/2 (each accurate near its 0), and its t-derivative."""
        count = self.num_train_timesteps
        position = t * count
        interval = position.floor().clamp(0, count - 1).long()
        _, left, slope = self._on(t.device)
        left, slope = left[interval], slope[interval]
        log_level = left + slope * (position - interval)
        angle, rest = torch.atan(torch.exp(log_level)), torch.atan(torch.exp(-log_level))
        rate = count * slope * torch.sin(angle) * torch.cos(angle)

        first = interval == 0
        angle = torch.where(first, self._first_angle * position, angle)
        rest = torch.where(first, HALF_PI - self._first_angle * position, rest)
        rate = torch.where(first, torch.full_like(rate, self._first_angle * count), rate)
        if self._ends_in_noise:
            last = interval == count - 1
            rest = torch.where(last, self._last_angle * (count - position), rest)
            angle = torch.where(last, HALF_PI - rest, angle)
            rate = torch.where(last, torch.full_like(rate, self._last_angle * count), rate)
        return angle, rest, rate

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.sin(self._angles(t)[1])

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.sin(self._angles(t)[0])

    def _alpha_dot(self, t: Tensor) -> Tensor:
        angle, _, rate = self._angles(t)
        return -torch.sin(angle) * rate

    def _sigma_dot(self, t: Tensor) -> Tensor:
        _, rest, rate = self._angles(t)
        return torch.sin(rest) * rate

    def _time(self, level: Tensor) -> Tensor:
        count = self.num_train_timesteps
        log_level = torch.log(level)
        log_levels, left, slope = self._on(level.device)
        interval = torch.searchsorted(log_levels, log_level.contiguous()).clamp(max=count - 1)
        left, slope = left[interval], slope[interval]
        position = interval + (log_level - left) / slope  # where the slope is 0 the angle below takes its place
        position = torch.where(interval == 0, torch.atan(level) / self._first_angle, position)
        if self._ends_in_noise:
            position = torch.where(interval == count - 1, count - torch.atan(1 / level) / self._last_angle, position)
        return position.clamp(max=count) / count
