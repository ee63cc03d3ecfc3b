"""From the config of any diffusers scheduler to one of genflow's families.

A config in memory holds keys of three kinds: those the class took, those it left at its defaults, and "hidden" ones
carried along from the scheduler it was itself made from. Only the first two say what the old scheduler did, and both
are read, so that a scheduler of ours runs on the very schedule it replaces.
"""

import importlib
import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from genflow.errors import InputError
from genflow.prediction import PREDICTION_TYPES
from genflow.schedulers.beta import BetaFamily
from genflow.schedulers.edm import EDMFamily
from genflow.schedulers.family import Family
from genflow.schedulers.flow import FlowFamily
from genflow.schedulers.interpolant import InterpolantFamily

__all__ = ["FAMILIES", "FAMILY_KEYS", "family_from_config", "family_from_keys", "normalise"]

FAMILIES: tuple[type[Family], ...] = (FlowFamily, EDMFamily, BetaFamily, InterpolantFamily)

# understood, but turned into other keys before they are stored
ALIASES = ("timestep_type", "interpolation_type", "use_lu_lambdas")

FAMILY_KEYS: tuple[str, ...] = tuple(
    dict.fromkeys([key for family in FAMILIES for key in family.defaults] + [*ALIASES])
)
"""Every config key that some family reads."""

# keys that mark a process which is not a fixed Gaussian path, or a network that is not a denoiser on one
FOREIGN_KEYS = {
    "stages": "a pyramid of resolutions",
    "n_grid": "a policy network",
    "clip_denoised": "a consistency model",
    "snr": "a score network of the SDE library",
    "correct_steps": "a score network of the SDE library",
}
FOREIGN_CLASSES = {"FlowMapEulerDiscreteScheduler": "a two-time flow map"}


NEUTRAL_KEYS = ("num_train_timesteps", "prediction_type")  # these alone do not tell a family


def family_from_config(config: Mapping[str, Any]) -> Family:
    """The family of any scheduler's config (a diffusers scheduler's ``config``, a loaded JSON file, or ours).

    Raises InputError where the config describes no Gaussian path that genflow knows.
    """
    return family_from_keys(normalise(config))


def family_from_keys(given: Mapping[str, Any]) -> Family:
    """The family that the given keys describe; with none of a family's own keys, a flow.

    A config that does not speak of ``prediction_type`` means the family's default, as in diffusers; one that has it
    as None raises InputError, for there the network is not known.
    """
    if given.get("prediction_type", "") is None:
        raise InputError(f"prediction_type: None; allowed: {', '.join(PREDICTION_TYPES)}, as the network was trained")
    given = {key: value for key, value in given.items() if key in FAMILY_KEYS and value is not None}
    return (_detect(given) or FlowFamily)(_translate(given))


def normalise(config: Mapping[str, Any], options: Iterable[str] = ()) -> dict[str, Any]:
    """The config without the hidden keys of earlier classes, with the defaults of the class that wrote it.

    ``options`` names keys that are a scheduler's own, not a family's. JSON-safe: arrays become lists, and values that
    are not finite (a default of DPM-Solver++) are dropped.
    """
    name = config.get("_class_name")
    own = _signature_defaults(name)
    result = {key: value for key, value in config.items() if key != "_use_default_values"}
    if own is not None:
        result = {key: value for key, value in result.items() if key in own or key not in FAMILY_KEYS}
        result = {**{key: value for key, value in own.items() if key in FAMILY_KEYS}, **result}
    _refuse_foreign(result, name, own is not None, options)
    if _detect(result) is FlowFamily and not (result.get("use_flow_sigmas") and "shift" in result):
        result.pop("timestep_spacing", None)  # a word of beta schedules, which DPM-Solver++'s flow mode ignores
    result = {key: _json_safe(value) for key, value in result.items()}
    return {key: value for key, value in result.items() if not (isinstance(value, float) and not math.isfinite(value))}


def _signature_defaults(name: Any) -> dict[str, Any] | None:
    """The constructor's arguments and defaults of a diffusers scheduler class, or None for another name."""
    cls = getattr(importlib.import_module("diffusers"), name, None) if isinstance(name, str) else None
    if cls is None or not hasattr(cls, "set_timesteps"):
        return None
    parameters = list(inspect.signature(cls.__init__).parameters.items())[1:]
    return {key: None if p.default is p.empty else p.default for key, p in parameters}


def _refuse_foreign(config: Mapping[str, Any], name: Any, diffusers_class: bool, options: Iterable[str]) -> None:
    label = f"the config of {name}" if name else "this config"
    reason = FOREIGN_CLASSES.get(name) or next((why for key, why in FOREIGN_KEYS.items() if key in config), None)
    if reason:
        raise InputError(f"scheduler config: {label} belongs to {reason}, not to a Gaussian path")
    if "sigma_data" in config and "solver_order" in config and "thresholding" not in config:
        raise InputError(f"scheduler config: {label} (CosineDPMSolverMultistepScheduler's clock) is not supported")
    foreign = [key for key in config if key not in (*NEUTRAL_KEYS, *options) and not key.startswith("_")]
    if _detect(config) is None and (diffusers_class or foreign):
        raise InputError(
            f"scheduler config: {label} has no Gaussian path (keys {', '.join(sorted(foreign)) or 'none'}); allowed: "
            "beta schedules (beta_schedule or trained_betas), EDM (sigma_data and sigma_max), flows "
            "(shift or use_flow_sigmas) or interpolants (interpolant)"
        )


def _detect(config: Mapping[str, Any]) -> type[Family] | None:
    """Which family the keys belong to, or None."""

    def has(*keys: str) -> bool:
        return any(config.get(key) is not None for key in keys)

    if has("interpolant"):
        return InterpolantFamily
    if config.get("use_flow_sigmas"):
        return FlowFamily
    continuous = config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction"
    if continuous or (has("sigma_data") and has("sigma_max")):
        return EDMFamily
    if has("beta_start", "beta_end", "beta_schedule", "trained_betas"):
        return BetaFamily
    if has("shift", "flow_shift", "use_dynamic_shifting") or config.get("prediction_type") == "flow_prediction":
        return FlowFamily
    return EDMFamily if has("D") else None


def _translate(given: dict[str, Any]) -> dict[str, Any]:
    """Turn the words that one class alone has (EulerDiscrete's, DPM-Solver++'s) into a family's keys."""
    family = _detect(given)
    if family is BetaFamily and given.get("interpolation_type") == "log_linear":
        raise InputError(
            "interpolation_type: 'log_linear' with discrete timesteps is not supported; allowed: use_exponential_sigmas"
        )
    if family is BetaFamily and given.get("use_lu_lambdas") and not given.get("use_karras_sigmas"):
        return {**given, "use_exponential_sigmas": True, "use_beta_sigmas": False}  # Lu's steps are uniform in log-SNR
    if family is not EDMFamily or given.get("timestep_type") != "continuous":
        return given
    # Stable Video Diffusion's: v with sigma_data = 1, on levels between sigma_min and sigma_max
    bounds = BetaFamily({key: value for key, value in given.items() if key in BetaFamily.defaults}).noise_levels()
    if given.get("use_karras_sigmas"):
        schedule = "karras"
    elif given.get("use_exponential_sigmas") or given.get("interpolation_type") == "log_linear":
        schedule = "exponential"
    else:
        raise InputError(
            "timestep_type: 'continuous' with the levels of a beta table is not supported; "
            "allowed: use_karras_sigmas, use_exponential_sigmas or interpolation_type='log_linear'"
        )
    return {
        "num_train_timesteps": given.get("num_train_timesteps"),
        "prediction_type": given["prediction_type"],
        "sigma_min": given.get("sigma_min") or bounds[0],
        "sigma_max": given.get("sigma_max") or bounds[1],
        "sigma_data": 1.0,
        "sigma_schedule": schedule,
        "D": given.get("D"),
    }


def _json_safe(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return value
