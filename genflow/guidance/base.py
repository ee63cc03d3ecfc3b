"""The guidance contract: how a conditional and an unconditional denoised estimate become a guided one."""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from genflow.errors import InputError, check_number
from genflow.paths import expand_like

__all__ = ["Guidance"]


class Guidance(ABC):
    """A rule in x0 space. All predictions come to it as denoised estimates, so a rule means the same for any network.

    Args:
        scale: the strength; 1 is no guidance. A number, or a ``(B,)`` tensor with one for each sample.
        interval: ``(low, high)`` noise levels; guidance acts where ``low < noise_level <= high`` (Kynkäänniemi et
            al. 2024, arXiv 2404.07724). The default is everywhere; a high of None is infinity.

    Attributes:
        neutral: every scale is 1, so that no unconditional estimate is ever needed.

    Raises:
        InputError: a scale that is not finite, or an interval that is not two rising levels.
    """

    name: ClassVar[str]
    option_names: ClassVar[tuple[str, ...]] = ("scale", "interval")

    def __init__(self, scale: float | Tensor = 1.0, interval: tuple[float, float | None] = (0.0, math.inf)) -> None:
        if isinstance(scale, Tensor):
            if scale.ndim > 1 or not bool(torch.isfinite(scale).all()):
                raise InputError(f"scale: got {scale.tolist()}; allowed: a finite number, or one for each sample")
            self.neutral = bool((scale == 1).all())
        else:
            scale = float(check_number("scale", scale))
            self.neutral = scale == 1
        self.scale = scale
        self.interval = self._check_interval(interval)

    @staticmethod
    def _check_interval(interval: Any) -> tuple[float, float]:
        try:
            low, high = (math.inf if level is None else float(level) for level in interval)
        except (TypeError, ValueError):
            low, high = math.nan, math.nan
        if not 0 <= low < high:
            raise InputError(f"interval: got {interval!r}; allowed: two noise levels (low, high) with 0 <= low < high")
        return low, high

    def reset(self) -> None:  # noqa: B027 (a rule without memory has nothing to forget)
        """Forget what was kept from earlier steps; called once before every run."""

    def is_active(self, noise_level: float) -> bool:
        """Whether an unconditional estimate is needed at this noise level."""
        low, high = self.interval
        return not self.neutral and low < noise_level <= high

    @abstractmethod
    def __call__(self, cond_x0: Tensor, uncond_x0: Tensor, x: Tensor, noise_level: float | Tensor, step: int) -> Tensor:
        """The guided x0.

        ``cond_x0``, ``uncond_x0`` and the state ``x`` are ``(B, ...)`` of one shape and dtype; ``noise_level`` is a
        number or ``(B,)``; ``step`` counts outer steps (a solver with two evaluations a step gives it twice).
        """

    def scale_like(self, x: Tensor) -> float | Tensor:
        """``scale``, broadcasting over ``x``; raises InputError if it is for another number of samples."""
        return expand_like(self.scale, x)

    def to_config(self) -> dict[str, Any]:
        """The name and options, JSON-safe (infinity is null); ``create_guidance(**config)`` makes it again."""
        config: dict[str, Any] = {"name": self.name}
        for option in self.option_names:
            config[option] = getattr(self, option)
        if isinstance(self.scale, Tensor):
            config["scale"] = self.scale.tolist()
        low, high = self.interval
        config["interval"] = [low, None if math.isinf(high) else high]
        return config
