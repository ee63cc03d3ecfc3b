"""Our schedulers against diffusers' own, on the same network outputs."""

import diffusers
import numpy as np
import pytest
import torch

from genflow.schedulers import RectifiedFlowScheduler, create_scheduler

SHAPE = (2, 3, 4, 4)


def network(x, timestep):
    """A smooth nonlinear function of state and timestep, the same for both schedulers."""
    return torch.tanh(x * 0.7 + float(timestep) / 1500) + 0.1 * x


def run(scheduler, steps, start=None, **kwargs):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=generator) if start is None else start
    scheduler.set_timesteps(steps, **kwargs)
    for t in scheduler.timesteps:
        scale = getattr(scheduler, "scale_model_input", lambda sample, t: sample)
        x = scheduler.step(network(scale(x, t), t), t, x, return_dict=False)[0]
    return x


FLOWS = [{}, {"use_dynamic_shifting": True}, {"use_dynamic_shifting": True, "time_shift_type": "linear"}]
FLOWS += [{"shift_terminal": 0.1}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}]
FLOWS += [{"use_beta_sigmas": True}]


@pytest.mark.parametrize("config", FLOWS)
@pytest.mark.parametrize("steps", [2, 7])
def test_flow_match_euler(config, steps):
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    ours = RectifiedFlowScheduler.from_config(theirs.config, timestep_spacing="linspace")
    kwargs = {"mu": 0.8} if config.get("use_dynamic_shifting") else {}
    expected, got = run(theirs, steps, **kwargs), run(ours, steps, **kwargs)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_flow_match_euler_with_a_pipelines_own_sigmas():
    """What SD3 and Flux do: unshifted sigmas, which the scheduler shifts once."""
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    ours = RectifiedFlowScheduler.from_config(theirs.config)
    sigmas = np.linspace(1, 1 / 6, 6).tolist()
    expected, got = run(theirs, None, sigmas=sigmas), run(ours, None, sigmas=sigmas)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_flow_match_heun(steps):
    theirs = diffusers.FlowMatchHeunDiscreteScheduler()
    ours = RectifiedFlowScheduler.from_config(theirs.config, solver="heun", timestep_spacing="linspace")
    expected, got = run(theirs, steps), run(ours, steps)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)  # theirs divides by sigma = 0.001 in float32


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("spacing", [{"timestep_spacing": "trailing"}, {"steps_offset": 1, "set_alpha_to_one": False}])
def test_ddim(prediction_type, schedule, spacing):
    theirs = diffusers.DDIMScheduler(
        clip_sample=False, beta_schedule=schedule, prediction_type=prediction_type, **spacing
    )
    ours = RectifiedFlowScheduler.from_config(theirs.config)
    expected, got = run(theirs, 10), run(ours, 10)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    # alphas_cumprod is float64 here and a float32 product there, which shows where alpha is nearly 0
    torch.testing.assert_close(got, expected, rtol=2e-3, atol=2e-3 if schedule == "squaredcos_cap_v2" else 2e-4)


def test_ddim_with_zero_terminal_snr():
    theirs = diffusers.DDIMScheduler(
        clip_sample=False, rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"
    )
    ours = RectifiedFlowScheduler.from_config(theirs.config)
    expected, got = run(theirs, 8), run(ours, 8)
    assert ours.sigmas[0] == float("inf")
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_cogvideox_shift_of_the_snr():
    theirs = diffusers.CogVideoXDDIMScheduler(
        clip_sample=False, rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"
    )
    ours = RectifiedFlowScheduler.from_config(theirs.config)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod.float(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(run(ours, 8), run(theirs, 8).float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("config", [{"timestep_spacing": "trailing"}, {"use_karras_sigmas": True}])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_euler_discrete_in_its_own_coordinates(config, prediction_type):
    """EulerDiscrete carries x / alpha; the last step lands on the denoised image in both."""
    theirs = diffusers.EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction_type, **config
    )
    ours = RectifiedFlowScheduler.from_config(theirs.config)
    theirs.set_timesteps(10)
    ours.set_timesteps(10)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-4, atol=1e-5)
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    noise_level = float(theirs.sigmas[0])
    expected = run(theirs, 10, start=start * (1 + noise_level**2) ** 0.5)
    torch.testing.assert_close(run(ours, 10, start=start), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("config", [{}, {"sigma_schedule": "exponential"}, {"prediction_type": "v_prediction"}])
def test_edm_euler(config):
    theirs = diffusers.EDMEulerScheduler(**config)
    ours = RectifiedFlowScheduler.from_config(theirs.config)
    start = 80 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    expected, got = run(theirs, 9, start=start), run(ours, 9, start=start)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got, expected.float(), rtol=1e-4, atol=1e-4)


def test_stable_video_diffusion_is_edm_with_unit_data():
    theirs = diffusers.EulerDiscreteScheduler(
        prediction_type="v_prediction", timestep_type="continuous", sigma_min=0.002, sigma_max=700.0,
        use_karras_sigmas=True,
    )  # fmt: skip
    ours = RectifiedFlowScheduler.from_config(theirs.config)
    assert ours.family.name == "edm"
    start = 700 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    expected, got = run(theirs, 9, start=start), run(ours, 9, start=start)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_add_noise_of_a_beta_schedule(name):
    theirs = getattr(diffusers, name)(beta_schedule="scaled_linear")
    ours = RectifiedFlowScheduler.from_config(diffusers.DDPMScheduler(beta_schedule="scaled_linear").config)
    x, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([3, 700])
    expected = theirs.add_noise(x, noise, timesteps)
    if name == "EulerDiscreteScheduler":
        expected = expected * theirs.alphas_cumprod[timesteps].sqrt()[:, None, None, None]
    torch.testing.assert_close(ours.add_noise(x, noise, timesteps), expected, rtol=1e-4, atol=1e-5)


def timeless(x, timestep):
    """A network that sees the state alone: the peers below round the timesteps that they tell it."""
    return torch.tanh(x * 0.7) + 0.1 * x


DPM = [
    {"timestep_spacing": "trailing"},
    {"use_karras_sigmas": True},
    {"use_lu_lambdas": True},
    {"use_exponential_sigmas": True},
    {"use_karras_sigmas": True, "prediction_type": "v_prediction"},
    {"use_karras_sigmas": True, "prediction_type": "sample"},
    {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"},
]


@pytest.mark.parametrize("config", DPM)
@pytest.mark.parametrize("steps", [6, 20])
def test_dpm_solver_pp(config, steps, monkeypatch):
    monkeypatch.setitem(globals(), "network", timeless)
    theirs = diffusers.DPMSolverMultistepScheduler(beta_schedule="scaled_linear", **config)
    ours = create_scheduler("dpm++", theirs.config)
    expected, got = run(theirs, steps), run(ours, steps)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(got, expected, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("bend", [{}, {"use_karras_sigmas": True}])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_heun_discrete_in_its_own_coordinates(bend, prediction_type, monkeypatch):
    """HeunDiscrete carries x / alpha, as Euler's does."""
    monkeypatch.setitem(globals(), "network", timeless)
    theirs = diffusers.HeunDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction_type, **bend
    )
    ours = create_scheduler("heun", theirs.config)
    theirs.set_timesteps(9)
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    expected = run(theirs, 9, start=start * (1 + float(theirs.sigmas[0]) ** 2) ** 0.5)
    torch.testing.assert_close(run(ours, 9, start=start), expected, rtol=2e-3, atol=2e-3)
