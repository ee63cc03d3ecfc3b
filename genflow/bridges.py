"""Sampling between two densities along a stochastic interpolant: its ODE and its SDEs, in both directions."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genflow.errors import InputError, check_choice
from genflow.interpolants import InterpolantModel
from genflow.paths import working_dtype
from genflow.sampling import FiniteCheck, randn

__all__ = ["METHODS", "sample_interpolant"]

METHODS = ("euler", "heun")
"""Euler (Euler-Maruyama with noise) and Heun (stochastic Heun), one and two evaluations a step."""


@torch.no_grad()
def sample_interpolant(
    model: InterpolantModel,
    x: Tensor,
    times: np.ndarray | Sequence[float],
    *,
    epsilon: float | Callable[[float], float] = 0.0,
    relative: bool = False,
    method: str = "heun",
    generators: Sequence[torch.Generator] | None = None,
    callback: Callable[[int, float, Tensor], None] | None = None,
    **conditioning: Any,
) -> Tensor:
    """Carry states ``x`` ``(B, ...)`` from ``times[0]`` to ``times[-1]``.

    Rising times carry samples of the density at t = 0 towards that at t = 1 by ``dx = (b + epsilon s) dt +
    sqrt(2 epsilon) dW``; falling times carry them back by ``dx = (b - epsilon s) dt + sqrt(2 epsilon) dW``. With
    epsilon 0 both are the ODE ``dx = b dt``. The marginals are the same for every epsilon(t) >= 0.

    Args:
        model: the interpolant and its networks.
        x: the initial states.
        times: strictly rising or falling, within [0, 1]. Networks of the denoiser and of the flow leave the drift
            undetermined where gamma is 0 or rises as a square root: with these begin and end inside (0, 1), or take
            ``relative``. Euler asks at every time but the last, Heun at the last too.
        epsilon: the diffusion coefficient: a number, or a function of t. Above 0 it needs a denoiser or a score.
        relative: count epsilon in units of gamma(t), which keeps ``epsilon s`` finite at the ends.
        method: ``heun`` (default; weak order 2) or ``euler`` (order 1).
        generators: one for each sample, for the noise; None draws from torch's own generator.
        callback: called after every step as ``callback(step, t, x)``: steps count from 0, ``x`` is the state now
            reached at time ``t``.
        **conditioning: handed to the networks.

    Returns:
        The final states, float32 at least. Samples do not depend on one another.

    Raises:
        InputError: bad times, epsilon below 0 or without a score, before the first evaluation; or a drift that the
            networks leave undetermined.
        NonFiniteError: a network gave NaN or infinity; the message names the step.
    """
    check_choice("method", method, METHODS)
    times = _check_times(times)
    values = _check_epsilon(epsilon, times)
    if values.any() and not model.has_score:
        raise InputError("epsilon: above 0 without a denoiser or a score in the model; allowed: 0")
    if generators is not None and len(generators) != x.shape[0]:
        raise InputError(f"generators: got {len(generators)}; allowed: one for each of {x.shape[0]} samples")
    if not bool(torch.isfinite(x).all()):
        raise InputError("x: the initial state has NaN or infinite values")
    x = x.to(working_dtype(x))
    sign = 1.0 if times[-1] > times[0] else -1.0
    gammas = model.interpolant.gamma.value(times) if relative else np.ones_like(times)
    steps = len(times) - 1
    check = FiniteCheck(lambda n: f"the network gave NaN or infinity at step {n + 1} of {steps} (t={times[n]:.6g})")

    def drift(x: Tensor, n: int) -> Tensor:
        # towards the future the score pushes with +epsilon, towards the past with -epsilon
        return model.drift(x, float(times[n]), float(values[n]), relative, sign, **conditioning)

    for n in range(steps):
        step = float(times[n + 1] - times[n])
        variances = 2 * abs(step) * values[n : n + 2] * gammas[n : n + 2]
        variance = float(variances.mean() if method == "heun" else variances[0])
        first = drift(x, n)
        base = x
        if variance > 0:
            noise = torch.randn_like(x) if generators is None else randn(x.shape[1:], generators, x.dtype, x.device)
            base = x + math.sqrt(variance) * noise
        ahead = base + step * first
        x = ahead if method == "euler" else base + (step / 2) * (first + drift(ahead, n + 1))
        check.look(x)
        if callback is not None:
            callback(n, float(times[n + 1]), x)
    check.verdict()
    return x


def _check_times(times: np.ndarray | Sequence[float]) -> np.ndarray:
    times = np.asarray(times, dtype=np.float64)
    inside = times.ndim == 1 and len(times) > 1 and np.isfinite(times).all() and times.min() >= 0 and times.max() <= 1
    if not inside or not (np.all(np.diff(times) > 0) or np.all(np.diff(times) < 0)):
        raise InputError(f"times: {times.tolist()}; allowed: two or more in [0, 1], strictly rising or falling")
    return times


def _check_epsilon(epsilon: float | Callable[[float], float], times: np.ndarray) -> np.ndarray:
    values = [epsilon(float(t)) if callable(epsilon) else epsilon for t in times]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value >= 0):
            raise InputError(f"epsilon: {value!r}; allowed: finite numbers >= 0, or a function that gives them")
    return np.asarray(values, dtype=np.float64)
