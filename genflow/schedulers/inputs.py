"""What a caller of a scheduler hands in, checked and brought into one form."""

from typing import Any

import numpy as np
from torch import Tensor

from genflow.errors import InputError, check_number

__all__ = ["descending", "step_count", "without_variance"]


def step_count(value: Any) -> int:
    """The number of steps as an int; raises InputError unless it is a whole number of 1 or more."""
    value = value.item() if hasattr(value, "item") else value
    return int(check_number("num_inference_steps", value, at_least=1, integer=True))


def descending(name: str, values: Any) -> np.ndarray:
    """Strictly descending finite numbers, float64; the error names the argument ``name`` otherwise."""
    values = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else values
    values = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if values.ndim != 1 or len(values) == 0 or not np.all(np.isfinite(values)):
        raise InputError(f"{name}: {values.tolist()}; allowed: a list of finite numbers, one a step")
    if not np.all(np.diff(values) < 0) or (name == "sigmas" and values[-1] < 0) or np.array_equal(values, [0.0]):
        raise InputError(f"{name}: {values.tolist()}; allowed: strictly descending values, not below 0")
    return values


def without_variance(model_output: Tensor, sample: Tensor) -> Tensor:
    """The prediction out of an output that holds a learned variance after it, in as many channels again."""
    if model_output.ndim == sample.ndim > 1 and model_output.shape[1] == 2 * sample.shape[1]:
        return model_output[:, : sample.shape[1]]
    return model_output
