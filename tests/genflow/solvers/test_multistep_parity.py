"""The same steps as the papers' own recursions and as diffusers' multistep schedulers."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    IPNDMScheduler,
    LMSDiscreteScheduler,
    SchedulerMixin,
)
from torch import Tensor

from genflow.models import from_function
from genflow.paths import LinearPath, Path, TrigonometricPath, VPPath
from genflow.sampling import sample
from genflow.solvers import GHVB, HB, AdamsBashforth, DPMSolverPP

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TABLE = VPPath.from_alphas_cumprod(EulerDiscreteScheduler(**SD).alphas_cumprod.double())
GAMMA = [1, 1 / 2, 5 / 12, 3 / 8, 251 / 720]


def network(x: Tensor, level: float) -> Tensor:
    """Any nonlinear function of state and noise level does."""
    return torch.tanh(x.roll(1, dims=-1) * (0.5 + level / (1 + level))) + 0.3 * x


def noise() -> Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def differences(history: list[Tensor], order: int) -> list[Tensor]:
    """Backward differences of a newest-last history, as many as the order and the history allow."""
    result = [history[-1]]
    row = history[-order:]
    while len(row) > 1:
        row = [b - a for a, b in pairwise(row)]
        result.append(row[-1])
    return result


def adams_bashforth(history: list[Tensor], order: int) -> Tensor:
    return sum(g * d for g, d in zip(GAMMA, differences(history, order), strict=False))


def by_the_page(rule: str, order: float, beta: float, path: Path, times: np.ndarray) -> Tensor:
    """HB, GHVB and the Nesterov variant as the paper writes them, on x / alpha over the noise level."""
    x, slopes, velocities = path.prior_std * noise(), [], []
    levels = path.noise_level(times)
    for n in range(len(times) - 1):
        slopes.append(network(x, levels[n]))
        k = int(np.ceil(order))
        if rule == "ghvb":
            v = slopes[-1] if not velocities else (1 - beta) * velocities[-1] + beta * slopes[-1]
            velocities.append(v)
            weights = [GAMMA[j] + ((1 - beta) / beta * GAMMA[j - 1] if j else 0) for j in range(k)]
            step = sum(w * d for w, d in zip(weights, differences(velocities, k), strict=False))
        else:
            p = adams_bashforth(slopes, k)
            v = p if not velocities else (1 - beta) * velocities[-1] + beta * p
            velocities.append(v)
            step = (1 - beta) * v + beta * p if rule == "nesterov" else v
        a, b = path.alpha(float(times[n])), path.alpha(float(times[n + 1]))
        x = b * (x / a + (levels[n + 1] - levels[n]) * step)
    return x


@pytest.mark.parametrize("beta", [0.9, 0.6, 0.3])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("rule", ["ghvb", "heavy-ball", "nesterov"])
def test_momentum_is_the_papers(rule: str, k: int, beta: float) -> None:
    times = np.append((np.linspace(999, 20, 12).round() + 1) / 1000, 1 / 1000)
    expected = by_the_page(rule, k - 1 + beta if rule == "ghvb" else k, beta, TABLE, times)
    solver = GHVB(k - 1 + beta, "epsilon") if rule == "ghvb" else HB(k, beta, "ab", rule, "epsilon")
    model = from_function(lambda x, t: network(x, TABLE.noise_level(t)), TABLE, "epsilon")
    result = sample(model, TABLE.prior_std * noise(), times, solver)
    torch.testing.assert_close(result, expected, rtol=1e-8, atol=1e-8 * expected.abs().max().item())


@pytest.mark.parametrize("beta", [1.0, 0.8])
def test_momentum_around_dpm_solver_pp_is_the_papers(beta: float) -> None:
    """Only second-order steps carry momentum; the last step, to 0, is first order."""
    times = np.append((np.linspace(999, 20, 16).round() + 1) / 1000, 0.0)
    log = np.log(1 / TABLE.noise_level(times[:-1]))
    x, outputs, velocity = TABLE.prior_std * noise(), [], None
    for n in range(len(times) - 1):
        outputs.append(network(x, TABLE.noise_level(float(times[n]))))
        slope = outputs[-1]
        h = log[n + 1] - log[n] if n + 1 < len(log) else np.inf
        if 0 < n < len(times) - 2:
            slope = slope + (outputs[-1] - outputs[-2]) * h / (2 * (log[n] - log[n - 1]))
            velocity = slope if velocity is None else (1 - beta) * velocity + beta * slope
            slope = velocity
        alpha, sigma = TABLE.alpha(float(times[n + 1])), TABLE.sigma(float(times[n + 1]))
        x = sigma / TABLE.sigma(float(times[n])) * x - alpha * np.expm1(-h) * slope
    model = from_function(lambda x, t: network(x, TABLE.noise_level(t)), TABLE, "sample")
    result = sample(model, TABLE.prior_std * noise(), times, HB(2, beta, "dpm++"))
    torch.testing.assert_close(result, x, rtol=1e-9, atol=1e-9)


def reference(scheduler: SchedulerMixin, steps: int, level: object) -> tuple[Tensor, np.ndarray]:
    """The scheduler's own run, and its sigmas in float64."""
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double().numpy()
    x = noise() * (scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else 1.0)
    for sigma, timestep in zip(sigmas, scheduler.timesteps, strict=False):
        scaled = scheduler.scale_model_input(x, timestep)
        x = scheduler.step(network(scaled, level(sigma)), timestep, x).prev_sample
    return x, sigmas


@pytest.mark.parametrize("steps", [4, 10, 14, 15, 24])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize(
    "config",
    [
        SD,
        {**SD, "use_karras_sigmas": True},
        {**SD, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {**SD, "final_sigmas_type": "sigma_min"},
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
    ],
    ids=lambda c: list(c)[-1],
)
def test_dpm_solver_pp_is_diffusers(config: dict, order: int, steps: int) -> None:
    """2M midpoint and 3M with the defaults: lower order at the end of a short run, and where the last sigma is 0."""
    scheduler = DPMSolverMultistepScheduler(solver_order=order, **config)
    flow = "flow_shift" in config
    expected, sigmas = reference(scheduler, steps, (lambda s: s / (1 - s)) if flow else lambda s: s)
    path = LinearPath() if flow else TABLE
    times = sigmas if flow else path.time(sigmas)
    model = from_function(lambda x, t: network(x, path.noise_level(t)), path, scheduler.config.prediction_type)
    result = sample(model, noise(), times, DPMSolverPP(order))
    torch.testing.assert_close(result, expected, rtol=2e-4, atol=2e-4 * expected.abs().max().item())


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("karras", [False, True])
def test_matched_weights_in_the_epsilon_frame_are_the_linear_multistep_rule(order: int, karras: bool) -> None:
    """k-diffusion's LMS, on x / alpha; diffusers integrates its weights by quadrature to 1e-4."""
    scheduler = LMSDiscreteScheduler(use_karras_sigmas=karras, **SD)
    scheduler.set_timesteps(12)
    sigmas = scheduler.sigmas.double().numpy()
    x = noise() * float(sigmas[0])
    for sigma, timestep in zip(sigmas, scheduler.timesteps, strict=False):
        scaled = scheduler.scale_model_input(x, timestep)
        x = scheduler.step(network(scaled, sigma), timestep, x, order=order).prev_sample
    times = np.minimum(TABLE.time(sigmas), 1.0)
    model = from_function(lambda x, t: network(x, TABLE.noise_level(t)), TABLE, "epsilon")
    start = noise() * float(sigmas[0]) * TABLE.alpha(float(times[0]))
    result = sample(model, start, times, AdamsBashforth(order, "epsilon", "matched"))
    torch.testing.assert_close(result, x, rtol=2e-3, atol=2e-3 * x.abs().max().item())


def test_published_weights_in_the_epsilon_frame_are_ipndm() -> None:
    """Zhang and Chen's iPNDM: Adams-Bashforth of order 4 with a warm-up of lower orders, on a trigonometric path."""
    path = TrigonometricPath()
    scheduler = IPNDMScheduler()
    scheduler.set_timesteps(12)
    x = noise()
    timesteps = scheduler.timesteps[1:]  # its first, at pure noise, takes x0 = 0 whatever the network says
    for timestep in timesteps:
        x = scheduler.step(network(x, 2 * timestep.item()), timestep, x).prev_sample
    times = np.append(timesteps.double().numpy(), 0.0)
    model = from_function(lambda x, t: network(x, 2 * t), path, "v_prediction")
    result = sample(model, noise(), times, AdamsBashforth(4, "epsilon"))
    torch.testing.assert_close(result, x, rtol=1e-3, atol=1e-3)
