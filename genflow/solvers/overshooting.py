"""Overshooting: an ODE step beyond the next time, then back to it with fresh noise."""

import numpy as np

from genflow.errors import check_number
from genflow.solvers.refresh import RefreshStep

__all__ = ["Overshooting"]


class Overshooting(RefreshStep):
    """Euler to ``t_o = max(t' - overshoot h t', 0)``, then scale by ``alpha'/alpha_o`` and add the noise missing at t'.

    lqiang67/rectified-flow's sampler (its time runs the other way). Scaling keeps the noise level of ``t_o``, so
    that ``k = level(t_o) / level(t')`` of the noise at t' is old.

    Args:
        overshoot: how far to go on, as a share of the step h weighed by t'; 1 by default, 0 is Euler.
    """

    name = "overshooting"
    order = 1
    option_names = ("overshoot",)

    def __init__(self, overshoot: float = 1.0) -> None:
        self.overshoot = float(check_number("overshoot", overshoot, at_least=0))

    def _kept(self, t: np.ndarray, t_next: np.ndarray) -> np.ndarray:
        beyond = np.maximum(t_next - self.overshoot * (t - t_next) * t_next, 0.0)
        level = self.path.noise_level(t_next)
        return np.divide(self.path.noise_level(beyond), level, out=np.ones_like(level), where=level > 0)
