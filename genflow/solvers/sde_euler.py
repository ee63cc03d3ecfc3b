"""Euler-Maruyama for the reverse-time SDEs of a Gaussian path."""

import numpy as np

from genflow.errors import check_choice
from genflow.solvers.sde_base import NoisyStep, SDESolver, refresh_weights

__all__ = ["SDEEuler"]


class SDEEuler(SDESolver, NoisyStep):
    """Weak order 1, one evaluation a step: ``x' = ODE step + h D s + sqrt(2 D h) z``, D and s at the step's start.

    Where D is infinite (``sbdm`` at pure noise) the step is its limit: x forgets its noise altogether and is
    ``alpha' x0 + sigma' z``.

    Args:
        diffusion, norm, last_step: see :class:`~genflow.solvers.sde_base.SDESolver`.
        frame: how the ODE part ``v`` is integrated: ``path`` (default), with x0 and noise held constant, which is
            Euler's step of this package (DDIM), or ``time``, ``h v`` as in SiT. On a linear path the two agree.
    """

    name = "sde-euler"
    order = 1
    option_names = (*SDESolver.option_names, "frame")

    def __init__(
        self, diffusion: str = "sigma", norm: float = 1.0, last_step: str | None = "tweedie", frame: str = "path"
    ) -> None:
        super().__init__(diffusion, norm, last_step)
        self.frame = check_choice("frame", frame, ("path", "time"))

    def _weights(self, t: np.ndarray, t_next: np.ndarray) -> tuple[np.ndarray, ...]:
        path, h = self.path, t - t_next
        alpha, sigma = path.alpha(t), path.sigma(t)
        ones = np.ones_like(t)
        a, b, _ = refresh_weights(path, t, t_next, ones)
        if self.frame == "time":
            rate = path.sigma_dot(t) / sigma
            a, b = 1 - h * rate, -h * (path.alpha_dot(t) - rate * alpha)
        turned = h * self.coefficient.rate(path, t)  # D s h = -turned (x - alpha x0)
        limit = np.isinf(turned)
        turned[limit] = 0.0
        drift_a, drift_b, c = a - turned, np.where(turned == 0, b, b + turned * alpha), sigma * np.sqrt(2 * turned)
        if limit.any():
            fresh = refresh_weights(path, t, t_next, 0 * ones)
            drift_a, drift_b, c = (np.where(limit, f, w) for f, w in zip(fresh, (drift_a, drift_b, c), strict=True))
        if self.last_step is not None:
            last = {"mean": (drift_a[-1], drift_b[-1]), "tweedie": (0.0, 1.0), "euler": (a[-1], b[-1])}
            drift_a[-1], drift_b[-1] = last[self.last_step]
            c[-1] = 0.0
        return drift_a, drift_b, c
