"""Where to stop between noise and data: the spacings that published samplers use, as plain float64 arrays.

Every function gives ``steps`` values in descending order, without the end point of the trajectory.
"""

import numpy as np
from scipy.special import betaincinv

from genflow.errors import InputError, check_choice, check_number

__all__ = ["beta_levels", "exponential_levels", "karras_levels", "shift_sigmas", "spaced_timesteps", "stretch_sigmas"]


def karras_levels(low: float, high: float, steps: int, rho: float = 7.0) -> np.ndarray:
    """``(high^(1/rho) + i/(n-1) (low^(1/rho) - high^(1/rho)))^rho`` (Karras et al. 2022, eq. 5; their rho is 7)."""
    ramp = np.linspace(0, 1, steps)
    levels = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return _exact_ends(levels, low, high)


def exponential_levels(low: float, high: float, steps: int) -> np.ndarray:
    """Equal steps of the logarithm."""
    return _exact_ends(np.exp(np.linspace(np.log(high), np.log(low), steps)), low, high)


def beta_levels(low: float, high: float, steps: int, alpha: float = 0.6, beta: float = 0.6) -> np.ndarray:
    """Quantiles of a Beta(alpha, beta) law stretched over [low, high] (Lee et al. 2024, arXiv 2407.12173)."""
    return low + (high - low) * betaincinv(alpha, beta, 1 - np.linspace(0, 1, steps))


def _exact_ends(levels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Undo the rounding of powers and logarithms at both ends: a first level above the path's own has no time."""
    levels[0] = high
    if len(levels) > 1:
        levels[-1] = low
    return levels


def spaced_timesteps(spacing: str, steps: int, count: int, offset: int = 0) -> np.ndarray:
    """Timesteps out of ``0 .. count - 1`` by one of three rules (Lin et al. 2023, table 2).

    ``leading``: multiples of ``count // steps``, plus ``offset``. ``trailing``: back from ``count - 1`` in equal steps,
    rounded. ``linspace``: from ``count - 1`` to 0 in equal steps, not rounded. The first two need steps <= count.
    """
    check_choice("timestep_spacing", spacing, ("leading", "linspace", "trailing"))
    if spacing == "linspace":
        return np.linspace(count - 1, 0, steps)
    check_number("num_inference_steps", steps, at_most=count, integer=True)
    if spacing == "leading":
        stride = count // steps
        # with very many steps the usual offset of 1 would leave the table
        offset = min(
            int(check_number("steps_offset", offset, at_least=0, integer=True)), count - 1 - (steps - 1) * stride
        )
        return np.arange(steps - 1, -1, -1, dtype=np.float64) * stride + offset
    return np.round(count - np.arange(steps) * (count / steps)) - 1


def shift_sigmas(sigmas: np.ndarray, shift: float) -> np.ndarray:
    """``shift s / (1 + (shift - 1) s)``: move a flow's sigmas in [0, 1] towards noise (Esser et al. 2024, eq. 23)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def stretch_sigmas(sigmas: np.ndarray, terminal: float) -> np.ndarray:
    """Scale ``1 - s`` so that the last sigma becomes ``terminal`` (LTX-Video); a lone sigma of 1 stays."""
    check_number("shift_terminal", terminal, above=0, below=1)
    rest = 1 - sigmas
    if rest[-1] <= 0:
        return sigmas
    stretched = 1 - rest * ((1 - terminal) / rest[-1])
    if not np.all(stretched > 0):
        raise InputError(f"shift_terminal: {terminal!r} leaves no descending schedule for sigmas {sigmas.tolist()}")
    return stretched
