"""The multistep kernel: frames, momentum, begin index, start-up, ends, dtypes, bad input."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genflow.errors import InputError
from genflow.paths import EDMPath, LinearPath, Path, TrigonometricPath, VPPath
from genflow.prediction import Prediction
from genflow.solvers import FRAMES, GHVB, HB, AdamsBashforth, DPMSolverPP, Euler, RungeKutta4, Solver, create_solver

TABLE = VPPath.from_alphas_cumprod(np.append(np.cumprod(1 - np.linspace(1e-4, 2e-2, 999)), 0.0))  # zero terminal SNR
PATHS = [LinearPath(), LinearPath(2.5), VPPath.linear(), TABLE, EDMPath(7.0), TrigonometricPath()]
TIMES = np.array([1.0, 0.8, 0.65, 0.4, 0.3, 0.12, 0.05, 0.0])


def rules() -> list[Solver]:
    found: list[Solver] = [DPMSolverPP(2), DPMSolverPP(3), DPMSolverPP(3, "matched", "rk4"), HB(2, 0.8, "dpm++")]
    found += [AdamsBashforth(3, corrector=True), DPMSolverPP(3, corrector=True)]
    for frame in FRAMES:
        for coefficients in ("published", "matched"):
            found += [AdamsBashforth(3, frame, coefficients), GHVB(2.6, frame, coefficients, "heun")]
            found += [GHVB(3.2, frame, coefficients, "rk4"), HB(2, 0.7, "ab", "nesterov", frame, coefficients)]
        found += [RungeKutta4(frame)]
    return found


RULES = rules()


def name(solver: Solver) -> str:
    return "-".join(str(v) for v in solver.to_config().values())


def state(seed: int = 0, shape: tuple[int, ...] = (2, 3), dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(x: Tensor, t: float) -> Tensor:
    """Some smooth nonlinear flow prediction."""
    return torch.tanh(x.roll(1, -1) * (0.5 + t)) + 0.3 * x


def run(solver: Solver, path: Path, times: np.ndarray, x: Tensor, begin: int = 0, start: bool = True) -> Tensor:
    if start:
        solver.start(path, times)
    for i in range(begin, len(solver.evaluations)):
        t = float(solver.evaluations[i])
        x = solver.step(x, Prediction(network(x, t), "flow_prediction", x, path, t), i)
    return x


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("solver", RULES, ids=name)
def test_exact_when_data_and_noise_are_known(path: Path, solver: Solver) -> None:
    """With constant x0 and noise every slope is constant, and the trajectory is the path itself on any grid."""
    x0, eps = state(0), state(1)
    solver.start(path, TIMES)
    x = path.perturb(x0, eps, 1.0)
    for i, t in enumerate(solver.evaluations.tolist()):
        x = solver.step(x, Prediction(eps - x0, "flow_prediction", x, path, t), i)
        after = float(solver.evaluations[i + 1]) if i + 1 < len(solver.evaluations) else 0.0
        torch.testing.assert_close(x, path.perturb(x0, eps, after), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_all_frames_are_euler_at_order_one(path: Path) -> None:
    expected = run(Euler(), path, TIMES, state())
    for frame in FRAMES:
        for solver in (AdamsBashforth(1, frame), AdamsBashforth(1, frame, "matched", "rk4"), GHVB(1, frame)):
            torch.testing.assert_close(run(solver, path, TIMES, state()), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("coefficients", ["published", "matched"])
@pytest.mark.parametrize("frame", FRAMES)
def test_no_momentum_is_adams_bashforth(frame: str, coefficients: str) -> None:
    path = VPPath.scaled_linear()
    for k in range(1, 6):
        expected = run(AdamsBashforth(k, frame, coefficients), path, TIMES, state())
        assert torch.equal(run(GHVB(k, frame, coefficients), path, TIMES, state()), expected)
        for variant in ("heavy-ball", "nesterov"):
            hb = HB(k, 1.0, "ab", variant, frame, coefficients)
            torch.testing.assert_close(run(hb, path, TIMES, state()), expected, rtol=1e-12, atol=1e-12)
    near = run(GHVB(2 + 1e-7, frame, coefficients), path, TIMES, state())  # continuous from above, and well scaled
    limit = run(GHVB(2 + 1e-5, frame, coefficients), path, TIMES, state())
    torch.testing.assert_close(near, limit, rtol=1e-3, atol=1e-3)
    below = run(GHVB(3 - 1e-7, frame, coefficients), path, TIMES, state())
    torch.testing.assert_close(
        below, run(AdamsBashforth(3, frame, coefficients), path, TIMES, state()), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("order", [2, 3])
def test_dpm_solver_pp_inside_hb(order: int) -> None:
    path = VPPath.scaled_linear()
    for coefficients in ("published", "matched"):
        expected = run(DPMSolverPP(order, coefficients), path, TIMES, state())
        assert torch.equal(run(HB(order, 1.0, "dpm++", coefficients=coefficients), path, TIMES, state()), expected)
    matched = run(DPMSolverPP(order, "matched"), path, np.linspace(0.9, 0.1, 21), state())
    same = run(AdamsBashforth(order, "denoised", "matched"), path, np.linspace(0.9, 0.1, 21), state())
    torch.testing.assert_close(matched, same, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", RULES, ids=name)
def test_a_run_begun_inside_is_the_run_on_the_rest_of_the_schedule(solver: Solver) -> None:
    """image-to-image: the history that really exists decides the weights, and no old one leaks in."""
    path, first = VPPath.linear(), 4
    begin = int(np.flatnonzero(solver_started(solver, path).step_of == first)[0])
    inside = run(solver, path, TIMES, state(), begin)
    again = run(solver, path, TIMES, state(), begin, start=False)  # twice, with what the first run left behind
    assert torch.equal(inside, again)
    if getattr(solver, "startup", "multistep") == "multistep":
        whole = run(solver, path, TIMES[first:], state())
        torch.testing.assert_close(inside, whole, rtol=1e-12, atol=1e-12)
    full = run(solver, path, TIMES, state())
    assert torch.equal(run(solver, path, TIMES, state(), start=False), full)


def solver_started(solver: Solver, path: Path) -> Solver:
    solver.start(path, TIMES)
    return solver


def test_an_evaluation_out_of_turn_starts_a_new_history() -> None:
    path, x = LinearPath(), state()
    solver = AdamsBashforth(2)
    run(solver, path, TIMES, x)
    t = float(TIMES[3])
    prediction = Prediction(network(x, t), "flow_prediction", x, path, t)
    jumped = solver.step(x, prediction, 3)
    euler = Euler()
    euler.start(path, TIMES)
    torch.testing.assert_close(jumped, euler.step(x, prediction, 3))


def test_beginning_inside_a_start_up_step_goes_on_at_first_order() -> None:
    path = LinearPath()
    solver = GHVB(3.5, startup="rk4")
    solver.start(path, np.linspace(1, 0, 9))
    assert solver.evaluations[:5].tolist() == pytest.approx([1, 0.9375, 0.9375, 0.875, 0.875])
    x0, eps = state(0), state(1)
    for begin in range(1, 13):
        x = path.perturb(x0, eps, float(solver.evaluations[begin]))
        for i in range(begin, len(solver.evaluations)):
            x = solver.step(x, Prediction(eps - x0, "flow_prediction", x, path, float(solver.evaluations[i])), i)
        torch.testing.assert_close(x, x0, rtol=1e-9, atol=1e-9)


def test_evaluations() -> None:
    """One a step; the start-up takes more in the first k - 1 steps, and never at t = 0."""
    times = np.linspace(1, 0, 9)
    expected = {"multistep": 8, "heun": 8 + 3, "rk4": 8 + 9}
    for startup, count in expected.items():
        for solver in (GHVB(3.3, startup=startup), AdamsBashforth(4, "velocity", startup=startup)):
            solver.start(LinearPath(), times)
            assert len(solver.evaluations) == len(solver.step_of) == count
            assert solver.step_of[-1] == 7
            assert (np.diff(solver.evaluations) <= 0).all()
            assert solver.evaluations.min() > 0
        # in the epsilon frame a flow's first slope has no place on the clock: matched rules start one step later
        solver = AdamsBashforth(4, "epsilon", "matched", startup)
        solver.start(LinearPath(), times)
        assert len(solver.evaluations) == count + {"multistep": 0, "heun": 1, "rk4": 3}[startup]
    rk4 = RungeKutta4()
    rk4.start(LinearPath(), times)
    assert len(rk4.evaluations) == 4 * 8 - 1
    rk4.start(LinearPath(), times[:-1])
    assert len(rk4.evaluations) == 4 * 7
    for startup in expected:
        solver = AdamsBashforth(5, startup=startup)
        solver.start(LinearPath(), np.array([1.0, 0.0]))
        assert solver.evaluations.tolist() == [1.0]


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_few_steps_from_pure_noise_to_data_are_finite(path: Path, steps: int) -> None:
    for solver in RULES:
        x = run(solver, path, np.linspace(1, 0, steps + 1), path.prior_std * state())
        assert torch.isfinite(x).all(), solver.to_config()
        assert x.abs().max() < 50, solver.to_config()


def test_the_last_step_of_dpm_solver_pp_gives_the_predicted_data() -> None:
    for path in PATHS:
        for solver in (DPMSolverPP(2), DPMSolverPP(3, "matched"), HB(2, 0.5, "dpm++"), AdamsBashforth(3, "denoised")):
            solver.start(path, TIMES)
            x = state()
            for i, t in enumerate(TIMES[:-1].tolist()):
                x0 = state(i)
                x = solver.step(x, Prediction(x0, "sample", x, path, t), i)
            torch.testing.assert_close(x, x0)


@given(
    order=st.floats(0.05, 5.0),
    frame=st.sampled_from([*FRAMES, "auto"]),
    coefficients=st.sampled_from(["published", "matched"]),
    startup=st.sampled_from(["multistep", "heun", "rk4"]),
    path=st.sampled_from(PATHS),
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    inner=st.lists(st.floats(0.02, 0.98), max_size=6, unique_by=lambda t: round(t, 2)),
)
@settings(deadline=None, max_examples=60)
def test_any_option_any_shape_any_grid(order, frame, coefficients, startup, path, shape, dtype, inner) -> None:
    """Finite, of x's shape, float32 at least, and without a hand on what it was given."""
    times = np.array([1.0, *sorted(inner, reverse=True), 0.0])
    solver = create_solver(**GHVB(order, frame, coefficients, startup).to_config())
    solver.start(path, times)
    x = state(0, tuple(shape), dtype)
    for i, t in enumerate(solver.evaluations.tolist()):
        value, before = 0.1 * state(i, tuple(shape), dtype), x.clone()
        kept = value.clone()
        result = solver.step(x, Prediction(value, "flow_prediction", x, path, t), i)
        assert torch.equal(x, before)
        assert torch.equal(value, kept)
        x = result
        assert x.shape == tuple(shape)
        assert x.dtype == torch.promote_types(dtype, torch.float32)
        assert torch.isfinite(x).all()


def test_nearly_pure_noise_is_left_out_of_the_epsilon_clock() -> None:
    """A cosine table begins at a level of thousands and goes on at tens: one node far off would spoil every weight."""
    levels = np.array([2e4, 40.0, 20.0, 10.0, 5.0, 2.0])
    path = TrigonometricPath()
    times = path.time(levels)
    for startup in ("multistep", "rk4"):
        solver = AdamsBashforth(3, "epsilon", "matched", startup)
        result = run(solver, path, times, state())
        other = run(AdamsBashforth(3, "velocity", "matched", startup), path, times, state())
        assert (result - other).abs().max() < 0.1


def test_batch_members_do_not_meet() -> None:
    path, x = VPPath.linear(), state(0, (4, 3))

    def alone(row: Tensor) -> Tensor:
        return run(GHVB(2.4), path, TIMES, row)

    together = run(GHVB(2.4), path, TIMES, x)
    torch.testing.assert_close(together, torch.cat([alone(x[i : i + 1]) for i in range(4)]), rtol=1e-12, atol=1e-12)


def test_to_config_makes_the_same_solver() -> None:
    import json

    for solver in RULES:
        config = json.loads(json.dumps(solver.to_config()))
        again = create_solver(**config)
        assert type(again) is type(solver)
        assert again.to_config() == solver.to_config()
        assert torch.equal(run(again, LinearPath(), TIMES, state()), run(solver, LinearPath(), TIMES, state()))


@pytest.mark.parametrize(
    ("solver", "options", "message"),
    [
        ("ghvb", {"order": 0}, "order: got 0; allowed: a finite number > 0 and <= 5"),
        ("ghvb", {"order": -1.0}, "order"),
        ("ghvb", {"order": 5.01}, "order"),
        ("ghvb", {"order": math.nan}, "order"),
        ("ghvb", {"order": "2"}, "order"),
        ("ghvb", {"beta": 0.5}, "'beta' is not known"),
        ("ab", {"order": 1.5}, "order: got 1.5; allowed: an integer"),
        ("ab", {"order": 6}, "order"),
        ("dpm++", {"order": 1}, "order"),
        ("dpm++", {"order": 4}, "order"),
        ("dpm++", {"frame": "epsilon"}, "'frame' is not known"),
        ("hb", {"beta": 0.0}, "beta: got 0.0; allowed: a finite number > 0 and <= 1"),
        ("hb", {"beta": 1.5}, "beta"),
        ("hb", {"beta": math.nan}, "beta"),
        ("hb", {"around": "euler"}, "around: 'euler' is not known"),
        ("hb", {"around": "dpm++", "order": 4}, "order"),
        ("hb", {"around": "dpm++", "frame": "velocity"}, "frame: 'velocity' with around='dpm++'"),
        ("hb", {"variant": "nestrov"}, "did you mean 'nesterov'"),
        ("ghvb", {"frame": "epsilom"}, "did you mean 'epsilon'"),
        ("ghvb", {"coefficients": "mached"}, "did you mean 'matched'"),
        ("ghvb", {"startup": "rk45"}, "did you mean 'rk4'"),
        ("rk4", {"frame": "x0"}, "frame: 'x0' is not known"),
    ],
)
def test_bad_options(solver: str, options: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        create_solver(solver, **options)
    assert message in str(caught.value)


def test_a_runge_kutta_step_has_to_be_begun() -> None:
    solver, x = RungeKutta4(), state()
    solver.start(LinearPath(), TIMES)
    with pytest.raises(InputError, match="not begun"):
        solver.step(x, Prediction(x, "flow_prediction", x, LinearPath(), 0.9), 1)
