"""The solver contract: evaluations, frames, ends, history, bad input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genflow.errors import InputError
from genflow.paths import EDMPath, LinearPath, Path, TrigonometricPath, VPPath
from genflow.prediction import KINDS, Prediction
from genflow.solvers import FRAMES, SOLVERS, Euler, Heun, combine, create_solver

PATHS = [
    LinearPath(),
    LinearPath(2.5),
    VPPath.linear(),
    VPPath.scaled_linear(),
    VPPath.cosine(),
    VPPath.from_alphas_cumprod(np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))),
    EDMPath(7.0),
    TrigonometricPath(),
]


@given(
    path=st.sampled_from(PATHS),
    t=st.floats(0.02, 0.98),
    ratio=st.floats(0.01, 0.99),
    kind=st.sampled_from([k for k in KINDS if k != "score"]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=80)
def test_euler_is_one_step_in_every_frame(path: Path, t: float, ratio: float, kind: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, value = torch.randn(2, 3, 2, generator=generator, dtype=torch.float64)
    prediction = Prediction(value, kind, x, path, t)
    end = ratio * t
    solver = Euler()
    solver.start(path, np.array([t, end]))
    expected = solver.step(x, prediction, 0)
    # by definition: the same data and noise, at the next time
    again = path.alpha(end) * prediction.x0 + path.sigma(end) * prediction.epsilon
    size = 1 + max(prediction.x0.abs().max(), prediction.epsilon.abs().max()).item()
    torch.testing.assert_close(expected, again, rtol=0, atol=1e-12 * size)
    for frame in FRAMES.values():
        a, b = frame.weights(path, np.array([t]), np.array([end]))
        stepped = combine(float(a[0]), x, float(b[0]), prediction.to(frame.kind))
        torch.testing.assert_close(stepped, again, rtol=0, atol=1e-11 * size)
        # the weights are the frame's clock: b = scale' (u' - u)
        clock = frame.clock(path, np.array([t, end]))
        scale = frame.scale(path, np.array([t, end]))
        assert b[0] == pytest.approx(scale[1] * (clock[1] - clock[0]), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("solver", [Euler(), *(Heun(f) for f in ("auto", *FRAMES))], ids=lambda s: str(s.to_config()))
def test_exact_when_data_and_noise_are_known(path: Path, solver: object) -> None:
    """With constant x0 and noise the trajectory is the path itself, whatever the grid."""
    x0, eps = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solver.start(path, np.array([1.0, 0.9, 0.5, 0.05, 0.0]))
    x = path.perturb(x0, eps, 1.0)
    for i, t in enumerate(solver.evaluations):
        x = solver.step(x, Prediction(eps - x0, "flow_prediction", x, path, float(t)), i)
        n = int(solver.step_of[i])
        torch.testing.assert_close(x, path.perturb(x0, eps, float(solver.times[n + 1])), rtol=1e-9, atol=1e-9)


def test_evaluations() -> None:
    times = np.array([1.0, 0.6, 0.3, 0.0])
    euler, heun = Euler(), Heun()
    euler.start(LinearPath(), times)
    heun.start(LinearPath(), times)
    assert euler.evaluations.tolist() == [1.0, 0.6, 0.3]
    assert heun.evaluations.tolist() == [1.0, 0.6, 0.6, 0.3, 0.3]
    assert heun.step_of.tolist() == [0, 0, 1, 1, 2]
    heun.start(LinearPath(), times[:-1])  # short of t = 0 the last step is corrected too
    assert heun.evaluations.tolist() == [1.0, 0.6, 0.6, 0.3]
    heun.start(LinearPath(), np.array([1.0, 0.0]))
    assert heun.evaluations.tolist() == [1.0]


def test_the_last_step_gives_the_predicted_data() -> None:
    for path in PATHS:
        for solver in (Euler(), Heun(), Heun("epsilon"), Heun("velocity"), Heun("denoised")):
            solver.start(path, np.array([0.4, 0.0]))
            x, x0 = torch.randn(2, 2, 3)
            torch.testing.assert_close(solver.step(x, Prediction(x0, "sample", x, path, 0.4), 0), x0)


def test_start_forgets_and_a_run_may_begin_inside() -> None:
    path, times = LinearPath(), np.array([1.0, 0.6, 0.3, 0.0])
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    heun = Heun()

    def go(first: int) -> torch.Tensor:
        state = x
        for i in range(first, len(heun.evaluations)):
            t = float(heun.evaluations[i])
            state = heun.step(state, Prediction(torch.sin(3 * state) * t, "flow_prediction", state, path, t), i)
        return state

    heun.start(path, times)
    whole = go(2)
    heun.start(path, times)
    heun.step(x, Prediction(x, "flow_prediction", x, path, 1.0), 0)  # leaves a step begun
    heun.start(path, times)
    with pytest.raises(InputError, match="not begun"):
        heun.step(x, Prediction(x, "flow_prediction", x, path, 0.6), 1)
    assert torch.equal(go(2), whole)
    heun.start(path, times[1:])  # the same three-step tail as a run of its own
    assert torch.equal(go(0), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_state_is_float32_at_least(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3).to(dtype)
    solver = Euler()
    solver.start(LinearPath(), np.array([0.8, 0.4]))
    result = solver.step(x, Prediction(x, "epsilon", x, LinearPath(), 0.8), 0)
    assert result.dtype == torch.promote_types(dtype, torch.float32)


def test_a_term_of_weight_zero_is_left_out() -> None:
    bad, good = torch.tensor([torch.nan]), torch.tensor([2.0])
    assert combine(0.0, bad, 1.5, good).item() == 3.0
    assert combine(1.5, good, 0.0, bad).item() == 3.0
    assert combine(2.0, good, 3.0, good).item() == 10.0
    assert good.item() == 2.0


@pytest.mark.parametrize(
    "times",
    [[1.0], [[1.0, 0.0]], [0.0, 1.0], [1.0, 0.5, 0.5], [1.1, 0.0], [1.0, -0.1], [1.0, np.nan, 0.0], []],
)
def test_bad_times(times: list) -> None:
    for name in SOLVERS:
        with pytest.raises(InputError, match="times"):
            create_solver(name).start(LinearPath(), np.array(times))


def test_bad_names_options_and_indices() -> None:
    with pytest.raises(InputError, match="did you mean 'euler'"):
        create_solver("eular")
    with pytest.raises(InputError, match="did you mean 'frame'"):
        create_solver("heun", frme="velocity")
    with pytest.raises(InputError, match="allowed: none"):
        create_solver("euler", order=2)
    with pytest.raises(InputError, match="did you mean 'velocity'"):
        create_solver("heun", frame="velocty")
    solver = create_solver(**Heun("velocity").to_config())
    assert solver.frame == "velocity"
    solver.start(LinearPath(), np.array([1.0, 0.5]))
    x = torch.zeros(1, 2)
    for i in (-1, 2):
        with pytest.raises(InputError, match="outside the run"):
            solver.step(x, Prediction(x, "sample", x, LinearPath(), 0.5), i)
