"""EDM: networks inside Karras et al.'s preconditioning, and Stable Video Diffusion's continuous v."""

from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from genflow.errors import InputError, check_choice, check_number
from genflow.models import EDMPreconditioning
from genflow.paths import EDMPath, working_dtype
from genflow.prediction import Prediction
from genflow.schedulers import grids
from genflow.schedulers.family import Family, end_in_zero, float64

__all__ = ["EDMFamily"]


class EDMFamily(Family):
    """Karras et al. 2022: ``x = x0 + sigma eps``, a preconditioned network, timestep ``ln(sigma) / 4``.

    ``prediction_type`` is diffusers' word for the sign of c_out: ``epsilon`` is the paper's, ``v_prediction`` (CosXL,
    Stable Video Diffusion) its negative; ``sample`` is a network that gives the denoised image itself.
    """

    name = "edm"
    prediction_types = ("epsilon", "v_prediction", "sample")
    defaults: ClassVar[dict[str, Any]] = {
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "sigma_data": 0.5,
        "sigma_schedule": "karras",
        "rho": 7.0,
        "D": None,
    }

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        check_choice("sigma_schedule", self.config["sigma_schedule"], ("karras", "exponential"))
        check_number("sigma_min", self.config["sigma_min"], above=0)
        check_number("sigma_max", self.config["sigma_max"], above=self.config["sigma_min"])
        check_number("rho", self.config["rho"], above=0)
        self.preconditioning = EDMPreconditioning(check_number("sigma_data", self.config["sigma_data"], above=0))
        self.path = self.with_noise(EDMPath(self.config["sigma_max"]))

    def times(self, steps: int, mu: float | None = None) -> np.ndarray:
        low, high = self.config["sigma_min"], self.config["sigma_max"]
        if self.config["sigma_schedule"] == "karras":
            levels = grids.karras_levels(low, high, steps, self.config["rho"])
        else:
            levels = grids.exponential_levels(low, high, steps)
        return end_in_zero("num_inference_steps", self.path.time(levels))

    def times_from_sigmas(self, sigmas: np.ndarray, mu: float | None = None) -> np.ndarray:
        if sigmas[0] > 1.01 * self.config["sigma_max"]:
            raise InputError(f"sigmas: the first is {sigmas[0]:g}; allowed: at most sigma_max={self.path.sigma_max:g}")
        return end_in_zero("sigmas", self.path.time(np.minimum(sigmas, self.config["sigma_max"])))

    def time(self, timestep: Any) -> Any:
        timestep = 4 * float64(timestep)
        return (timestep.exp() if isinstance(timestep, Tensor) else np.exp(timestep)) / self.path.sigma_max

    def timestep(self, t: Any) -> Any:
        level = t * self.path.sigma_max
        return (level.log() if isinstance(level, Tensor) else np.log(level)) / 4

    def sigma(self, t: np.ndarray) -> np.ndarray:
        return self.path.noise_level(t)

    def input_scale(self, t: float) -> float:
        return float(self.preconditioning.c_in(self.path.noise_level(t)))

    def prior_std(self, t: float) -> float:
        return float(self.path.sigma(t))

    def predict(self, model_output: Tensor, x: Tensor, t: float | Tensor) -> Prediction:
        x, model_output = _in_one_dtype(x, model_output)
        if self.prediction_type != "sample":
            output = -model_output if self.prediction_type == "v_prediction" else model_output
            model_output = self.preconditioning.denoised(x, output, self.path.noise_level(t))
        return Prediction(model_output, "sample", x, self.path, t)

    def model_output(self, prediction: Prediction) -> Tensor:
        if self.prediction_type == "sample":
            return prediction.x0
        level = self.path.noise_level(prediction.t)
        output = self.preconditioning.target(prediction.x0, prediction.x, level)
        return -output if self.prediction_type == "v_prediction" else output


def _in_one_dtype(*tensors: Tensor) -> list[Tensor]:
    dtype = working_dtype(*tensors)
    return [tensor.to(dtype) for tensor in tensors]
