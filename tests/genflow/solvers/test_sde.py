"""SDE solvers: exact moments on Gaussian data, weak order, the ODE at D = 0, last steps, SiT's own formulas."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genflow.errors import InputError
from genflow.paths import EDMPath, LinearPath, Path, TrigonometricPath, VPPath
from genflow.prediction import Prediction
from genflow.sampling import sample, time_grid
from genflow.solvers import DIFFUSIONS, Diffusion, SDEEuler, SDEExponential, SDEHeun, Solver, create_solver

TABLE = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))
PATHS = [
    LinearPath(),
    LinearPath(3.0),
    TrigonometricPath(),
    VPPath.linear(),
    VPPath.cosine(),
    VPPath.from_alphas_cumprod(TABLE),
    EDMPath(10.0),
]
SDE = ["sde-euler", "sde-heun", "sde-exponential"]
ORDERS = {"sde-euler": 1, "sde-heun": 2, "sde-exponential": 1}


def make(name: str, **options: object) -> Solver:
    """The solver with an ordinary last step."""
    return create_solver(name, **options, **({} if name == "sde-exponential" else {"last_step": None}))


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("name", SDE)
def test_weak_order(moment_errors, name: str, path: Path, diffusion: str) -> None:
    """The bias of mean and variance falls with the steps, at the solver's order, away from the two ends."""
    counts, errors = (100, 400), []
    for steps in counts:
        errors.append(
            max(map(abs, moment_errors(make(name, diffusion=diffusion), path, np.linspace(0.9, 0.2, steps + 1))))
        )
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    # a leading term that happens to be small lets Euler-Maruyama seem better than it is
    assert slope > ORDERS[name] - 0.15, errors
    assert errors[-1] < (0.04 if ORDERS[name] == 1 else 1e-3)


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("name", SDE)
def test_moments_from_noise_to_data(moment_errors, name: str, path: Path, diffusion: str) -> None:
    """Every SDE on every path, over the whole way and with the default last step."""
    errors = []
    for steps in (50, 200):
        errors.append(
            max(map(abs, moment_errors(create_solver(name, diffusion=diffusion), path, time_grid(path, steps))))
        )
    assert all(map(math.isfinite, errors))
    assert errors[1] < max(0.75 * errors[0], 2e-4), errors
    assert errors[1] < 0.06  # of a variance of 0.25; the exponential rule with a constant D is the slowest


@pytest.mark.parametrize("name", SDE)
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_a_karras_grid(moment_errors, name: str, path: Path) -> None:
    errors = [
        max(map(abs, moment_errors(make(name, norm=0.5), path, time_grid(path, n, "karras", noise_min=0.02)[:-1])))
        for n in (100, 400)
    ]
    assert errors[1] < 0.4 * errors[0]
    assert errors[1] < 0.03


@pytest.mark.parametrize("spacing", ["uniform", "karras"])
@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize(("name", "ode"), [("sde-euler", "euler"), ("sde-heun", "heun"), ("sde-exponential", "euler")])
def test_without_diffusion_it_is_the_ode_to_the_bit(gaussian_model, path, name, ode, spacing) -> None:
    x = path.prior_std * torch.randn(4, 3)
    times = time_grid(path, 9, spacing)
    for diffusion in set(DIFFUSIONS) - {"decreasing"}:
        solver = create_solver(name, diffusion=diffusion, norm=0.0)
        result = sample(gaussian_model(path), x, times, solver)
        assert not any(solver.draws(i) for i in range(len(solver.evaluations)))
        assert torch.equal(result, sample(gaussian_model(path), x, times, ode))


@pytest.mark.parametrize("last_step", ["mean", "tweedie", "euler", None])
@pytest.mark.parametrize("name", ["sde-euler", "sde-heun"])
def test_last_steps(name: str, last_step: str | None) -> None:
    """By their definitions, on a linear path: D = sigma, s = -eps / sigma."""
    path, t = LinearPath(), 0.04
    x, flow, z = torch.randn(3, 2, 5, dtype=torch.float64)
    x0, eps = x - t * flow, x + (1 - t) * flow
    solver = create_solver(name, last_step=last_step)
    solver.start(path, np.array([t, 0.0]))
    assert solver.evaluations.tolist() == [t]
    assert solver.draws(0) == (last_step is None)
    result = solver.step(x, Prediction(flow, "flow_prediction", x, path, t), 0, z)
    mean = x - t * (flow + eps)  # D s = -eps
    wanted = {"mean": mean, "tweedie": x0, "euler": x - t * flow, None: mean + math.sqrt(2 * t * t) * z}[last_step]
    torch.testing.assert_close(result, wanted, rtol=1e-12, atol=1e-12)


def test_evaluations() -> None:
    """N steps of Euler-Maruyama are N evaluations; stochastic Heun's are 2 N - 1."""
    times = np.linspace(1, 0, 11)
    kinds = itertools.product((("sde-euler", 10), ("sde-exponential", 10), ("sde-heun", 19)), ("sigma", "sbdm"))
    for (name, count), diffusion in kinds:
        solver = create_solver(name, diffusion=diffusion)
        solver.start(LinearPath(), times)
        assert len(solver.evaluations) == len(solver.step_of) == count
        assert solver.step_of[-1] == 9
        assert not solver.draws(count - 1)
    heun = SDEHeun(last_step=None)
    heun.start(LinearPath(), times[:-1])
    assert heun.evaluations.tolist() == np.repeat(times[:-1], 2)[1:-1].tolist()
    assert [heun.draws(i) for i in range(4)] == [True, False, True, False]


def test_a_half_step_that_was_not_begun() -> None:
    solver = SDEHeun()
    solver.start(LinearPath(), np.linspace(1, 0, 4))
    x = torch.zeros(1, 2)
    with pytest.raises(InputError, match="not begun"):
        solver.step(x, Prediction(x, "sample", x, LinearPath(), float(solver.evaluations[1])), 1)


@pytest.mark.parametrize("kind", ["sample", "epsilon", "v_prediction", "flow_prediction", "score", "velocity"])
@given(
    path=st.sampled_from(PATHS),
    diffusion=st.sampled_from(DIFFUSIONS),
    norm=st.floats(0, 3),
    name=st.sampled_from([*SDE, "refresh", "stable-refresh", "overshooting", "stochastic-curved-euler"]),
    last_step=st.sampled_from(["mean", "tweedie", "euler", None]),
    steps=st.integers(1, 6),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=4),
)
@settings(deadline=None, max_examples=60)
def test_never_nan(kind, path, diffusion, norm, name, last_step, steps, dtype, shape) -> None:
    """Any coefficient on any path from pure noise to clean data, in few steps: finite, in shape, float32 at least."""
    options = {"diffusion": diffusion, "norm": norm, "last_step": last_step}
    solver = create_solver(name)
    solver = create_solver(name, **{key: value for key, value in options.items() if key in solver.option_names})
    # noise alone says nothing of the data where alpha is 0
    start = 0.999 if kind in ("epsilon", "score") and path.alpha(1.0) == 0 else 1.0
    solver.start(path, np.linspace(start, 0, steps + 1))
    x = (path.prior_std * torch.randn(shape)).to(dtype)
    for i, t in enumerate(solver.evaluations.tolist()):
        x = solver.step(x, Prediction(0.1 * x, kind, x, path, t), i, torch.randn(shape) if solver.draws(i) else None)
        assert torch.isfinite(x).all()
        assert x.shape == torch.Size(shape)
        assert x.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("name", SDE)
def test_samples_follow_the_data(gaussian_model, name: str) -> None:
    """Drawn samples too: mean and deviation within five standard errors and the solver's known bias."""
    path, count = LinearPath(), 4000
    x = torch.randn(count, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.manual_seed(2)
    result = sample(gaussian_model(path), x, time_grid(path, 100), name)
    assert result.mean().item() == pytest.approx(0.7, abs=5 * 0.5 / math.sqrt(count) + 0.01)
    assert result.std().item() == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(2 * count) + 0.02)


@pytest.mark.parametrize("name", [*SDE, "overshooting"])
def test_one_generator_a_sample(gaussian_model, name: str) -> None:
    """A sample depends on its own seed, not on its batch; the same seeds give the same samples."""
    path = TrigonometricPath()
    x = torch.randn(3, 4)

    def run(rows: list[int]) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(10 + row) for row in rows]
        return sample(gaussian_model(path), x[rows], time_grid(path, 7), name, generators=generators)

    together = run([0, 1, 2])
    assert torch.equal(together, run([0, 1, 2]))
    for row in range(3):
        torch.testing.assert_close(run([row])[0], together[row], rtol=1e-6, atol=1e-6)
    assert not torch.equal(run([0, 0])[0], together[1])
    solver = create_solver(name)
    solver.start(path, time_grid(path, 7))
    with pytest.raises(InputError, match="noise: None"):
        solver.step(x, Prediction(x, "sample", x, path, 1.0), 0)


def test_closed_forms() -> None:
    """D(t) as SiT writes it, in its time; the rate is D / sigma^2 and the turnover its integral."""
    t = np.linspace(0.05, 0.95, 10)
    theirs, c = 1 - t, 0.7
    for path in PATHS[2:5]:
        alpha, sigma = path.alpha(t), path.sigma(t)
        alpha_dot, sigma_dot = -path.alpha_dot(t), -path.sigma_dot(t)  # in their time
        wanted = {
            "constant": np.full_like(t, c),
            "sbdm": c * (alpha_dot / alpha * sigma**2 - sigma * sigma_dot),
            "sigma": c * sigma,
            "linear": c * (1 - theirs),
            "decreasing": (c * np.cos(np.pi * theirs) + 1) ** 2 / 4,
            "increasing-decreasing": c * np.sin(np.pi * theirs) ** 2,
        }
        assert set(wanted) == set(DIFFUSIONS)
        for name, value in wanted.items():
            diffusion = Diffusion(name, c)
            np.testing.assert_allclose(diffusion.value(path, t), value, rtol=1e-9)
            np.testing.assert_allclose(diffusion.rate(path, t), value / sigma**2, rtol=1e-9)
            fine = np.linspace(0.3, 0.4, 4001)
            integral = np.trapezoid(diffusion.rate(path, fine), fine)
            turned = diffusion.turnover(path, np.array([0.4]), np.array([0.3]))
            assert turned[0] == pytest.approx(integral, rel=1e-6)
    for name in DIFFUSIONS:  # the data end is finite on every path, and pure noise but for sbdm
        for path in PATHS:
            ends = Diffusion(name).value(path, np.array([0.0, 1.0]))
            assert np.isfinite(ends[0])
            assert np.isfinite(ends[1]) == (name != "sbdm" or path.alpha(1.0) > 0)


class SiT:
    """Euler-Maruyama of SiT (Ma et al. 2024) from its formulas, in its own time: data at 1, noise at 0."""

    def __init__(self, path: str, form: str, norm: float) -> None:
        self.path, self.form, self.norm = path, form, norm

    def coefficients(self, t: float) -> tuple[float, float, float, float]:
        if self.path == "Linear":
            return t, 1 - t, 1.0, -1.0
        half = math.pi / 2
        if self.path == "GVP":
            return math.sin(half * t), math.cos(half * t), half * math.cos(half * t), -half * math.sin(half * t)
        low, high = 0.1, 20.0
        log_alpha = -0.25 * (1 - t) ** 2 * (high - low) - 0.5 * (1 - t) * low
        rate = 0.5 * (1 - t) * (high - low) + 0.5 * low
        alpha = math.exp(log_alpha)
        sigma = math.sqrt(1 - alpha**2)
        return alpha, sigma, alpha * rate, -(alpha**2) * rate / sigma

    def diffusion(self, t: float) -> float:
        alpha, sigma, alpha_dot, sigma_dot = self.coefficients(t)
        if self.form == "constant":
            return self.norm
        if self.form == "SBDM":
            return self.norm * (alpha_dot / alpha * sigma**2 - sigma * sigma_dot)
        if self.form == "sigma":
            return self.norm * sigma
        if self.form == "linear":
            return self.norm * (1 - t)
        if self.form == "decreasing":
            return 0.25 * (self.norm * math.cos(math.pi * t) + 1) ** 2
        return self.norm * math.sin(math.pi * t) ** 2

    def drift(self, x: torch.Tensor, t: float, velocity: torch.Tensor) -> torch.Tensor:
        alpha, sigma, alpha_dot, sigma_dot = self.coefficients(t)
        ratio = alpha / alpha_dot
        score = (ratio * velocity - x) / (sigma**2 - ratio * sigma_dot * sigma)
        return velocity + self.diffusion(t) * score

    def step(self, x: torch.Tensor, t: float, h: float, velocity: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return x + h * self.drift(x, t, velocity) + math.sqrt(2 * self.diffusion(t) * h) * z


@pytest.mark.parametrize("form", ["constant", "SBDM", "sigma", "linear", "decreasing", "increasing-decreasing"])
@pytest.mark.parametrize(
    ("name", "path"), [("Linear", LinearPath()), ("GVP", TrigonometricPath()), ("VP", VPPath.linear())]
)
def test_parity_with_sit(name: str, path: Path, form: str) -> None:
    """A trajectory with a network of velocities, 49 Euler-Maruyama steps and the Mean step of 0.04."""
    reference = SiT(name, form, 0.8)
    times = np.append(np.linspace(0.999, 0.04, 50), 0.0)
    solver = SDEEuler(form.lower(), 0.8, last_step="mean", frame="time")
    solver.start(path, times)
    weights = torch.randn(3, 3, dtype=torch.float64)

    def network(x: torch.Tensor, t: float) -> torch.Tensor:  # in SiT's time and direction
        return torch.tanh(x @ weights) * (1 + t) - 0.3 * x

    ours = theirs = torch.randn(2, 3, dtype=torch.float64)
    for i, (t, after) in enumerate(zip(times[:-1].tolist(), times[1:].tolist(), strict=True)):
        z = torch.randn(2, 3, dtype=torch.float64)
        last = i == 49
        theirs = reference.step(theirs, 1 - t, t - after, network(theirs, 1 - t), 0 * z if last else z)
        ours = solver.step(ours, Prediction(-network(ours, 1 - t), "velocity", ours, path, t), i, None if last else z)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_exponential_sbdm_is_ddim_with_eta_1() -> None:
    """Song et al. 2021 (DDIM), eq. 12 and 16: variance (1 - a')/(1 - a) (1 - a/a') with a = alpha^2."""
    path, t, after = VPPath.from_alphas_cumprod(TABLE), 0.8, 0.7
    x, eps, z = torch.randn(3, 2, 4, dtype=torch.float64)
    a, b = path.alpha(t) ** 2, path.alpha(after) ** 2
    std = math.sqrt((1 - b) / (1 - a) * (1 - a / b))
    x0 = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
    wanted = math.sqrt(b) * x0 + math.sqrt(1 - b - std**2) * eps + std * z
    solver = SDEExponential("sbdm")
    solver.start(path, np.array([t, after]))
    result = solver.step(x, Prediction(eps, "epsilon", x, path, t), 0, z)
    torch.testing.assert_close(result, wanted, rtol=1e-10, atol=1e-10)


def test_the_exponential_rule_is_stable_where_euler_maruyama_is_not(moment_errors) -> None:
    """Large D in few steps: rate times step far above 2."""
    times = np.linspace(1, 0, 6)
    euler = max(map(abs, moment_errors(SDEEuler("constant", 50.0), LinearPath(), times)))
    exponential = max(map(abs, moment_errors(SDEExponential("constant", 50.0), LinearPath(), times)))
    assert euler > 1e3
    assert exponential < 0.25


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SDEEuler("inccreasing-decreasing"), "did you mean 'increasing-decreasing'"),
        (lambda: SDEEuler(norm=-1.0), "norm: got -1.0"),
        (lambda: SDEEuler(norm=math.nan), "norm: got nan"),
        (lambda: SDEHeun(last_step="Meen"), "last_step: 'Meen' is not known"),
        (lambda: SDEEuler(frame="times"), "did you mean 'time'"),
        (lambda: create_solver("sde-exponential", last_step="mean"), "option 'last_step' is not known"),
        (lambda: create_solver("sde-eular"), "did you mean 'sde-euler'"),
    ],
)
def test_bad_input(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
