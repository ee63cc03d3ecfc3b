"""The exact mean and variance that a solver gives on Gaussian data, without drawing a sample."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from genflow.paths import Path
from genflow.prediction import Prediction
from genflow.solvers import Solver

MEAN, STD = 0.7, 0.5  # as in genflow/conftest.py


@pytest.fixture
def moment_errors() -> Callable[[Solver, Path, np.ndarray], tuple[float, float]]:
    """``(solver, path, times) -> errors of mean and variance at times[-1]``, for data normal(0.7, 0.5^2).

    With the exact posterior mean a run is affine in its first state and in each noise. So one run of a batch holds
    it all: sample 0 starts at 0 and sees no noise, sample 1 starts at 1, sample 2 + k sees noise 1 at draw k alone.
    """

    def measure(solver: Solver, path: Path, times: np.ndarray) -> tuple[float, float]:
        solver.start(path, times)
        draws = [i for i in range(len(solver.evaluations)) if solver.draws(i)]
        x = torch.zeros(2 + len(draws), 1, dtype=torch.float64)
        x[1] = 1
        for i, t in enumerate(solver.evaluations.tolist()):
            alpha, sigma = path.alpha(t), path.sigma(t)
            gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
            prediction = Prediction(MEAN + gain * (x - alpha * MEAN), "sample", x, path, t)
            noise = None
            if i in draws:
                noise = torch.zeros_like(x)
                noise[2 + draws.index(i)] = 1
            x = solver.step(x, prediction, i, noise)
        final = x[:, 0].numpy()
        start, end = ((path.alpha(t), (path.alpha(t) * STD) ** 2 + path.sigma(t) ** 2) for t in times[[0, -1]].tolist())
        slope = final[1] - final[0]
        mean = final[0] + slope * start[0] * MEAN
        variance = slope**2 * start[1] + np.sum((final[2:] - final[0]) ** 2)
        return mean - end[0] * MEAN, variance - end[1]

    return measure
