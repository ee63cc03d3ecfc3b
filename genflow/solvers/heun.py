"""Heun's second-order rule: an Euler step, then the same step again with the mean of the slopes at its two ends."""

import numpy as np
from torch import Tensor

from genflow.errors import InputError, check_choice
from genflow.prediction import Prediction
from genflow.solvers.base import Solver, combine
from genflow.solvers.frames import FRAMES, choose_frame, near_noise

__all__ = ["Heun"]


class Heun(Solver):
    """Second order, two evaluations a step; a step that ends at ``t = 0`` is an Euler step and takes one.

    In the epsilon frame on an EDM path this is algorithm 1 of Karras et al. (2022) without churn; in the velocity
    frame on a linear path it is Heun on the rectified flow.

    Args:
        frame: ``velocity``, ``epsilon`` or ``denoised`` (see :mod:`genflow.solvers.frames`); ``auto`` takes epsilon
            on VP and EDM paths and velocity on others. A step from pure noise, or nearly (alpha below
            sigma / 1000), where the epsilon frame's clock has no end, is made in the velocity frame.
    """

    name = "heun"
    order = 2
    option_names = ("frame",)

    def __init__(self, frame: str = "auto") -> None:
        self.frame = check_choice("frame", frame, ("auto", *FRAMES))

    def _prepare(self) -> None:
        name = choose_frame(self.frame, self.path).name
        start, end = self.times[:-1], self.times[1:]
        names = [name] * len(start)
        if name == "epsilon" and near_noise(self.path, float(start[0])):
            names[0] = "velocity"
        single = end[-1] == 0
        if single:
            names[-1] = "denoised"  # finite at sigma = 0, and the result is x0 itself
        self._kinds = [FRAMES[name].kind for name in names]
        by_frame = {name: FRAMES[name].weights(self.path, start, end) for name in set(names)}
        self._weights = [tuple(float(w[n]) for w in by_frame[name]) for n, name in enumerate(names)]
        count = 2 * len(start) - single
        self.evaluations = np.stack([start, end], axis=1).ravel()[:count]
        self.step_of = np.repeat(np.arange(len(start)), 2)[:count]
        self._begun: tuple[int, Tensor, Tensor] | None = None  # the step, its first state and its first slope

    def _step(self, x: Tensor, prediction: Prediction, i: int, noise: Tensor | None) -> Tensor:
        n, correcting = divmod(i, 2)
        a, b = self._weights[n]
        slope = prediction.to(self._kinds[n])
        if not correcting:
            self._begun = (n, x, slope)
            return combine(a, x, b, slope)
        if self._begun is None or self._begun[0] != n:
            raise InputError(f"step: evaluation {i} ends a step of Heun that was not begun; begin at an even one")
        _, x, first = self._begun
        self._begun = None
        return combine(a, x, b / 2, first + slope)
