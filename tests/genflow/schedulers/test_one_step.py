"""The student's scheduler: closed forms of its steps, its levels, and what it refuses."""

import diffusers
import numpy as np
import pytest
import torch

from genflow.errors import InputError
from genflow.prediction import Prediction
from genflow.schedulers import OneStepScheduler, RectifiedFlowScheduler, create_scheduler

CONFIGS = {
    "flow": {"shift": 3.0},
    "beta": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "edm": {"sigma_data": 0.5, "sigma_max": 80.0},
}
LEVELS = [1.0, 0.6, 0.25]


def seeds(count):
    return [torch.Generator().manual_seed(50 + index) for index in range(count)]


@pytest.mark.parametrize("family", CONFIGS)
def test_steps_by_hand(family, lab):
    """``x' = alpha' x0 + sigma' z`` with each image's own z, and x0 itself in the end."""
    scheduler = OneStepScheduler(student_times=LEVELS, **CONFIGS[family])
    scheduler.set_timesteps(3)
    assert scheduler.times.tolist() == LEVELS
    assert scheduler.order == 1
    x = scheduler.init_noise_sigma * lab.noise()
    generators, hand = seeds(2), x
    result = lab.run(scheduler, x, generator=generators)
    again = seeds(2)
    for t, t_next in zip(LEVELS, [*LEVELS[1:], 0.0], strict=True):
        timestep = float(scheduler.family.timestep(t))
        output = lab.network(scheduler, hand, timestep)
        x0 = scheduler.family.predict(output, hand, t).x0
        noise = torch.stack([torch.randn(x.shape[1:], generator=g) for g in again]) if t_next else 0.0
        hand = scheduler.path.alpha(t_next) * x0 + scheduler.path.sigma(t_next) * noise
    torch.testing.assert_close(result, hand, rtol=1e-5, atol=1e-5)
    assert torch.equal(generators[0].get_state(), again[0].get_state())  # nothing drawn in the last step


@pytest.mark.parametrize("family", CONFIGS)
def test_a_student_that_knows_the_data_is_exact_in_law(family, lab):
    """Where x0 has the data's law whatever x, as a perfect student's has, every number of steps keeps it."""
    for steps in (1, 2, 3):
        scheduler = OneStepScheduler(student_times=LEVELS, **CONFIGS[family])
        scheduler.set_timesteps(steps)
        x, generators = scheduler.init_noise_sigma * lab.noise(shape=(2, 3, 32, 32)), seeds(2)
        for t, time in zip(scheduler.timesteps, scheduler.times.tolist(), strict=True):
            alpha, sigma = scheduler.path.alpha(time), scheduler.path.sigma(time)
            x0 = x / np.hypot(alpha * lab.std, sigma) * lab.std
            prediction = Prediction(x0, "sample", x, scheduler.path, time)
            x = scheduler.step(prediction, t, x, generator=generators).prev_sample
        assert x.std().item() == pytest.approx(lab.std, rel=0.03)


def test_one_level_draws_nothing_and_gives_the_networks_own_answer(lab):
    scheduler = OneStepScheduler(student_times=[1.0], prediction_type="sample")
    scheduler.set_timesteps(1)
    x, output = lab.noise(), lab.noise(1)
    step = scheduler.step(output, scheduler.timesteps[0], x, generator=None)
    assert torch.equal(step.prev_sample, output)
    assert torch.equal(step.pred_original_sample, output)


def test_more_steps_than_levels_are_refused_and_fewer_are_the_first():
    scheduler = OneStepScheduler(student_times=LEVELS)
    scheduler.set_timesteps(2)
    assert scheduler.times.tolist() == LEVELS[:2]
    with pytest.raises(InputError, match="num_inference_steps: 4, and this student was trained for 3; allowed: 1 to 3"):
        scheduler.set_timesteps(4)
    with pytest.raises(InputError, match="allowed: 1$"):
        OneStepScheduler(student_times=[1.0]).set_timesteps(2)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 3, 3))  # as Flux's pipeline asks
    assert scheduler.times.tolist() == LEVELS
    scheduler.set_timesteps(timesteps=[900.0, 100.0])
    np.testing.assert_allclose(scheduler.times, [0.9, 0.1])


@pytest.mark.parametrize("levels", [[], [0.0], [1.0, 1.0], [0.5, 1.0], [1.5], [float("nan")], [True]])
def test_bad_levels(levels):
    with pytest.raises(InputError, match="student_times"):
        OneStepScheduler(student_times=levels)


def test_levels_survive_saving_and_another_scheduler(tmp_path):
    scheduler = OneStepScheduler.from_config(
        diffusers.DDIMScheduler(beta_schedule="scaled_linear").config, student_times=np.array(LEVELS)
    )
    scheduler.save_pretrained(tmp_path)
    loaded = OneStepScheduler.from_pretrained(tmp_path)
    assert loaded.config.student_times == LEVELS
    assert loaded.family.name == "beta"
    euler = RectifiedFlowScheduler.from_config(loaded.config)
    euler.set_timesteps(9)
    assert create_scheduler("one-step", euler.config).config.student_times == LEVELS


def test_refuses_noise_that_is_not_gaussian_by_name():
    scheduler = OneStepScheduler(sigma_data=0.5, sigma_max=80.0, D=128, student_times=[1.0])
    with pytest.raises(InputError, match="adds Gaussian noise"):
        scheduler.set_timesteps(1)
