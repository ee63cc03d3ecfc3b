"""The stochastic samplers of rectified flow: each step by its published definition, and the marginals they keep."""

import math

import numpy as np
import pytest
import torch

from genflow.errors import InputError
from genflow.paths import EDMPath, LinearPath, Path, TrigonometricPath, VPPath
from genflow.prediction import Prediction
from genflow.sampling import sample, time_grid
from genflow.solvers import Solver, create_solver

PATHS = [LinearPath(), LinearPath(3.0), TrigonometricPath(), VPPath.linear(), EDMPath(10.0)]
SAMPLERS = [
    ("refresh", {}),
    ("stable-refresh", {}),
    ("stable-refresh", {"scale": 2.0, "decay": 0.0}),
    ("overshooting", {}),
    ("overshooting", {"overshoot": 3.0}),
    ("stochastic-curved-euler", {}),
    ("stochastic-curved-euler", {"replaced": 0.3}),
]


def one_step(solver: Solver, path: Path, t: float, after: float, noise: bool = True) -> tuple[torch.Tensor, ...]:
    """The result of one step, and the x0, eps and z that went into it."""
    solver.start(path, np.array([t, after]))
    x0, eps, z = torch.randn(3, 2, 5, dtype=torch.float64)
    x = path.perturb(x0, eps, t)
    prediction = Prediction(eps - x0, "flow_prediction", x, path, t)
    return solver.step(x, prediction, 0, z if noise else None), x0, eps, z


@pytest.mark.parametrize(("name", "options"), SAMPLERS)
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_the_marginal_is_kept_in_the_limit(moment_errors, path: Path, name: str, options: dict) -> None:
    errors = [
        max(map(abs, moment_errors(create_solver(name, **options), path, time_grid(path, n)))) for n in (100, 400)
    ]
    assert errors[1] < 0.4 * errors[0], errors
    assert errors[1] < 0.04


@pytest.mark.parametrize("name", ["refresh", "stochastic-curved-euler"])
def test_a_share_for_every_step_keeps_a_bias(moment_errors, name: str) -> None:
    """As published: the same share whatever the step. More steps do not mend it."""
    solver = create_solver(name, replaced=0.5, reference_step=None)
    errors = [max(map(abs, moment_errors(solver, LinearPath(), np.linspace(1, 0.3, n + 1)))) for n in (100, 400)]
    assert errors[1] > 0.7 * errors[0] > 1e-3, errors


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_refresh(path: Path) -> None:
    alpha, sigma = path.alpha(0.5), path.sigma(0.5)
    result, x0, eps, z = one_step(create_solver("refresh", replaced=0.6, reference_step=None), path, 0.6, 0.5)
    torch.testing.assert_close(result, alpha * x0 + sigma * (0.8 * eps + 0.6 * z), rtol=1e-10, atol=1e-10)
    # two reference steps in one: the kept share is compounded
    result, x0, eps, z = one_step(create_solver("refresh", replaced=0.6, reference_step=0.05), path, 0.6, 0.5)
    kept = 0.8**2
    wanted = alpha * x0 + sigma * (kept * eps + math.sqrt(1 - kept**2) * z)
    torch.testing.assert_close(result, wanted, rtol=1e-10, atol=1e-10)


def test_stable_refresh() -> None:
    t, after, scale, decay = 0.6, 0.5, 1.5, 2.0
    result, x0, eps, z = one_step(create_solver("stable-refresh", scale=scale, decay=decay), LinearPath(), t, after)
    taken = min((t - after) * scale * after**decay, after)
    noise = math.sqrt(after**2 - (after - taken) ** 2)
    wanted = (1 - after) * x0 + (after - taken) * eps + noise * z
    torch.testing.assert_close(result, wanted, rtol=1e-10, atol=1e-10)
    result, x0, eps, z = one_step(create_solver("stable-refresh", scale=1e6), LinearPath(), t, after)
    torch.testing.assert_close(result, (1 - after) * x0 + after * z, rtol=1e-10, atol=1e-10)  # all of it


@pytest.mark.parametrize("overshoot", [0.5, 1.0, 20.0])
def test_overshooting(overshoot: float) -> None:
    """ODE to t_o, scale by a(t')/a(t_o), add noise to match b(t'): in the time of the paper, data at 1."""
    t, after = 0.4, 0.5
    beyond = min(after + overshoot * (after - t) * (1 - after), 1.0)
    result, x0, eps, z = one_step(create_solver("overshooting", overshoot=overshoot), LinearPath(), 1 - t, 1 - after)
    state = beyond * x0 + (1 - beyond) * eps
    ratio = after / beyond
    noise = math.sqrt((1 - after) ** 2 - (ratio * (1 - beyond)) ** 2)
    torch.testing.assert_close(result, ratio * state + noise * z, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_stochastic_curved_euler(path: Path) -> None:
    alpha, sigma = path.alpha(0.5), path.sigma(0.5)
    solver = create_solver("stochastic-curved-euler", replaced=0.3, reference_step=None)
    result, x0, eps, z = one_step(solver, path, 0.6, 0.5)
    wanted = alpha * x0 + sigma * (0.7 * eps + math.sqrt(1 - 0.7**2) * z)
    torch.testing.assert_close(result, wanted, rtol=1e-10, atol=1e-10)
    result, x0, eps, z = one_step(create_solver("stochastic-curved-euler"), path, 0.6, 0.5)
    kept = path.noise_level(0.5) / path.noise_level(0.6)
    wanted = alpha * x0 + sigma * (kept * eps + math.sqrt(1 - kept**2) * z)
    torch.testing.assert_close(result, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("refresh", {"replaced": 0.0}),
        ("stable-refresh", {"scale": 0.0}),
        ("overshooting", {"overshoot": 0.0}),
        ("stochastic-curved-euler", {"replaced": 0.0}),
        ("curved-euler", {}),
    ],
)
def test_without_noise_they_are_euler_to_the_bit(gaussian_model, name: str, options: dict) -> None:
    for path in PATHS:
        x, times = path.prior_std * torch.randn(3, 4), time_grid(path, 6)
        result = sample(gaussian_model(path), x, times, create_solver(name, **options))
        assert torch.equal(result, sample(gaussian_model(path), x, times, "euler"))


@pytest.mark.parametrize(("name", "options"), SAMPLERS)
def test_config_round_trip(name: str, options: dict) -> None:
    solver = create_solver(name, **options)
    again = create_solver(**solver.to_config())
    assert again.to_config() == solver.to_config()
    for key, value in options.items():
        assert getattr(again, key) == value


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("refresh", {"replaced": 1.5}, "replaced: got 1.5"),
        ("refresh", {"reference_step": 0.0}, "reference_step: got 0.0"),
        ("stable-refresh", {"scale": -1.0}, "scale: got -1.0"),
        ("overshooting", {"overshoot": math.nan}, "overshoot: got nan"),
        ("overshooting", {"c": 1.0}, "option 'c' is not known"),
        ("stochastic-curved-euler", {"replaced": "ddmp"}, "'ddmp' is not known"),
    ],
)
def test_bad_input(name: str, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_solver(name, **options)
