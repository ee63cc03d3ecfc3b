"""Beta schedules: DDPM, DDIM, Stable Diffusion and everything else that diffusers calls a Karras scheduler."""

from typing import Any, ClassVar

import numpy as np

from genflow.errors import InputError, check_choice, check_number
from genflow.paths import VPPath
from genflow.schedulers import grids
from genflow.schedulers.betas import alphas_cumprod_from, betas_from
from genflow.schedulers.family import BENDS, Family, end_in_zero, float64

__all__ = ["BetaFamily"]


class BetaFamily(Family):
    """A table of betas; the path is variance preserving and timestep ``i`` stands at ``t = (i + 1) / N``.

    Sigmas are noise levels, as in EulerDiscreteScheduler. Karras, exponential and beta levels span the whole table,
    whatever the spacing of timesteps.
    """

    name = "beta"
    defaults: ClassVar[dict[str, Any]] = {
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "trained_betas": None,
        "rescale_betas_zero_snr": False,
        "snr_shift_scale": None,  # CogVideoX
        "timestep_spacing": "linspace",
        "steps_offset": 0,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "sigma_min": None,
        "sigma_max": None,
        "final_sigmas_type": "zero",
        "set_alpha_to_one": True,
        "D": None,
    }

    def __init__(self, given: dict[str, Any]) -> None:
        given = dict(given)
        betas = betas_from({**self.defaults, **{key: value for key, value in given.items() if value is not None}})
        given["num_train_timesteps"] = len(betas)
        if given.get("trained_betas") is not None:
            given["trained_betas"] = betas.tolist()
        if given.get("final_sigmas_type") is None and given.get("set_alpha_to_one") is False:
            given["final_sigmas_type"] = "sigma_min"  # DDIM's and PNDM's older word for it
        super().__init__(given)
        check_choice("final_sigmas_type", self.config["final_sigmas_type"], ("zero", "sigma_min"))
        check_choice("timestep_spacing", self.config["timestep_spacing"], ("leading", "linspace", "trailing"))
        self.betas = betas
        self.alphas_cumprod = alphas_cumprod_from(betas, self.config)
        self.path = self.with_noise(VPPath.from_alphas_cumprod(self.alphas_cumprod))

    def times(self, steps: int, mu: float | None = None) -> np.ndarray:
        count, config = self.num_train_timesteps, self.config
        if any(config[key] for key in BENDS):
            low, high = self.noise_levels()
            return self._finish("num_inference_steps", self.path.time(self.bend(np.empty(steps), low, high)))
        timesteps = grids.spaced_timesteps(config["timestep_spacing"], steps, count, config["steps_offset"])
        return self._finish("num_inference_steps", self.time(timesteps))

    def times_from_sigmas(self, sigmas: np.ndarray, mu: float | None = None) -> np.ndarray:
        highest = float(self.path.noise_level(1.0))
        if sigmas[0] > 1.01 * highest:  # published tables are rounded; what is rounded up means the last timestep
            raise InputError(f"sigmas: the first is {sigmas[0]:g}; allowed: at most {highest:g}, the schedule's last")
        return end_in_zero("sigmas", self.path.time(np.minimum(sigmas, highest)))

    def training_times(self) -> np.ndarray:
        count = self.num_train_timesteps
        return np.arange(count, 0, -1) / count

    def noise_levels(self) -> tuple[float, float]:
        """The lowest and highest noise level: the config's, or the table's."""
        low, high = self.config["sigma_min"], self.config["sigma_max"]
        first = 1 / self.num_train_timesteps
        # a table with zero terminal SNR ends at infinity; 4096 is what diffusers' 2^-24 amounts to
        highest = min(float(self.path.noise_level(1.0)), 4096.0)
        low = float(self.path.noise_level(first)) if low is None else check_number("sigma_min", low, above=0)
        high = highest if high is None else check_number("sigma_max", high, above=low)
        return low, min(high, highest)

    def _finish(self, name: str, times: np.ndarray) -> np.ndarray:
        first = 1 / self.num_train_timesteps
        if self.config["final_sigmas_type"] == "sigma_min" and times[-1] > first * (1 + 1e-9):
            return np.append(times, first)
        return end_in_zero(name, times)

    def time(self, timestep: Any) -> Any:
        return (float64(timestep) + 1) / self.num_train_timesteps

    def timestep(self, t: Any) -> Any:
        timestep = t * self.num_train_timesteps - 1
        # an array is a schedule: no 0 that comes out as -2e-16
        return np.round(timestep, 9) + 0.0 if isinstance(timestep, np.ndarray) else timestep

    def sigma(self, t: np.ndarray) -> np.ndarray:
        return self.path.noise_level(t)
