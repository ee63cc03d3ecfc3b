"""Euler's rule on a Gaussian path, which is DDIM (Song et al. 2021) on VP paths and plain Euler on rectified flows."""

import numpy as np
from torch import Tensor

from genflow.prediction import Prediction
from genflow.solvers.base import Solver, combine
from genflow.solvers.frames import FRAMES

__all__ = ["Euler"]


class Euler(Solver):
    """First order, one evaluation a step: ``x' = (sigma'/sigma) x + (alpha' - alpha sigma'/sigma) x0``.

    Written in x0 it is finite from pure noise (alpha = 0) to data (sigma = 0), where it gives x0 itself. The step is
    the same in every frame.
    """

    name = "euler"
    order = 1

    def _prepare(self) -> None:
        self.evaluations = self.times[:-1]
        self.step_of = np.arange(len(self.evaluations))
        self._weights = FRAMES["denoised"].weights(self.path, self.times[:-1], self.times[1:])

    def _step(self, x: Tensor, prediction: Prediction, i: int, noise: Tensor | None) -> Tensor:
        a, b = self._weights
        return combine(float(a[i]), x, float(b[i]), prediction.x0)
