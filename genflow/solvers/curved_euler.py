"""Curved Euler: predict data and noise, and interpolate anew at the next time; with or without fresh noise."""

import numpy as np

from genflow.errors import InputError, check_number
from genflow.solvers.euler import Euler
from genflow.solvers.refresh import RefreshStep, per_step

__all__ = ["CurvedEuler", "StochasticCurvedEuler"]


class CurvedEuler(Euler):
    """lqiang67/rectified-flow's curved Euler: ``x' = alpha' x0 + sigma' eps``, along the path's own curve.

    Euler's step in this package is this one on every path; the name is kept for those who look for it. (The other
    rule of that name, ``x' = x + h v``, differs on curved paths: see ``frame="time"`` of
    :class:`~genflow.solvers.SDEEuler`.)
    """

    name = "curved-euler"


class StochasticCurvedEuler(RefreshStep):
    """Curved Euler with a part of the predicted noise replaced: ``k = 1 - replaced``.

    Args:
        replaced: ``ddpm`` (default) keeps ``k = level(t') / level(t)``, DDPM's ancestral step; or a number from 0
            (Euler) to 1, for a step of ``reference_step`` (0.5 for every step in lqiang67/rectified-flow).
        reference_step: see :class:`~genflow.solvers.NoiseRefresh`.
    """

    name = "stochastic-curved-euler"
    order = 1
    option_names = ("replaced", "reference_step")

    def __init__(self, replaced: float | str = "ddpm", reference_step: float | None = 0.02) -> None:
        if isinstance(replaced, str):
            if replaced != "ddpm":
                raise InputError(f"replaced: {replaced!r} is not known; allowed: ddpm, or a number from 0 to 1")
            self.replaced: float | str = replaced
        else:
            self.replaced = float(check_number("replaced", replaced, at_least=0, at_most=1))
        self.reference_step = (
            None if reference_step is None else float(check_number("reference_step", reference_step, above=0))
        )

    def _kept(self, t: np.ndarray, t_next: np.ndarray) -> np.ndarray:
        if isinstance(self.replaced, str):
            return self.path.noise_level(t_next) / self.path.noise_level(t)
        return per_step(1 - self.replaced, t, t_next, self.reference_step)
