"""Runge-Kutta steps in a frame: the classical rule as a solver, and what a multistep rule may start with."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from genflow.errors import InputError, check_choice
from genflow.paths import Path
from genflow.prediction import Prediction
from genflow.solvers.base import Solver
from genflow.solvers.frames import FRAMES, Frame, choose_frame, near_noise

__all__ = ["HEUN2", "HEUN3", "RK4", "RungeKutta4", "Stage", "Tableau", "advance_stage", "stages"]


@dataclass(frozen=True)
class Tableau:
    """An explicit rule: stage j asks at ``nodes[j]`` of the step; row j of ``rows`` leads to stage j + 1 or the end."""

    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]


HEUN2 = Tableau((0, 1), ((1,), (1 / 2, 1 / 2)))
HEUN3 = Tableau((0, 1 / 3, 2 / 3), ((1 / 3,), (0, 2 / 3), (1 / 4, 0, 3 / 4)))
"""Heun's third-order rule, which does not ask at the step's end."""
RK4 = Tableau((0, 1 / 2, 1 / 2, 1), ((1 / 2,), (0, 1 / 2), (0, 0, 1), (1 / 6, 1 / 3, 1 / 3, 1 / 6)))


class Stage(NamedTuple):
    """``x' = a x + sum_l weights[l] y_l``, with x the state at which the step began and y_l its slopes so far."""

    kind: str
    a: float
    weights: tuple[float, ...]


def stages(tableau: Tableau, frame: Frame, path: Path, t: float, t_next: float) -> tuple[np.ndarray, list[Stage]]:
    """The times at which a step from ``t`` to ``t_next`` asks the network, and its stages, scalars in float64."""
    u, u_next = (float(frame.clock(path, np.array(s))) for s in (t, t_next))
    inner = [path.time(frame.level(u + node * (u_next - u))) for node in tableau.nodes]
    times = [{0: t, 1: t_next}.get(node, float(time)) for node, time in zip(tableau.nodes, inner, strict=True)]
    scales = [float(frame.scale(path, np.array(s))) for s in [*times, t_next]]
    result = []
    for row, scale in zip(tableau.rows, scales[1:], strict=True):
        result.append(Stage(frame.kind, scale / scales[0], tuple(scale * (u_next - u) * weight for weight in row)))
    return np.array(times), result


def advance_stage(stage: Stage, x: Tensor, slopes: list[Tensor]) -> Tensor:
    """The state that ``stage`` leads to."""
    result = x * stage.a
    for weight, slope in zip(stage.weights, slopes, strict=True):
        if weight:
            result.add_(slope, alpha=weight)
    return result


class RungeKutta4(Solver):
    """Fourth order, four evaluations a step (the classical rule of Runge and Kutta).

    A step that ends at ``t = 0``, where a network cannot always be asked, is made by Heun's third-order rule, which
    takes three evaluations before the end; one such step does not cost the order. N steps to 0 are 4 N - 1
    evaluations.

    Args:
        frame: ``velocity``, ``epsilon`` or ``denoised`` (see :mod:`genflow.solvers.frames`); ``auto`` takes epsilon
            on VP and EDM paths and velocity on others. Where the frame's clock has no end (epsilon at pure noise or
            nearly, denoised at t = 0) the step is made in the velocity frame.
    """

    name = "rk4"
    order = 4
    option_names = ("frame",)

    def __init__(self, frame: str = "auto") -> None:
        self.frame = check_choice("frame", frame, ("auto", *FRAMES))

    def _prepare(self) -> None:
        chosen = choose_frame(self.frame, self.path)
        finite = np.isfinite(chosen.clock(self.path, self.times))
        finite[0] &= chosen.name != "epsilon" or not near_noise(self.path, float(self.times[0]))
        evaluations, self._stages, owners = [], [], []
        for n, (t, t_next) in enumerate(zip(self.times[:-1].tolist(), self.times[1:].tolist(), strict=True)):
            frame = chosen if finite[n] and finite[n + 1] else FRAMES["velocity"]
            times, plan = stages(RK4 if t_next > 0 else HEUN3, frame, self.path, t, t_next)
            evaluations.extend(times)
            self._stages.extend((j, stage) for j, stage in enumerate(plan))
            owners.extend([n] * len(plan))
        self.evaluations, self.step_of = np.array(evaluations), np.array(owners)
        self._expected, self._slopes = 0, []

    def _step(self, x: Tensor, prediction: Prediction, i: int, noise: Tensor | None) -> Tensor:
        j, stage = self._stages[i]
        if j == 0:
            self._x, self._slopes = x, []
        elif i != self._expected:
            raise InputError(f"step: evaluation {i} goes on with a Runge-Kutta step that was not begun")
        self._expected = i + 1
        self._slopes.append(prediction.to(stage.kind))
        return advance_stage(stage, self._x, self._slopes)
