"""Noise refresh: Euler's step, with a part of the predicted noise replaced by fresh noise."""

import numpy as np

from genflow.errors import check_number
from genflow.solvers.sde_base import NoisyStep, refresh_weights

__all__ = ["NoiseRefresh", "RefreshStep", "per_step"]


def per_step(kept: float, t: np.ndarray, t_next: np.ndarray, reference_step: float | None) -> np.ndarray:
    """``kept`` for every step; with a reference, to the power of the step's size over it, so that steps add up."""
    if reference_step is None:
        return np.full_like(t, kept)
    return kept ** ((t - t_next) / reference_step)


class RefreshStep(NoisyStep):
    """``x' = alpha' x0 + sigma' (k eps + sqrt(1 - k^2) z)``: a subclass says how much noise, k, a step keeps."""

    def _kept(self, t: np.ndarray, t_next: np.ndarray) -> np.ndarray:
        """k of every step, in [0, 1]."""
        raise NotImplementedError

    def _weights(self, t: np.ndarray, t_next: np.ndarray) -> tuple[np.ndarray, ...]:
        return refresh_weights(self.path, t, t_next, self._kept(t, t_next))


class NoiseRefresh(RefreshStep):
    """The "noise refresh" sampler of lqiang67/rectified-flow: ``k = sqrt(1 - replaced^2)``.

    There every step replaces the same part, whatever its size; then more steps mean more noise in all, and because a
    predicted eps varies less than eps does, a bias stays however many steps are taken. Here the part refers to a step
    of ``reference_step`` and is compounded, so that the bias vanishes with the step.

    Args:
        replaced: share of fresh noise, as a deviation, from 0 (Euler) to 1; 0.5 there.
        reference_step: the step in t that ``replaced`` refers to; 0.02 by default, one of 50 steps. None: every
            step, as published.
    """

    name = "refresh"
    order = 1
    option_names = ("replaced", "reference_step")

    def __init__(self, replaced: float = 0.5, reference_step: float | None = 0.02) -> None:
        self.replaced = float(check_number("replaced", replaced, at_least=0, at_most=1))
        self.reference_step = (
            None if reference_step is None else float(check_number("reference_step", reference_step, above=0))
        )

    def _kept(self, t: np.ndarray, t_next: np.ndarray) -> np.ndarray:
        return per_step(np.sqrt(1 - self.replaced**2), t, t_next, self.reference_step)
