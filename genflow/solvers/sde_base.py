"""What the solvers of reverse-time SDEs share: options, and steps of the form ``x' = a x + b x0 + c z``."""

import numpy as np
from torch import Tensor

from genflow.errors import InputError, nearest
from genflow.paths import Path
from genflow.prediction import Prediction
from genflow.solvers.base import Solver, combine
from genflow.solvers.diffusion import Diffusion
from genflow.solvers.frames import FRAMES

__all__ = ["LAST_STEPS", "NoisyStep", "SDESolver", "refresh_weights"]

LAST_STEPS = ("mean", "tweedie", "euler")
"""What the last step may be, besides None; see :class:`SDESolver`."""


def refresh_weights(path: Path, t: np.ndarray, t_next: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, ...]:
    """``(a, b, c)`` of ``x' = alpha' x0 + sigma' (kept eps + sqrt(1 - kept^2) z)``, eps read off x and x0.

    With ``kept`` 1 this is Euler's step, with the same bits.
    """
    a, b = FRAMES["denoised"].weights(path, t, t_next)
    a_kept = kept * a
    b = np.where(kept == 1, b, path.alpha(t_next) - a_kept * path.alpha(t))
    return a_kept, b, path.sigma(t_next) * np.sqrt((1 - kept) * (1 + kept))


class NoisyStep(Solver):
    """A rule with one evaluation a step, ``x' = a x + b x0 + c z``; a subclass gives the weights of every step."""

    stochastic = True

    def _prepare(self) -> None:
        self.evaluations = self.times[:-1]
        self.step_of = np.arange(len(self.evaluations))
        weights = self._weights(self.times[:-1], self.times[1:])
        self._abc = list(zip(*(w.tolist() for w in weights), strict=True))

    def _weights(self, t: np.ndarray, t_next: np.ndarray) -> tuple[np.ndarray, ...]:
        """``(a, b, c)``, each one number a step."""
        raise NotImplementedError

    def draws(self, i: int) -> bool:
        """See :meth:`Solver.draws`."""
        return self._abc[i][2] > 0

    def _step(self, x: Tensor, prediction: Prediction, i: int, noise: Tensor | None) -> Tensor:
        a, b, c = self._abc[i]
        result = combine(a, x, b, prediction.x0)
        return result.add_(noise.to(result.dtype), alpha=c) if c > 0 else result


class SDESolver(Solver):
    """The options of the SDE solvers.

    Args:
        diffusion: the coefficient D(t), one of :data:`~genflow.solvers.diffusion.DIFFUSIONS`; ``sigma`` by default,
            as in SiT's command line (Ma et al. 2024).
        norm: its factor c; 1 in SiT. With 0 the rule is that of the ODE, with the same bits.
        last_step: the last step of the run, which draws no noise unless it is None: ``tweedie`` (default) gives the
            mean of the clean data, ``mean`` (SiT's default) the SDE's step without its noise, ``euler`` a step of
            the ODE, None an ordinary step of the SDE.
    """

    stochastic = True
    option_names = ("diffusion", "norm", "last_step")

    def __init__(self, diffusion: str = "sigma", norm: float = 1.0, last_step: str | None = "tweedie") -> None:
        self.coefficient = Diffusion(diffusion, norm)
        if last_step is not None and last_step not in LAST_STEPS:
            hint = nearest(str(last_step), LAST_STEPS)
            raise InputError(f"last_step: {last_step!r} is not known{hint}; allowed: {', '.join(LAST_STEPS)}, or None")
        self.last_step = last_step
        self.diffusion, self.norm = self.coefficient.name, self.coefficient.norm
