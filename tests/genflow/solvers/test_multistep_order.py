"""Order of convergence of every multistep rule, on exact Gaussian and Gaussian-mixture data, on every kind of path."""

import numpy as np
import pytest
import torch

from genflow.paths import EDMPath, LinearPath, Path, TrigonometricPath, VPPath
from genflow.solvers import GHVB, HB, AdamsBashforth, DPMSolverPP, RungeKutta4, Solver

PATHS = [VPPath.linear(), EDMPath(10.0), LinearPath(), TrigonometricPath()]
COUNTS = {1: (80, 180), 2: (110, 230), 3: (120, 240), 4: (210, 400)}


def grid(path: Path, levels: tuple[float, float], steps: int, spacing: str) -> np.ndarray:
    high, low = levels
    if spacing == "uniform":
        return np.linspace(path.time(high), path.time(low), steps + 1)
    return path.time(np.linspace(high ** (1 / 7), low ** (1 / 7), steps + 1) ** 7)


def slope(data, path: Path, solver: Solver, spacing: str, counts: tuple[int, ...]) -> tuple[float, list[float]]:
    """Minus the slope of log error against log steps, and the errors."""
    errors, model = [], data.model(path)
    start, end = grid(path, data.levels, 1, spacing)
    first = torch.linspace(-1.5, 1.5, 8, dtype=torch.float64).reshape(2, 4) * path.sigma(float(start))
    exact = data.flow(path, first, start, end)
    for steps in counts:
        x = first
        solver.start(path, grid(path, data.levels, steps, spacing))
        path.remember(solver.evaluations)
        for i, t in enumerate(solver.evaluations.tolist()):
            x = solver.step(x, model.predict(x, t), i)
        errors.append((x - exact).pow(2).mean().sqrt().item())
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0], errors


def cases() -> list[tuple[Solver, int]]:
    """Every rule with the order it should show; a start-up that does not cap it from the third order on."""
    found: list[tuple[Solver, int]] = [(DPMSolverPP(2), 2), (DPMSolverPP(2, "matched"), 2)]
    found += [(DPMSolverPP(2, "matched", "heun", corrector=True), 3)]
    found += [(DPMSolverPP(3, "matched", "heun"), 3), (DPMSolverPP(3, "published", "heun"), 2)]
    for frame in ("epsilon", "velocity", "denoised"):
        found += [(AdamsBashforth(2, frame, "matched"), 2), (AdamsBashforth(3, frame, "matched", "heun"), 3)]
        found += [(AdamsBashforth(4, frame, "matched", "rk4"), 4), (GHVB(1.7, frame, "matched"), 2)]
        found += [(GHVB(2.7, frame, "matched", "heun"), 3), (GHVB(3.7, frame, "matched", "rk4"), 4)]
        found += [(RungeKutta4(frame), 4), (AdamsBashforth(2, frame, "matched", "heun", corrector=True), 3)]
        found += [(AdamsBashforth(3, frame, "matched", "rk4", corrector=True), 4)]
    return [*found, (AdamsBashforth(1), 1), (GHVB(0.7), 1), (HB(2, 0.5), 1), (HB(2, 0.5, "dpm++"), 1)]


CASES = cases()


PLACES = [*(("gaussian", path) for path in PATHS), ("mixture", PATHS[0]), ("mixture", PATHS[2])]


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize(
    ("data", "path", "place"), [(*place, i) for i, place in enumerate(PLACES)], indirect=["data"], ids=str
)
def test_order(data, path: Path, place: int, odd: bool) -> None:
    """Every rule in every place, on a uniform grid in one and on a karras one in the next."""
    wrong, spacing = [], ("uniform", "karras")[(place + odd) % 2]
    for solver, order in CASES[odd::2]:
        counts = (50, 110) if solver.name == "rk4" else COUNTS[order]  # four evaluations a step
        found, errors = slope(data, path, solver, spacing, counts)
        if abs(found - order) > 0.15:
            wrong.append(f"{solver.to_config()}: {found:.2f} for {order}, {errors[-1]:.1e}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", [VPPath.linear(), LinearPath()], ids=repr)
@pytest.mark.parametrize("data", ["mixture"], indirect=True)
def test_published_weights_off_a_uniform_grid_are_of_second_order(data, path: Path) -> None:
    """Whatever the depth and the start-up; as they stand in the paper they are for uniform grids."""
    counts = (250, 500)
    for solver in (
        AdamsBashforth(2, "epsilon"),
        AdamsBashforth(3, "epsilon", startup="heun"),
        AdamsBashforth(4, "epsilon", startup="rk4"),
        GHVB(2.7, "epsilon", startup="heun"),
        GHVB(3.6, "velocity", startup="rk4"),
    ):
        found, errors = slope(data, path, solver, "karras", counts)
        assert found == pytest.approx(2, abs=0.15), (solver.to_config(), errors)


@pytest.mark.parametrize("data", ["gaussian", "mixture"], indirect=True)
def test_published_weights_on_a_uniform_grid_of_their_clock_keep_the_order(data) -> None:
    """A linear path's time is the velocity frame's clock: there published and matched are one rule without momentum."""
    for k, startup in ((2, "multistep"), (3, "heun"), (4, "rk4")):
        found, errors = slope(data, LinearPath(), AdamsBashforth(k, "velocity", startup=startup), "uniform", COUNTS[k])
        assert found == pytest.approx(k, abs=0.15), errors
        _, same = slope(data, LinearPath(), AdamsBashforth(k, "velocity", "matched", startup), "uniform", COUNTS[k])
        np.testing.assert_allclose(errors, same, rtol=1e-3)
