"""What a diffusers scheduler config says about its network: the path it was trained on and how it is called.

Three families cover diffusers' Gaussian schedulers: beta schedules (DDPM, DDIM, Stable Diffusion), EDM
(preconditioned networks in noise level) and flow matching (SD3, Flux, Wan). Each turns the config's keys into a
:class:`~genflow.paths.Path`, a prediction type, the grid of times, and the map between times and the network's
timesteps. All arrays are float64 on the host.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from genflow.errors import InputError, check_choice, check_number
from genflow.models import EDMPreconditioning
from genflow.paths import EDMPath, LinearPath, Path, VPPath, working_dtype
from genflow.prediction import PREDICTION_TYPES, Prediction
from genflow.schedulers import grids
from genflow.schedulers.betas import alphas_cumprod_from, betas_from

__all__ = ["BetaFamily", "EDMFamily", "Family", "FlowFamily"]

BENDS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


class Family(ABC):
    """A path, a prediction type and the network's own clock, read from a config.

    ``config`` holds the family's keys with every default filled in; what the constructor took and ``config`` give the
    same family. ``path`` is the Gaussian path on which the scheduler's samples live.
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
        """Times for the caller's sigmas (see ``sigma``); a last 0 is the end point, and is added where it is missing."""

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
        times = self.time(timesteps)
        if times[0] > 1 + 1e-6:
            highest = self.timestep(1.0)
            raise InputError(f"timesteps: the first is {timesteps[0]:g}; allowed: at most {highest:g}")
        return _end_in_zero("timesteps", np.minimum(times, 1.0))

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

    def _bend(self, levels: np.ndarray, low: float, high: float) -> np.ndarray:
        """Replace the levels by as many karras, exponential or beta ones where the config asks for it."""
        if self.config.get("use_karras_sigmas"):
            return grids.karras_levels(low, high, len(levels))
        if self.config.get("use_exponential_sigmas"):
            return grids.exponential_levels(low, high, len(levels))
        if self.config.get("use_beta_sigmas"):
            return grids.beta_levels(low, high, len(levels))
        return levels


def _end_in_zero(name: str, times: np.ndarray) -> np.ndarray:
    """Append the end point 0 and insist on a strictly descending schedule."""
    times = times if times[-1] == 0 else np.append(times, 0.0)
    if len(times) < 2 or not np.all(np.diff(times) < 0):
        raise InputError(f"{name}: {times.tolist()} (as times) do not descend strictly towards 0")
    return times


class FlowFamily(Family):
    """``x = (1 - sigma) x0 + sigma eps``; the network's timestep is ``num_train_timesteps * sigma``.

    The shift only moves the grid, once; time on the path is sigma itself. ``timestep_spacing``: ``trailing`` runs
    from 1 in equal steps to 0, so that every step is alike; ``linspace`` runs from 1 to 1/num_train_timesteps and
    then to 0, as FlowMatchEulerDiscreteScheduler does.
    """

    name = "flow"
    defaults: ClassVar[dict[str, Any]] = {
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,  # how diffusers' DPM-Solver++, UniPC and DEIS know a flow
        "shift": 1.0,
        "flow_shift": 1.0,  # the same number under those classes' name
        "use_dynamic_shifting": False,
        "time_shift_type": "exponential",
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "shift_terminal": None,
        "invert_sigmas": False,
        "timestep_spacing": "trailing",
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
    }

    def __init__(self, given: dict[str, Any]) -> None:
        given = dict(given)
        shifts = {given[key] for key in ("shift", "flow_shift") if given.get(key) is not None}
        if len(shifts) > 1:
            raise InputError(f"shift={given['shift']!r} and flow_shift={given['flow_shift']!r} disagree; give one")
        given["shift"] = given["flow_shift"] = check_number("shift", shifts.pop() if shifts else 1.0, above=0)
        given["use_flow_sigmas"] = True
        super().__init__(given)
        if self.config["invert_sigmas"]:
            raise InputError("invert_sigmas: True (Mochi's reversed clock) is not supported; allowed: False")
        check_choice("time_shift_type", self.config["time_shift_type"], ("exponential", "linear"))
        check_choice("timestep_spacing", self.config["timestep_spacing"], ("trailing", "linspace"))
        self.path = LinearPath()

    def times(self, steps: int, mu: float | None = None) -> np.ndarray:
        last = 1 / steps if self.config["timestep_spacing"] == "trailing" else 1 / self.num_train_timesteps
        return self._finish("num_inference_steps", np.linspace(1, last, steps), self._shift(mu))

    def times_from_sigmas(self, sigmas: np.ndarray, mu: float | None = None) -> np.ndarray:
        if sigmas[0] > 1:
            raise InputError(f"sigmas: the first is {sigmas[0]:g}; allowed on a flow: at most 1")
        return self._finish("sigmas", sigmas[:-1] if sigmas[-1] == 0 else sigmas, self._shift(mu))

    def training_times(self) -> np.ndarray:
        count = self.num_train_timesteps
        shift = 1.0 if self.config["use_dynamic_shifting"] else self.config["shift"]
        return grids.shift_sigmas(np.arange(count, 0, -1) / count, shift)

    def _shift(self, mu: float | None) -> float:
        if not self.config["use_dynamic_shifting"]:
            return self.config["shift"]  # pipelines such as Flux pass mu whether or not it is wanted
        if mu is None:
            raise InputError("mu: None; allowed with use_dynamic_shifting=True: the shift's mu, a finite number")
        if self.config["time_shift_type"] == "linear":
            return check_number("mu", mu, above=0)
        return float(np.exp(check_number("mu", mu)))

    def _finish(self, name: str, sigmas: np.ndarray, shift: float) -> np.ndarray:
        sigmas = grids.shift_sigmas(sigmas, shift)
        if self.config["shift_terminal"]:
            sigmas = grids.stretch_sigmas(sigmas, self.config["shift_terminal"])
        return _end_in_zero(name, self._bend(sigmas, sigmas[-1], sigmas[0]))

    def time(self, timestep: Any) -> Any:
        return _float64(timestep) / self.num_train_timesteps

    def timestep(self, t: Any) -> Any:
        return t * self.num_train_timesteps

    def sigma(self, t: np.ndarray) -> np.ndarray:
        return t


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
        self.path = VPPath.from_alphas_cumprod(self.alphas_cumprod)

    def times(self, steps: int, mu: float | None = None) -> np.ndarray:
        count, config = self.num_train_timesteps, self.config
        if any(config[key] for key in BENDS):
            low, high = self._ends()
            return self._finish("num_inference_steps", self.path.time(self._bend(np.empty(steps), low, high)))
        timesteps = grids.spaced_timesteps(config["timestep_spacing"], steps, count, config["steps_offset"])
        return self._finish("num_inference_steps", self.time(timesteps))

    def times_from_sigmas(self, sigmas: np.ndarray, mu: float | None = None) -> np.ndarray:
        highest = float(self.path.noise_level(1.0))
        if sigmas[0] > 1.01 * highest:  # published tables are rounded; what is rounded up means the last timestep
            raise InputError(f"sigmas: the first is {sigmas[0]:g}; allowed: at most {highest:g}, the schedule's last")
        return _end_in_zero("sigmas", self.path.time(np.minimum(sigmas, highest)))

    def training_times(self) -> np.ndarray:
        count = self.num_train_timesteps
        return np.arange(count, 0, -1) / count

    def _ends(self) -> tuple[float, float]:
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
        return _end_in_zero(name, times)

    def time(self, timestep: Any) -> Any:
        return (_float64(timestep) + 1) / self.num_train_timesteps

    def timestep(self, t: Any) -> Any:
        timestep = t * self.num_train_timesteps - 1
        # an array is a schedule: no 0 that comes out as -2e-16
        return np.round(timestep, 9) + 0.0 if isinstance(timestep, np.ndarray) else timestep

    def sigma(self, t: np.ndarray) -> np.ndarray:
        return self.path.noise_level(t)


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
    }

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        check_choice("sigma_schedule", self.config["sigma_schedule"], ("karras", "exponential"))
        check_number("sigma_min", self.config["sigma_min"], above=0)
        check_number("sigma_max", self.config["sigma_max"], above=self.config["sigma_min"])
        check_number("rho", self.config["rho"], above=0)
        self.preconditioning = EDMPreconditioning(check_number("sigma_data", self.config["sigma_data"], above=0))
        self.path = EDMPath(self.config["sigma_max"])

    def times(self, steps: int, mu: float | None = None) -> np.ndarray:
        low, high = self.config["sigma_min"], self.config["sigma_max"]
        if self.config["sigma_schedule"] == "karras":
            levels = grids.karras_levels(low, high, steps, self.config["rho"])
        else:
            levels = grids.exponential_levels(low, high, steps)
        return _end_in_zero("num_inference_steps", self.path.time(levels))

    def times_from_sigmas(self, sigmas: np.ndarray, mu: float | None = None) -> np.ndarray:
        if sigmas[0] > 1.01 * self.config["sigma_max"]:
            raise InputError(f"sigmas: the first is {sigmas[0]:g}; allowed: at most sigma_max={self.path.sigma_max:g}")
        return _end_in_zero("sigmas", self.path.time(np.minimum(sigmas, self.config["sigma_max"])))

    def time(self, timestep: Any) -> Any:
        timestep = 4 * _float64(timestep)
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


def _float64(value: float | Sequence[float] | np.ndarray | Tensor) -> Any:
    """A number, array or tensor in float64 (float32 on a device without it)."""
    if isinstance(value, Tensor):
        return value.float() if value.device.type == "mps" else value.double()
    return np.asarray(value, dtype=np.float64) if isinstance(value, (np.ndarray, list, tuple)) else float(value)
