"""Sampling with every step kept: the trajectories of the probability-flow ODE, for measures of the flow itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genflow.errors import InputError
from genflow.metrics import Straightness, measure_straightness
from genflow.models import PathModel
from genflow.prediction import Prediction
from genflow.sampling import sample
from genflow.solvers import FRAMES, Solver, create_solver

__all__ = ["Trajectory", "sample_trajectory"]


@dataclass(frozen=True)
class Trajectory:
    """Where samples went, step by step, in the velocity frame (:mod:`genflow.solvers.frames`).

    There every Gaussian path is the linear one: ``z = x / (alpha + sigma) = (1 - u) x0 + u eps`` and
    ``dz/du = eps - x0``, so that straightness means the same on all of them.

    Attributes:
        x: the final state, as :func:`genflow.sampling.sample` gives it, ``(B, ...)``.
        times: the path's times, float64 ``(N + 1,)``.
        clocks: u at these times.
        states: z there, ``(N + 1, B, ...)``.
        velocities: the model's dz/du there; the last one is held to the end of the last step.
        evaluations: how often the network was asked.
    """

    x: Tensor
    times: np.ndarray
    clocks: np.ndarray
    states: Tensor
    velocities: Tensor
    evaluations: int

    def straightness(self) -> Straightness:
        """See :func:`genflow.metrics.measure_straightness`; fine steps measure the flow, coarse ones the sampler."""
        return measure_straightness(self.clocks, self.states, self.velocities)


class _Recorder(Solver):
    """A solver that passes everything to another and keeps the first evaluation of each step."""

    name = "recorder"

    def __init__(self, solver: Solver) -> None:
        self.solver = solver

    def _prepare(self) -> None:
        self.solver.start(self.path, self.times)
        self.evaluations, self.step_of = self.solver.evaluations, self.solver.step_of
        self.states: list[Tensor] = []
        self.velocities: list[Tensor] = []
        self._scales = FRAMES["velocity"].scale(self.path, self.times)

    def _step(self, x: Tensor, prediction: Prediction, i: int, noise: Tensor | None) -> Tensor:
        step = int(self.step_of[i])
        if step == len(self.states):
            self.states.append(x / float(self._scales[step]))
            self.velocities.append(prediction.flow_prediction)
        return self.solver.step(x, prediction, i, noise)


def sample_trajectory(
    model: PathModel, x: Tensor, times: np.ndarray | Sequence[float], solver: str | Solver = "heun", **options: Any
) -> Trajectory:
    """:func:`genflow.sampling.sample` with every step kept: all of N + 1 states and velocities stay in memory.

    Args:
        model, x, times: as there.
        solver: a deterministic solver or its name.
        **options: its further arguments (guidance, callback, conditioning, ...).

    Raises:
        InputError: as there, and for a stochastic solver.
    """
    solver = create_solver(solver) if isinstance(solver, str) else solver
    if solver.stochastic:
        raise InputError(f"solver: {solver.name!r} adds noise; allowed: a deterministic solver")
    recorder = _Recorder(solver)
    x = sample(model, x, times, recorder, **options)
    scale = float(FRAMES["velocity"].scale(model.path, recorder.times[-1]))
    return Trajectory(
        x=x,
        times=recorder.times,
        clocks=FRAMES["velocity"].clock(model.path, recorder.times),
        states=torch.stack([*recorder.states, x / scale]),
        velocities=torch.stack([*recorder.velocities, recorder.velocities[-1]]),
        evaluations=len(recorder.evaluations),
    )
