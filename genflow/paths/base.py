"""The Gaussian path between data and noise: ``x_t = alpha(t) * x0 + sigma(t) * eps``.

Time runs from ``t = 0`` (data) to ``t = 1`` (noise). Every coefficient is a closed form evaluated in float64;
it takes a number, a NumPy array or a torch tensor and gives back the same kind (a tensor on a device without
float64, such as mps, comes back in float32). Nothing here knows of models or of diffusers.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from genflow.errors import InputError
from genflow.registry import create_by_name

__all__ = ["PATHS", "Path", "Time", "evaluate_at", "expand_like", "working_dtype"]

Time = TypeVar("Time", float, np.ndarray, Tensor)

MEMORY = 4096  # coefficients a path keeps at most

PATHS: dict[str, type["Path"]] = {}
"""Every path class that has a ``name``, by that name (classes enter themselves)."""


def evaluate_at(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply a float64 tensor function to a number, an array or a tensor, and return the same kind."""
    if isinstance(value, Tensor):
        if value.device.type == "mps":
            return function(value.detach().cpu().double()).float().to(value.device)
        return function(value.double())
    if isinstance(value, np.ndarray):
        return function(torch.as_tensor(value.astype(np.float64))).numpy()
    if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
        return function(torch.tensor(float(value), dtype=torch.float64)).item()
    raise InputError(f"time: got {type(value).__name__}; allowed: a number, a NumPy array or a torch tensor")


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype for arithmetic on ``tensors``: their promoted dtype, and float32 at least."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def expand_like(coefficient: float | Tensor, x: Tensor) -> float | Tensor:
    """Make a number or a ``(B,)`` tensor broadcast over ``x`` of shape ``(B, ...)``, on ``x``'s device.

    A number stays a number. A tensor comes back in ``working_dtype(x)``. Raises InputError for another shape.
    """
    if not isinstance(coefficient, Tensor):
        return coefficient
    if coefficient.ndim > 1 or (coefficient.ndim == 1 and coefficient.shape[0] not in (1, x.shape[0])):
        raise InputError(
            f"time: shape {tuple(coefficient.shape)} does not fit x of shape {tuple(x.shape)}; "
            f"allowed: a scalar or ({x.shape[0]},)"
        )
    shape = (-1,) + (1,) * (x.ndim - 1) if coefficient.ndim else ()
    return coefficient.to(device=x.device, dtype=working_dtype(x)).reshape(shape)


class Path(ABC):
    """A Gaussian path. Subclasses give float64 tensor forms of the coefficients; equality is by configuration."""

    name: ClassVar[str]
    option_names: ClassVar[tuple[str, ...]] = ()  # what the constructor takes and to_config gives

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            PATHS[cls.name] = cls

    @abstractmethod
    def _alpha(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _sigma(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _alpha_dot(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _sigma_dot(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _time(self, level: Tensor) -> Tensor: ...

    def _noise_level(self, t: Tensor) -> Tensor:
        return self._sigma(t) / self._alpha(t)

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.option_names}

    def alpha(self, t: Time) -> Time:
        """Weight of the data in ``x_t``; ``alpha(0) = 1``."""
        return self._remembered(t)[0] if isinstance(t, float) else evaluate_at(self._alpha, t)

    def sigma(self, t: Time) -> Time:
        """Weight of the noise in ``x_t``; ``sigma(0) = 0``."""
        return self._remembered(t)[1] if isinstance(t, float) else evaluate_at(self._sigma, t)

    def noise_level(self, t: Time) -> Time:
        """``sigma / alpha``, EDM's sigma: the axis on which all Gaussian paths agree; inf where alpha is 0."""
        return self._remembered(t)[2] if isinstance(t, float) else evaluate_at(self._noise_level, t)

    def remember(self, times: np.ndarray) -> None:
        """Evaluate alpha, sigma and the noise level of a schedule at once, for the numbers asked for one by one later.

        A single evaluation costs a tenth of a millisecond or more, as much as the arithmetic of a small step.
        """
        values = (f(times).tolist() for f in (self.alpha, self.sigma, self.noise_level))
        self._memory().update(zip(times.tolist(), zip(*values, strict=True), strict=True))

    def _remembered(self, t: float) -> tuple[float, float, float]:
        memory = self._memory()
        if t not in memory:
            memory[t] = tuple(evaluate_at(f, t) for f in (self._alpha, self._sigma, self._noise_level))
        return memory[t]

    def _memory(self) -> dict[float, tuple[float, float, float]]:
        memory = self.__dict__.setdefault("_coefficients", {})
        if len(memory) > MEMORY:
            memory.clear()
        return memory

    def alpha_dot(self, t: Time) -> Time:
        """``d alpha / dt``."""
        return evaluate_at(self._alpha_dot, t)

    def sigma_dot(self, t: Time) -> Time:
        """``d sigma / dt``; infinite at ``t = 0`` on continuous VP paths, where sigma starts as ``sqrt(t)``."""
        return evaluate_at(self._sigma_dot, t)

    def time(self, noise_level: Time) -> Time:
        """The inverse of :meth:`noise_level`. A level beyond the path's own gives a time above 1, or 1 on a table."""
        return evaluate_at(self._time, noise_level)

    def log_snr(self, t: Time) -> Time:
        """``-2 log noise_level(t)``: inf at ``t = 0``, -inf where alpha is 0."""
        return evaluate_at(lambda u: -2 * torch.log(self._noise_level(u)), t)

    @property
    def prior_std(self) -> float:
        """``sigma(1)``: sampling starts from normal(0, prior_std^2)."""
        return self.sigma(1.0)

    @property
    def noise_law(self) -> str:
        """The law of ``eps``, in words. Rules that add Gaussian noise of their own need ``"Gaussian"``."""
        return "Gaussian"

    def noise(self, normal: Tensor, generators: torch.Generator | Sequence[torch.Generator] | None = None) -> Tensor:
        """The path's own ``eps`` from standard normal noise ``(B, ...)``: the same on a Gaussian path.

        A path whose noise has another law draws what it needs besides from ``generators``: one for each sample, one
        for all, or torch's own (None). Training and priors draw their noise through this.
        """
        return normal

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """Log-density, in nats, of the noise ``prior_std * eps`` at ``x`` ``(B, ...)``: float64 ``(B,)``."""
        x = x.flatten(1).double()
        constant = x.shape[1] * math.log(self.prior_std * math.sqrt(2 * math.pi))
        return -x.square().sum(1) / (2 * self.prior_std**2) - constant

    def perturb(self, x0: Tensor, noise: Tensor, t: float | Tensor) -> Tensor:
        """``alpha(t) x0 + sigma(t) noise``.

        ``x0`` and ``noise`` are ``(B, ...)``, ``t`` a number or ``(B,)``. Computed in float32 at least, returned
        in ``x0``'s dtype. Raises InputError where the shapes do not fit.
        """
        if x0.shape != noise.shape:
            raise InputError(f"noise: shape {tuple(noise.shape)} does not fit x0 of shape {tuple(x0.shape)}")
        dtype = working_dtype(x0, noise)
        clean, eps = x0.to(dtype), noise.to(dtype)
        alpha, sigma = expand_like(self.alpha(t), clean), expand_like(self.sigma(t), clean)
        return (alpha * clean + sigma * eps).to(x0.dtype)

    def to_config(self) -> dict[str, Any]:
        """A JSON-safe description that :meth:`from_config` reads."""
        return {"path": self.name, **self._options()}

    @staticmethod
    def from_config(config: dict[str, Any]) -> "Path":
        """Build the path that ``config`` describes; raises InputError for an unknown name or option."""
        options = dict(config)
        return create_by_name("path", options.pop("path", None), PATHS, options)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Path) and self.to_config() == other.to_config()

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_config(), sort_keys=True))

    def __repr__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in self._options().items())
        return f"{type(self).__name__}({options})"
