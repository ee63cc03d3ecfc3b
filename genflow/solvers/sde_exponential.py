"""The reverse-time SDEs of a Gaussian path, integrated exactly for a constant prediction of the data."""

import numpy as np

from genflow.solvers.diffusion import Diffusion
from genflow.solvers.sde_base import NoisyStep, refresh_weights

__all__ = ["SDEExponential"]


class SDEExponential(NoisyStep):
    """Weak order 1, one evaluation a step, stable for any D and step.

    With x0 held constant the noise ``(x - alpha x0) / sigma`` obeys an Ornstein-Uhlenbeck process of unit variance,
    so that ``x' = alpha' x0 + sigma' (k eps + sqrt(1 - k^2) z)`` with ``k = exp(-integral of D / sigma^2)``. No D is
    too large for it: where Euler-Maruyama overshoots, this rule replaces all of the noise and stays within bounds. A
    step to clean data gives x0 itself. With ``sbdm`` and norm 1 it is the ancestral step of DDPM (DDIM with eta = 1,
    Song et al. 2021) and the first-order SDE-DPM-Solver++.

    The price is a narrower law on very smooth data, whose predicted noise varies little (normal data of deviation 0.5
    on a linear path, 50 steps, D = sigma: a variance 0.026 too low; Euler-Maruyama: 0.004). On images it is the other
    way round, see :class:`~genflow.schedulers.StochasticInterpolantScheduler`.

    Args:
        diffusion, norm: see :class:`~genflow.solvers.sde_base.SDESolver`.
    """

    name = "sde-exponential"
    order = 1
    option_names = ("diffusion", "norm")

    def __init__(self, diffusion: str = "sigma", norm: float = 1.0) -> None:
        self.coefficient = Diffusion(diffusion, norm)
        self.diffusion, self.norm = self.coefficient.name, self.coefficient.norm

    def _weights(self, t: np.ndarray, t_next: np.ndarray) -> tuple[np.ndarray, ...]:
        return refresh_weights(self.path, t, t_next, np.exp(-self.coefficient.turnover(self.path, t, t_next)))
