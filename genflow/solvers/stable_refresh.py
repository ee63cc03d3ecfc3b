"""The "stable" SDE sampler of rectified flow: a share of the noise, in proportion to the step, is drawn again."""

import numpy as np

from genflow.errors import check_number
from genflow.solvers.refresh import RefreshStep

__all__ = ["StableRefresh"]


class StableRefresh(RefreshStep):
    """Of the noise of deviation sigma', ``d = min(h scale sigma'^decay, sigma')`` is taken away and as much is added.

    That is ``k = 1 - d / sigma'`` (lqiang67/rectified-flow's SDE sampler: fresh noise of deviation
    ``sqrt(sigma'^2 - (sigma' - d)^2)``). For small steps h it is the SDE with ``D = scale sigma^(1 + decay)``.

    Args:
        scale: 1 by default; 0 is Euler.
        decay: the power of sigma'; 1 by default, 0 gives the coefficient D = scale sigma.
    """

    name = "stable-refresh"
    order = 1
    option_names = ("scale", "decay")

    def __init__(self, scale: float = 1.0, decay: float = 1.0) -> None:
        self.scale = float(check_number("scale", scale, at_least=0))
        self.decay = float(check_number("decay", decay, at_least=0))

    def _kept(self, t: np.ndarray, t_next: np.ndarray) -> np.ndarray:
        sigma = self.path.sigma(t_next)
        taken = np.minimum((t - t_next) * self.scale * sigma**self.decay, sigma)
        return 1 - np.divide(taken, sigma, out=np.zeros_like(taken), where=sigma > 0)
