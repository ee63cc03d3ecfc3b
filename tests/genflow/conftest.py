"""Models whose exact posterior mean is known, for the tests of everything that samples."""

import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path as FilePath
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from genflow.models import PathModel, from_function
from genflow.paths import Path
from genflow.prediction import Prediction
from genflow.solvers import Solver

MEAN, STD = 0.7, 0.5


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """Every test draws the same numbers in every run."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_pipelines() -> ModuleType:
    """``tests/genflow/tiny_pipelines.py`` and ``_more``: real diffusers pipelines with tiny random weights."""
    for name in ("tiny_pipelines", "tiny_pipelines_more"):
        module = f"genflow_{name}"
        if module not in sys.modules:
            spec = importlib.util.spec_from_file_location(module, FilePath(__file__).parent / f"{name}.py")
            sys.modules[module] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[module])
    return sys.modules["genflow_tiny_pipelines"]


@pytest.fixture
def gaussian_model() -> Callable[[Path], PathModel]:
    """``path -> model`` with the exact posterior mean of x0 for data normal(0.7, 0.5^2)."""

    def build(path: Path) -> PathModel:
        def posterior_mean(x: Tensor, t: float, **_: object) -> Tensor:
            alpha, sigma = path.alpha(t), path.sigma(t)
            gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
            return MEAN + gain * (x - alpha * MEAN)

        return from_function(posterior_mean, path, "sample")

    return build


@pytest.fixture
def gaussian_flow() -> Callable[[Path, Tensor, float, float], Tensor]:
    """``(path, x, t, t_end) -> x_end``: the exact solution of the probability-flow ODE for the same data."""

    def flow(path: Path, x: Tensor, t: float, t_end: float) -> Tensor:
        std = [math.hypot(path.alpha(u) * STD, path.sigma(u)) for u in (t, t_end)]
        return path.alpha(t_end) * MEAN + std[1] / std[0] * (x - path.alpha(t) * MEAN)

    return flow


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
