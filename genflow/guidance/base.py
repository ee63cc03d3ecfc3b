"""The guidance contract: how a conditional and an unconditional denoised estimate become a guided one."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from genflow.errors import InputError, check_number
from genflow.guidance.rescale import rescale_std
from genflow.paths import working_dtype

__all__ = ["Guidance"]

_IDLE = {"start": 0.0, "stop": 1.0, "rescale": 0.0}  # values of options that change nothing


class Guidance(ABC):
    """A rule in x0 space. All predictions come to it as denoised estimates, so a rule means the same for any network.

    Args:
        scale: the strength; 1 is no guidance. A number, or ``(B,)`` numbers (a tensor, say), one for each sample.
        interval: ``(low, high)`` noise levels; guidance acts where ``low < noise_level <= high`` (Kynkäänniemi et
            al. 2024, arXiv 2404.07724). The default is everywhere; a high of None is infinity.
        start, stop: fractions of the run; guidance acts at the steps n of N with ``start <= n / N < stop``, and
            inside ``interval`` as well. The default is the whole run.
        rescale: how far to bring the standard deviation of the guided x0 back to that of the conditional x0, from 0
            (not at all, the default) to 1; 0.7 in Lin et al. 2024 (arXiv 2305.08891, section 3.4), who apply it to
            the network's output. In x0 space it means the same for every network.

    Attributes:
        neutral: every scale is 1, so that no unconditional estimate is ever needed.
        steps: how many steps the run has, as told to :meth:`reset`; None where nobody said.

    Raises:
        InputError: a scale that is not finite, an interval that is not two rising levels, a fraction outside [0, 1].
    """

    name: ClassVar[str]
    option_names: ClassVar[tuple[str, ...]] = ("scale", "interval", "start", "stop", "rescale")

    def __init__(
        self,
        scale: float | Sequence[float] | Tensor = 1.0,
        interval: tuple[float, float | None] = (0.0, math.inf),
        start: float = 0.0,
        stop: float = 1.0,
        rescale: float = 0.0,
    ) -> None:
        if isinstance(scale, (list, tuple)):
            scale = torch.tensor([float(check_number("scale", value)) for value in scale], dtype=torch.float64)
        if isinstance(scale, Tensor):
            if scale.ndim > 1 or not scale.numel() or not bool(torch.isfinite(scale).all()):
                raise InputError(f"scale: got {scale.tolist()}; allowed: a finite number, or one for each sample")
            self.neutral = bool((scale == 1).all())
        else:
            scale = float(check_number("scale", scale))
            self.neutral = scale == 1
        self.scale = scale
        self.interval = self._check_interval(interval)
        self.start = float(check_number("start", start, at_least=0, below=1))
        self.stop = float(check_number("stop", stop, above=self.start, at_most=1))
        self.rescale = float(check_number("rescale", rescale, at_least=0, at_most=1))
        self.steps: int | None = None
        self._scales: dict[Any, Tensor] = {}  # the scale on each device it was wanted on

    @staticmethod
    def _check_interval(interval: Any) -> tuple[float, float]:
        try:
            low, high = (math.inf if level is None else float(level) for level in interval)
        except (TypeError, ValueError):
            low, high = math.nan, math.nan
        if not 0 <= low < high:
            raise InputError(f"interval: got {interval!r}; allowed: two noise levels (low, high) with 0 <= low < high")
        return low, high

    @property
    def counts_steps(self) -> bool:
        """Whether the rule depends on the steps of the run, so that it means nothing to an adaptive solver."""
        return self.start > 0 or self.stop < 1

    def reset(self, steps: int | None = None) -> None:
        """Begin a run of ``steps`` outer steps (None: not known) and forget the last; called before every run.

        A rule with ``start`` or ``stop`` needs the number.
        """
        self.steps = steps

    def is_active(self, noise_level: float | Tensor, step: int = 0) -> bool:
        """Whether an unconditional estimate is needed at this noise level and outer step.

        ``noise_level`` is a number; a tensor of levels of their own (never looked at) is taken to need one.

        Raises:
            InputError: ``start`` or ``stop`` is set and :meth:`reset` was not told the number of steps.
        """
        if self.neutral or not self._in_window(step):
            return False
        low, high = self.interval
        return isinstance(noise_level, Tensor) or low < noise_level <= high

    def _in_window(self, step: int) -> bool:
        if self.start == 0 and self.stop == 1:
            return True
        if self.steps is None:
            raise InputError("start and stop: fractions of a run whose number of steps is not known; allowed: 0 and 1")
        return self.start * self.steps - 1e-9 <= step < self.stop * self.steps - 1e-9  # 0.29 * 100 is below 29

    def __call__(
        self, cond_x0: Tensor, uncond_x0: Tensor, x: Tensor, noise_level: float | Tensor, step: int = 0
    ) -> Tensor:
        """The guided x0, in float32 at least.

        ``cond_x0``, ``uncond_x0`` and the state ``x`` are ``(B, ...)`` of one shape; ``noise_level`` is a number or
        ``(B,)``, and a sample whose level is outside the interval keeps its conditional x0; ``step`` counts outer
        steps (a solver with two evaluations a step gives it twice). To be called where :meth:`is_active` says so.

        Raises:
            InputError: shapes that do not fit.
        """
        if cond_x0.shape != uncond_x0.shape:
            raise InputError(
                f"uncond_x0: shape {tuple(uncond_x0.shape)} does not fit cond_x0 of shape {tuple(cond_x0.shape)}"
            )
        dtype = working_dtype(cond_x0, uncond_x0)
        cond, uncond = cond_x0.to(dtype), uncond_x0.to(dtype)
        acts = None
        if isinstance(noise_level, Tensor) and self.interval != (0.0, math.inf):
            low, high = self.interval
            acts = ((noise_level > low) & (noise_level <= high)).to(cond.device)
            acts = acts.reshape(-1, *(1,) * (cond.ndim - 1))
            uncond = torch.where(acts, uncond, cond)  # what is kept for later steps begins inside the interval
        guided = self._guide(cond, uncond, x, noise_level, step)
        if self.rescale:
            guided = rescale_std(guided, cond, self.rescale)
        return guided if acts is None else torch.where(acts, guided, cond)

    @abstractmethod
    def _guide(self, cond: Tensor, uncond: Tensor, x: Tensor, noise_level: float | Tensor, step: int) -> Tensor:
        """The rule itself; ``cond`` and ``uncond`` share a shape and a dtype, float32 at least."""

    def scale_like(self, x: Tensor) -> float | Tensor:
        """``scale``, broadcasting over ``x``, in its dtype; raises InputError if it is for other samples."""
        scale = self.scale
        if not isinstance(scale, Tensor):
            return scale
        if scale.ndim == 1 and scale.shape[0] not in (1, x.shape[0]):
            raise InputError(f"scale: {scale.shape[0]} values does not fit {x.shape[0]} samples; allowed: one for each")
        key = (x.device, x.dtype, x.ndim)
        if key not in self._scales:  # kept, so that a step does not wait for a copy to the device
            self._scales[key] = scale.to(x.device, x.dtype).reshape((-1,) + (1,) * (x.ndim - 1))
        return self._scales[key]

    def to_config(self) -> dict[str, Any]:
        """The name and options, JSON-safe (infinity is null); ``create_guidance(**config)`` makes it again.

        ``start``, ``stop`` and ``rescale`` are there only where they do something.
        """
        config: dict[str, Any] = {"name": self.name}
        for option in self.option_names:
            value = getattr(self, option)
            if option not in _IDLE or value != _IDLE[option]:
                config[option] = value
        if isinstance(self.scale, Tensor):
            config["scale"] = self.scale.tolist()
        low, high = self.interval
        config["interval"] = [low, None if math.isinf(high) else high]
        return config

    def __repr__(self) -> str:
        config = self.to_config()
        return f"{type(self).__name__}({', '.join(f'{key}={config[key]!r}' for key in config if key != 'name')})"
