"""Order of convergence against the exact flow of Gaussian data, on every path and both grids."""

import numpy as np
import pytest
import torch

from genflow.paths import EDMPath, LinearPath, Path, TrigonometricPath, VPPath
from genflow.sampling import sample, time_grid
from genflow.solvers import Heun

PATHS = [
    LinearPath(),
    LinearPath(3.0),
    VPPath.linear(),
    VPPath.cosine(),
    EDMPath(10.0),
    TrigonometricPath(),
]
COUNTS = (50, 100, 200, 400)


def grid(path: Path, steps: int, spacing: str) -> np.ndarray:
    """A grid that stops short of t = 0, where sigma's square root on a VP path hides the order."""
    if spacing == "uniform":
        return time_grid(path, steps, end=0.1)
    return time_grid(path, steps + 1, "karras", noise_min=0.05)[:-1]


@pytest.mark.parametrize("spacing", ["uniform", "karras"])
@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize(
    ("solver", "order"), [("euler", 1), (Heun("velocity"), 2), (Heun("epsilon"), 2), (Heun("denoised"), 2)]
)
def test_order(gaussian_model, gaussian_flow, path: Path, solver: object, order: int, spacing: str) -> None:
    x = path.prior_std * torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    errors = []
    for steps in COUNTS:
        times = grid(path, steps, spacing)
        exact = gaussian_flow(path, x, times[0], times[-1])
        errors.append((sample(gaussian_model(path), x, times, solver) - exact).pow(2).mean().sqrt().item())
    slope = -np.polyfit(np.log(COUNTS), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.15), errors


@pytest.mark.parametrize("path", [LinearPath(), EDMPath(10.0), TrigonometricPath()], ids=repr)
def test_order_down_to_clean_data(gaussian_model, gaussian_flow, path: Path) -> None:
    """The last step of Heun is Euler; where noise falls linearly in t, one such step does not cost an order."""
    x = path.prior_std * torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for solver, order in (("euler", 1), ("heun", 2)):
        errors = []
        for steps in COUNTS:
            result = sample(gaussian_model(path), x, time_grid(path, steps), solver)
            errors.append((result - gaussian_flow(path, x, 1.0, 0.0)).pow(2).mean().sqrt().item())
        assert -np.polyfit(np.log(COUNTS), np.log(errors), 1)[0] == pytest.approx(order, abs=0.15), errors
