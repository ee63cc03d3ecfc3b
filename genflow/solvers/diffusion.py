"""How much noise a reverse-time SDE adds: the diffusion coefficients D(t) of SiT, on every Gaussian path.

In this package's time (data at 0, noise at 1, sampling runs down) the probability-flow ODE ``dx = v dt`` belongs to a
family of SDEs with the same marginals, one for every ``D(t) >= 0``, run from 1 to 0:

    dx = (v - D s) dt + sqrt(2 D) dw        (s the score, dt < 0, w a Brownian motion of reverse time)

With ``s = -eps / sigma`` everything a solver needs is the *rate* ``D / sigma^2``: it turns the noise in x over,
``D s dt = -rate (x - alpha x0) dt``. The rate is formed in closed form, so that nothing is divided by 0 on the way.

| name                  | D(t) of Ma et al. 2024 (arXiv 2401.08740), their t     | D(t) here              |
|-----------------------|--------------------------------------------------------|------------------------|
| constant              | c                                                      | c                      |
| sbdm                  | c (alpha'/alpha sigma^2 - sigma sigma')                | c sigma^2 (log level)' |
| sigma                 | c sigma                                                | c sigma                |
| linear                | c (1 - t)                                              | c t                    |
| decreasing            | (c cos(pi t) + 1)^2 / 4                                | (1 - c cos(pi t))^2 / 4 |
| increasing-decreasing | c sin^2(pi t)                                          | c sin^2(pi t)          |

(``level = sigma / alpha``; their coefficient w is 2 D.)
"""

from dataclasses import dataclass

import numpy as np

from genflow.errors import check_choice, check_number
from genflow.interpolants import PathGamma
from genflow.paths import Path

__all__ = ["DIFFUSIONS", "Diffusion"]

DIFFUSIONS = ("constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing")
"""The names of the table above."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


@dataclass(frozen=True)
class Diffusion:
    """One row of the table.

    Attributes:
        name: one of :data:`DIFFUSIONS`.
        norm: the factor c, at least 0; with 0, D is 0 in all rows but ``decreasing`` (where it is 1/4).
    """

    name: str = "sigma"
    norm: float = 1.0

    def __post_init__(self) -> None:
        check_choice("diffusion", self.name, DIFFUSIONS)
        object.__setattr__(self, "norm", float(check_number("norm", self.norm, at_least=0)))

    @property
    def is_zero(self) -> bool:
        """Whether D is 0 throughout, so that the SDE is the ODE."""
        return self.norm == 0 and self.name != "decreasing"

    def _direct(self, path: Path, t: np.ndarray) -> np.ndarray:
        c = self.norm
        if self.name == "constant":
            return np.full_like(t, c)
        if self.name == "sigma":
            return c * path.sigma(t)
        if self.name == "linear":
            return c * t
        if self.name == "decreasing":
            return (1 - c * np.cos(np.pi * t)) ** 2 / 4
        return c * np.sin(np.pi * t) ** 2

    def value(self, path: Path, t: np.ndarray) -> np.ndarray:
        """D(t), float64 in ``t``'s shape; ``sbdm`` is infinite where alpha is 0."""
        t = np.asarray(t, dtype=np.float64)
        if self.is_zero:
            return np.zeros_like(t)
        if self.name != "sbdm":
            return self._direct(path, t)
        with np.errstate(divide="ignore"):
            return self.norm * (PathGamma(path).product(t) - path.alpha_dot(t) / path.alpha(t) * path.sigma(t) ** 2)

    def rate(self, path: Path, t: np.ndarray) -> np.ndarray:
        """``D / sigma^2`` at times ``t > 0``, float64; ``sbdm`` is infinite where alpha is 0."""
        if self.is_zero:
            return np.zeros_like(t)
        sigma = path.sigma(t)
        if self.name == "sigma":
            return self.norm / sigma
        if self.name != "sbdm":
            return self._direct(path, t) / sigma**2
        with np.errstate(divide="ignore"):
            return self.norm * (path.sigma_dot(t) / sigma - path.alpha_dot(t) / path.alpha(t))

    def turnover(self, path: Path, t: np.ndarray, t_next: np.ndarray) -> np.ndarray:
        """The integral of the rate from ``t_next`` up to ``t``, float64; inf where a step ends in clean data.

        In closed form for ``sbdm``; otherwise by 16 Gauss-Legendre nodes in log t, each step apart.
        """
        if self.is_zero:
            return np.zeros_like(t)
        with np.errstate(divide="ignore"):
            if self.name == "sbdm":
                return self.norm * (np.log(path.noise_level(t)) - np.log(path.noise_level(t_next)))
            inside = np.where(t_next > 0, t_next, t / 2)
            half = np.log(t / inside) / 2
            nodes = inside[:, None] * np.exp(half[:, None] * (1 + _NODES))
            integral = half * ((self.rate(path, nodes) * nodes) @ _WEIGHTS)
        return np.where(t_next > 0, integral, np.inf)
