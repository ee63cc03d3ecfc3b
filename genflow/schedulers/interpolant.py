"""Networks trained on a stochastic interpolant's own clock: SiT's, and any on the trigonometric path."""

from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from genflow.errors import InputError, check_choice, check_flag, check_number
from genflow.paths import LinearPath, Path, TrigonometricPath, VPPath
from genflow.prediction import PREDICTION_TYPES, Prediction
from genflow.schedulers.family import Family, end_in_zero, float64

__all__ = ["InterpolantFamily"]

_SIT_NAMES = {"Linear": "linear", "GVP": "trigonometric", "VP": "vp"}
_MARGIN = 1e-3  # SiT's sample_eps: where a network of the noise starts on a path that begins in pure noise


class InterpolantFamily(Family):
    """``x = alpha(t) x0 + sigma(t) eps`` on a continuous path, the network's timestep being t itself or 1 - t.

    Keys: ``interpolant`` is ``linear``, ``trigonometric`` or ``vp`` (Song et al.'s linear betas, ``beta_min`` 0.1 to
    ``beta_max`` 20), or SiT's ``Linear``, ``GVP``, ``VP``. ``prediction_type`` may also be ``velocity``, dx/dt
    (the default), or ``score``. ``reversed_time`` is for networks whose clock runs from noise (0) to data (1), as
    SiT's does: they are asked at 1 - t, and their velocity is taken with the other sign. ``timestep_scale`` (1)
    multiplies the timestep. Steps are equal in t.
    """

    name = "interpolant"
    prediction_types = (*PREDICTION_TYPES, "velocity", "score")
    defaults: ClassVar[dict[str, Any]] = {
        "num_train_timesteps": 1000,
        "prediction_type": "velocity",
        "interpolant": "linear",
        "reversed_time": False,
        "timestep_scale": 1.0,
        "beta_min": 0.1,
        "beta_max": 20.0,
        "D": None,
    }

    def __init__(self, given: dict[str, Any]) -> None:
        given = dict(given)
        given["interpolant"] = _SIT_NAMES.get(given.get("interpolant"), given.get("interpolant"))
        super().__init__(given)
        check_choice("interpolant", self.config["interpolant"], ("linear", "trigonometric", "vp"))
        check_number("timestep_scale", self.config["timestep_scale"], above=0)
        check_flag("reversed_time", self.config["reversed_time"])
        path: Path = {
            "linear": LinearPath,
            "trigonometric": TrigonometricPath,
            "vp": lambda: VPPath.linear(self.config["beta_min"], self.config["beta_max"]),
        }[self.config["interpolant"]]()
        self.path = self.with_noise(path)

    def times(self, steps: int, mu: float | None = None) -> np.ndarray:
        noise_alone = self.prediction_type in ("epsilon", "score") and self.path.alpha(1.0) == 0
        return np.linspace(1 - _MARGIN if noise_alone else 1.0, 0, steps + 1)

    def times_from_sigmas(self, sigmas: np.ndarray, mu: float | None = None) -> np.ndarray:
        if sigmas[0] > 1:
            raise InputError(f"sigmas: the first is {sigmas[0]:g}; allowed on an interpolant: at most 1")
        linear = self.config["interpolant"] == "linear"
        with np.errstate(divide="ignore"):
            levels = sigmas / (1 - sigmas if linear else np.sqrt((1 - sigmas) * (1 + sigmas)))
        return end_in_zero("sigmas", np.minimum(self.path.time(levels), 1.0))

    def times_from_timesteps(self, timesteps: np.ndarray) -> np.ndarray:
        return end_in_zero("timesteps", np.minimum(self.time(timesteps), 1.0))

    def training_times(self) -> np.ndarray:
        count = self.num_train_timesteps
        return np.arange(count, 0, -1) / count

    def time(self, timestep: Any) -> Any:
        t = float64(timestep) / self.config["timestep_scale"]
        return 1 - t if self.config["reversed_time"] else t

    def timestep(self, t: Any) -> Any:
        return (1 - t if self.config["reversed_time"] else t) * self.config["timestep_scale"]

    def sigma(self, t: np.ndarray) -> np.ndarray:
        return self.path.sigma(t)

    def _sign(self) -> float:
        return -1.0 if self.config["reversed_time"] and self.prediction_type == "velocity" else 1.0

    def predict(self, model_output: Tensor, x: Tensor, t: float | Tensor) -> Prediction:
        return super().predict(model_output if self._sign() > 0 else -model_output, x, t)

    def model_output(self, prediction: Prediction) -> Tensor:
        return self._sign() * super().model_output(prediction)
