"""What a diffusers scheduler config says about its network: the path it was trained on and how it is called.

Three families cover diffusers' Gaussian schedulers: flow matching (SD3, Flux, Wan), beta schedules (DDPM, DDIM, Stable
Diffusion) and EDM (preconditioned networks in noise level). Each turns the config's keys into a
:class:`~genflow.paths.Path`, a prediction type, the grid of times, and the map between times and the network's
timesteps. All arrays are float64 on the host.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from genflow.errors import InputError, check_choice, check_number
from genflow.paths import Path, with_student_t
from genflow.prediction import PREDICTION_TYPES, Prediction
from genflow.schedulers import grids

__all__ = ["BENDS", "Family", "end_in_zero", "float64"]

BENDS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


class Family(ABC):
    """A path, a prediction type and the network's own clock, read from a config.

    ``config`` holds the family's keys with every default filled in; what the constructor took and ``config`` give the
    same family. ``path`` is the Gaussian path on which the scheduler's samples live. Each family has a key ``D``: with
    a number or "inf" the network was trained with PFGM++'s noise (:class:`~genflow.paths.PFGMPlusPlusPath`).
    """

    name: ClassVar[str]
    defaults: ClassVar[dict[str, Any]]
    prediction_types: ClassVar[tuple[str, ...]] = PREDICTION_TYPES
    path: Path

    def __init__(self, given: dict[str, Any]) -> None:
        self.config = {key: given.get(key, default) for key, default in self.defaults.items()}
        for key, default in self.defaults.items():
            if self.config[key] is None:
                self.config[key] = default
        check_choice("prediction_type", self.config["prediction_type"], self.prediction_types)
        check_number("num_train_timesteps", self.config["num_train_timesteps"], at_least=2, integer=True)
        chosen = [key for key in BENDS if self.config.get(key)]
        if len(chosen) > 1:
            raise InputError(f"{' and '.join(chosen)}: only one of them can be true")

    def with_noise(self, path: Path) -> Path:
        """``path`` with the noise that ``D`` says."""
        path = with_student_t(path, self.config["D"])
        if self.config["D"] is not None:
            self.config["D"] = path.to_config()["D"]  # JSON has no infinity
        return path

    @property
    def prediction_type(self) -> str:
        """What the network predicts, in diffusers' words."""
        return self.config["prediction_type"]

    @property
    def num_train_timesteps(self) -> int:
        """Length of the training schedule."""
        return int(self.config["num_train_timesteps"])

    @abstractmethod
    def times(self, steps: int, mu: float | None = None) -> np.ndarray:
        """``steps + 1`` descending times of the config's own schedule; the last is where sampling ends."""

    @abstractmethod
    def times_from_sigmas(self, sigmas: np.ndarray, mu: float | None = None) -> np.ndarray:
        """Times for the caller's sigmas (see ``sigma``); a last 0 is the end point and may be left out."""

    @abstractmethod
    def time(self, timestep: Any) -> Any:
        """The path's time for a network timestep: a number, an array or a tensor (which comes back in float64)."""

    @abstractmethod
    def timestep(self, t: Any) -> Any:
        """The network's timestep at time ``t``; the inverse of :meth:`time`."""

    @abstractmethod
    def sigma(self, t: np.ndarray) -> np.ndarray:
        """What diffusers calls sigma: sigma(t) of a flow, the noise level on the other paths."""

    def training_times(self) -> np.ndarray:
        """The training schedule, noisiest first."""
        return self.times(self.num_train_timesteps)[:-1]

    def times_from_timesteps(self, timesteps: np.ndarray) -> np.ndarray:
        """Times at which the network sees exactly these timesteps (no shift is applied), ending in 0."""
        highest = float(self.timestep(np.ones(1))[0])
        if timesteps[0] > highest + 1e-4 * abs(highest):
            raise InputError(f"timesteps: the first is {timesteps[0]:g}; allowed: at most {highest:g}")
        times = self.time(timesteps)
        return end_in_zero("timesteps", np.minimum(times, 1.0))

    def input_scale(self, t: float) -> float:
        """The factor of ``scale_model_input``."""
        return 1.0

    def prior_std(self, t: float) -> float:
        """Standard deviation of the noise a trajectory starts from at time ``t``."""
        return 1.0

    def predict(self, model_output: Tensor, x: Tensor, t: float | Tensor) -> Prediction:
        """Read a raw network output at state ``x`` (on the path, not scaled) and time ``t``."""
        return Prediction(model_output, self.prediction_type, x, self.path, t)

    def model_output(self, prediction: Prediction) -> Tensor:
        """The raw network output that would read as ``prediction``."""
        return prediction.to(self.prediction_type)

    def bend(self, levels: np.ndarray, low: float, high: float) -> np.ndarray:
        """Replace the levels by as many karras, exponential or beta ones where the config asks for it."""
        if self.config.get("use_karras_sigmas"):
            return grids.karras_levels(low, high, len(levels))
        if self.config.get("use_exponential_sigmas"):
            return grids.exponential_levels(low, high, len(levels))
        if self.config.get("use_beta_sigmas"):
            return grids.beta_levels(low, high, len(levels))
        return levels


def end_in_zero(name: str, times: np.ndarray) -> np.ndarray:
    """Append the end point 0 and insist on a strictly descending schedule."""
    times = times if times[-1] == 0 else np.append(times, 0.0)
    if len(times) < 2 or not np.all(np.diff(times) < 0):
        raise InputError(f"{name}: {times.tolist()} (as times) do not descend strictly towards 0")
    return times


def float64(value: float | Sequence[float] | np.ndarray | Tensor) -> Any:
    """A number, array or tensor in float64 (float32 on a device without it)."""
    if isinstance(value, Tensor):
        return value.float() if value.device.type == "mps" else value.double()
    return np.asarray(value, dtype=np.float64) if isinstance(value, (np.ndarray, list, tuple)) else float(value)
