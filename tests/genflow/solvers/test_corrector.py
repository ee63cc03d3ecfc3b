"""The corrector: each step once more with the slope at its end, folded into the weights of the next."""

import numpy as np
import pytest
import torch
from torch import Tensor

from genflow.errors import InputError
from genflow.paths import EDMPath, LinearPath, Path, TrigonometricPath, VPPath
from genflow.prediction import Prediction
from genflow.solvers import HB, AdamsBashforth, DPMSolverPP, Solver

# textbook weights on a uniform grid, newest first
BASHFORTH = {1: [1], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12]}
MOULTON = {1: [1 / 2, 1 / 2], 2: [5 / 12, 8 / 12, -1 / 12], 3: [9 / 24, 19 / 24, -5 / 24, 1 / 24]}
PATHS = [VPPath.linear(), EDMPath(10.0), LinearPath(), TrigonometricPath()]


def network(x: Tensor, t: float) -> Tensor:
    return torch.tanh(x.roll(1, -1) * (0.5 + t)) + 0.3 * x


def run(solver: Solver, path: Path, times: np.ndarray, x: Tensor, model=network) -> Tensor:
    solver.start(path, times)
    for i, t in enumerate(solver.evaluations.tolist()):
        x = solver.step(x, Prediction(model(x, t), "flow_prediction", x, path, t), i)
    return x


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_it_is_predict_evaluate_correct(order: int, x: Tensor) -> None:
    """Written out: correct x with the slope found at the predicted x, predict from the corrected x."""
    times = np.linspace(1, 0.2, 9)
    slopes: list[Tensor] = []
    corrected, predicted = x, x
    for n, t in enumerate(times[:-1]):
        slopes.insert(0, network(predicted, t))
        if n:
            weights = MOULTON[min(order, n)]
            corrected = corrected + (times[n] - times[n - 1]) * sum(
                w * y for w, y in zip(weights, slopes, strict=False)
            )
        weights = BASHFORTH[min(order, n + 1)]
        predicted = corrected + (times[n + 1] - t) * sum(w * y for w, y in zip(weights, slopes, strict=False))
    for coefficients in ("published", "matched"):
        solver = AdamsBashforth(order, coefficients=coefficients, corrector=True)
        torch.testing.assert_close(run(solver, LinearPath(), times, x), predicted, rtol=1e-12, atol=1e-12)
    around = HB(order, beta=1.0, corrector=True)
    torch.testing.assert_close(run(around, LinearPath(), times, x), predicted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", [AdamsBashforth, DPMSolverPP])
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_exact_for_constant_slopes_from_noise_to_data(rule: type[Solver], path: Path, x: Tensor) -> None:
    data = x.roll(1)
    for steps in (1, 2, 3, 7, 20):
        times = np.linspace(1, 0, steps + 1)
        result = run(
            rule(3, corrector=True), path, times, path.sigma(1.0) * x + path.alpha(1.0) * data, lambda *_: x - data
        )
        torch.testing.assert_close(result, data, rtol=1e-9, atol=1e-9)


def test_a_changed_state_keeps_its_change(x: Tensor) -> None:
    """Inpainting writes into the state between steps; the correction is added, not a state of the past put back."""
    solver, path, times = AdamsBashforth(2, corrector=True), LinearPath(), np.linspace(1, 0.5, 4)
    slope = torch.ones_like(x)
    results = []
    for change in (0.0, 5.0):
        solver.start(path, times)
        state = x
        for i, t in enumerate(solver.evaluations.tolist()):
            state = solver.step(state, Prediction(slope * (1 + i), "flow_prediction", state, path, t), i)
            state = state + change * (i == 1)
        results.append(state)
    torch.testing.assert_close(results[1] - results[0], torch.full_like(x, 5.0))


def test_bad_input() -> None:
    with pytest.raises(InputError, match="corrector: True with beta=0.9; allowed: with beta=1"):
        HB(corrector=True)
    with pytest.raises(InputError, match="corrector: got 'yes'; allowed: True, False"):
        AdamsBashforth(corrector="yes")
