"""Flow matching: SD3, Flux, Wan, and the flow mode of diffusers' DPM-Solver++, UniPC and DEIS."""

from typing import Any, ClassVar

import numpy as np

from genflow.errors import InputError, check_choice, check_number
from genflow.paths import LinearPath
from genflow.schedulers import grids
from genflow.schedulers.family import Family, end_in_zero, float64

__all__ = ["FlowFamily"]


class FlowFamily(Family):
    """``x = (1 - sigma) x0 + sigma eps``; the network's timestep is ``num_train_timesteps * sigma``.

    The shift only moves the grid, once; time on the path is sigma itself. ``timestep_spacing``: ``trailing`` runs
    from 1 in equal steps to 0, so that every step is alike, which is what Flux's pipeline asks of a scheduler (and
    leaves to one with ``use_flow_sigmas``); ``linspace`` runs from 1 to 1/num_train_timesteps and then to 0, the
    default grid of FlowMatchEulerDiscreteScheduler, whose last step is next to nothing.
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
        "D": None,
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
        self.path = self.with_noise(LinearPath())

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
        sigmas = np.minimum(grids.shift_sigmas(sigmas, shift), 1.0)  # not 1 + 2e-16
        if self.config["shift_terminal"]:
            sigmas = grids.stretch_sigmas(sigmas, self.config["shift_terminal"])
        return end_in_zero(name, self.bend(sigmas, sigmas[-1], sigmas[0]))

    def time(self, timestep: Any) -> Any:
        return float64(timestep) / self.num_train_timesteps

    def timestep(self, t: Any) -> Any:
        return t * self.num_train_timesteps

    def sigma(self, t: np.ndarray) -> np.ndarray:
        return t
