"""Faults that others' samplers had, as tests of ours: every one names the public issue it comes from."""

import diffusers
import numpy as np
import pytest
import torch

from genflow.schedulers import SCHEDULERS, RectifiedFlowScheduler, StochasticInterpolantScheduler, create_scheduler
from genflow.schedulers.grids import shift_sigmas

FLOW_NAMES = [name for name in SCHEDULERS if name != "pfgm++"]
DIFFUSIONS = ["constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing"]


def seeds(count):
    return [torch.Generator().manual_seed(100 + index) for index in range(count)]  # not those of the start


@pytest.mark.parametrize("name", FLOW_NAMES)
@pytest.mark.parametrize("shift", [0.5, 3.0, 7.0])
def test_the_shift_is_applied_once(name, shift, tmp_path):
    """diffusers 13243: the grid's ends were stored after the shift and shifted again by set_timesteps."""
    scheduler = create_scheduler(name, shift=shift, timestep_spacing="linspace")
    expected = shift_sigmas(np.linspace(1, 1 / 1000, 8), shift)
    scheduler.save_pretrained(tmp_path)
    copies = (scheduler, type(scheduler).from_pretrained(tmp_path), type(scheduler).from_config(scheduler.config))
    for copy in copies:
        for _ in range(2):  # a second call shifts no more than the first
            copy.set_timesteps(8)
            opening = np.flatnonzero(np.diff(copy.step_of, prepend=-1))
            np.testing.assert_allclose(copy.sigmas[opening].numpy(), expected, rtol=1e-5)
            np.testing.assert_allclose(copy.timesteps[opening].numpy(), 1000 * expected, rtol=1e-5)


@pytest.mark.parametrize("name", FLOW_NAMES)
def test_custom_timesteps_and_sigmas_agree_under_a_shift(name):
    """diffusers 14013: with a shift other than 1, given timesteps stood for other sigmas than the step used."""
    scheduler = create_scheduler(name, shift=3.0)
    scheduler.set_timesteps(timesteps=[1000.0, 750.0, 400.0, 100.0])
    np.testing.assert_allclose(scheduler.timesteps.numpy(), 1000 * scheduler.sigmas[:-1].numpy(), rtol=1e-6)
    assert {1000.0, 750.0, 400.0, 100.0} <= set(scheduler.timesteps.tolist())
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.4, 0.1])
    np.testing.assert_allclose(scheduler.timesteps.numpy(), 1000 * scheduler.sigmas[:-1].numpy(), rtol=1e-6)
    shifted = shift_sigmas(np.array([1.0, 0.75, 0.4, 0.1]), 3.0)
    np.testing.assert_allclose(np.unique(scheduler.sigmas[:-1].numpy())[-1], shifted[0], rtol=1e-6)


def test_image_to_image_adds_the_noise_of_the_step_it_begins_with(combo, lab):
    """diffusers pull 5746: with a timestep that stands twice in the schedule (Heun) the wrong sigma was picked."""
    scheduler = combo.make()
    scheduler.set_timesteps(6)
    clean, noise = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    for step in range(6):
        begin = step * scheduler.order
        latent = scheduler.add_noise(clean, noise, scheduler.timesteps[begin : begin + 1].repeat(2))
        expected = scheduler.path.sigma(float(scheduler.times[begin]))
        torch.testing.assert_close(latent, expected * noise, rtol=1e-4, atol=1e-6)
        # the schedule's first entry, as pipelines pass it; with no begin index the second of two equal ones opens
        later = scheduler.timesteps[begin:]
        result = lab.run(scheduler, latent, begin, seeds(2))
        assert scheduler.step_index == begin + len(later)
        assert torch.isfinite(result).all()
        scheduler.set_timesteps(6)


@pytest.mark.parametrize("bend", [{}, {"use_karras_sigmas": True}, {"timestep_spacing": "trailing"}])
def test_no_two_steps_share_a_timestep(bend):
    """diffusers pull 5746, the other cause: levels close to each other rounded to one timestep."""
    scheduler = create_scheduler("euler", beta_schedule="scaled_linear", **bend)
    scheduler.set_timesteps(200)
    assert len(set(scheduler.timesteps.tolist())) == 200


@pytest.mark.parametrize("name", FLOW_NAMES)
def test_flow_models_work_with_every_rule_and_with_custom_sigmas(name, lab):
    """diffusers 9971 and 11907: DEIS made white images of Flux, DPM-Solver++ and UniPC took no sigmas."""
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler = create_scheduler(name, theirs.config)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 30, 30), mu=0.8)  # the call of Flux's pipeline
    assert scheduler.num_inference_steps == 30
    x = lab.noise(shape=(2, 4, 16, 16))
    result = lab.run(scheduler, x, generator=seeds(2))
    if scheduler.make_solver().stochastic:
        # means of means, of which a student is none, have no spread to speak of
        assert (0.5 if name == "one-step" else 0.7) < result.std().item() / lab.std < 1.1
    else:
        assert (result - lab.exact(scheduler, x)).abs().mean() < 0.07 * lab.std


def test_the_noise_is_that_of_the_timestep_the_network_sees(combo, lab):
    """diffusers 8549: SD3's stochastic sampling raised the noise after the network's call, so that the timestep it was
    told was not that of the sample. Data are one point here, so the state's noise can be read off."""
    scheduler = combo.make()
    scheduler.set_timesteps(24)
    x = scheduler.init_noise_sigma * lab.noise(shape=(2, 3, 40, 40))
    generators = seeds(2)
    for i, t in enumerate(scheduler.timesteps):
        time = float(scheduler.times[i])
        if scheduler.step_of[i] < 20:  # the last levels are far apart, which first order shows
            noise = (x - 0.3 * scheduler.path.alpha(time)).std().item()
            assert noise == pytest.approx(scheduler.path.sigma(time), rel=0.25), (i, time)
        prediction = scheduler.predict(torch.zeros_like(x), t, x).replace(torch.full_like(x, 0.3))
        x = scheduler.step(prediction, t, x, generator=generators).prev_sample
    assert (x - 0.3).abs().max() < 1e-3


def test_the_last_step_ends_in_the_predicted_image(combo, lab):
    """k-diffusion 43 and 85, diffusers 6295: DPM-Solver++'s second-order last step, from the lowest level to 0,
    extrapolated in log-SNR, which has no end there, and left speckles. A last step of one evaluation gives the
    prediction itself, or extrapolates on a clock that ends."""
    for steps in (2, 5, 12):
        scheduler = combo.make()
        scheduler.set_timesteps(steps)
        x = scheduler.init_noise_sigma * lab.noise()
        last = int((scheduler.step_of == scheduler.step_of[-1]).sum())
        for t in scheduler.timesteps:
            rough = torch.sin(37 * x)  # no smooth function of the state
            output = scheduler.step(rough, t, x, generator=seeds(2))
            x = output.prev_sample
        if combo.name in ("ab", "abm", "hb", "ghvb"):  # their clocks are finite at 0, where they keep their order
            # abm's last step carries the correction of the one before: half of what two slopes differ by
            assert (x - output.pred_original_sample).abs().max() < (3 if combo.name == "abm" else 1)
        elif last == 1:
            torch.testing.assert_close(x, output.pred_original_sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spacing", [{}, {"use_karras_sigmas": True}])
@pytest.mark.parametrize("name", ["ab", "abm", "dpm++", "hb", "ghvb"])
def test_few_steps_do_not_overshoot_narrow_data(name, spacing, lab, monkeypatch):
    """k-diffusion 43 and 85: at few steps the higher orders were worse than the first near the end."""
    monkeypatch.setattr(lab, "std", 0.05)
    errors = []
    for one in (name, "euler"):
        scheduler = create_scheduler(one, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, **spacing)
        scheduler.set_timesteps(8)
        x = lab.noise(dtype=torch.float64)
        errors.append((lab.run(scheduler, x) - lab.exact(scheduler, x)).abs().mean().item())
    assert errors[0] < 1.1 * errors[1]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_steps_are_what_was_asked_for(name):
    """SiT 21: num-sampling-steps counted grid points, not evaluations."""
    scheduler = create_scheduler(name, sigma_data=0.5, sigma_max=80.0)
    for steps in (1, 2, 7):
        scheduler.set_timesteps(steps)
        assert scheduler.num_inference_steps == steps == scheduler.step_of[-1] + 1
        if scheduler.order == 1:
            assert len(scheduler.timesteps) == steps
        else:  # the last step to 0 asks fewer times
            assert scheduler.order * (steps - 1) < len(scheduler.timesteps) < scheduler.order * steps


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
@pytest.mark.parametrize("config", [{}, {"beta_schedule": "linear"}, {"interpolant": "GVP"}, {"shift": 3.0}])
@pytest.mark.parametrize("last_step", [None, "mean", "tweedie", "euler"])
def test_no_sde_gives_nan(diffusion, config, last_step, lab):
    """SiT 21: the SDE sampler gave NaN at the ends, where the score and sbdm's coefficient are singular."""
    for solver in ("sde-euler", "sde-heun", "sde-exponential"):
        scheduler = StochasticInterpolantScheduler(diffusion=diffusion, last_step=last_step, solver=solver, **config)
        for steps in (1, 2, 10):
            scheduler.set_timesteps(steps)
            x = scheduler.init_noise_sigma * lab.noise()
            assert torch.isfinite(lab.run(scheduler, x, generator=seeds(2))).all(), (solver, steps)


def test_the_same_generator_gives_the_same_image_and_another_one_another(combo, lab):
    """SiT 14: samples of the SDE could not be made again."""
    if not combo.stochastic:
        pytest.skip("draws nothing")
    results = []
    for seed in (1, 1, 2):
        scheduler = combo.make()
        scheduler.set_timesteps(5)
        x = scheduler.init_noise_sigma * lab.noise()
        results.append(lab.run(scheduler, x, generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2], atol=1e-3)


def test_odd_sizes_and_videos(combo, lab):
    """diffusers 3116: a stochastic scheduler's noise did not fit latents with odd sides."""
    for shape in ((1, 4, 7, 5), (2, 3, 3, 5, 7), (3, 11)):
        scheduler = combo.make()
        scheduler.set_timesteps(3)
        x = scheduler.init_noise_sigma * lab.noise(shape=shape)
        assert lab.run(scheduler, x, generator=seeds(shape[0])).shape == shape


def test_a_schedule_may_be_made_longer_or_shorter_between_runs(lab):
    """No state of an earlier run, of another length, shape or dtype, reaches the next."""
    for name in SCHEDULERS:
        scheduler, fresh = (create_scheduler(name, sigma_data=0.5, sigma_max=80.0) for _ in range(2))
        scheduler.set_timesteps(9)
        lab.run(scheduler, 80 * lab.noise(3, (4, 1, 6, 6), torch.float64)[:, :, :5], generator=seeds(4))
        for one in (scheduler, fresh):
            one.set_timesteps(4)
        x = 80 * lab.noise()
        assert torch.equal(lab.run(scheduler, x, generator=seeds(2)), lab.run(fresh, x, generator=seeds(2))), name


def test_noise_of_shape_and_seed_is_one_image_whatever_else_is_in_the_batch():
    """One generator an image, also where the scheduler draws: the image of seed 1 does not depend on its neighbours."""
    images = []
    for batch in ([1], [0, 1, 2]):
        scheduler = RectifiedFlowScheduler(solver="overshooting")
        scheduler.set_timesteps(4)
        generators = [torch.Generator().manual_seed(seed) for seed in batch]
        x = torch.stack([torch.randn(4, 6, 6, generator=generator) for generator in generators])
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(x), t, x, generator=generators).prev_sample
        images.append(x[batch.index(1)])
    torch.testing.assert_close(images[0], images[1], rtol=1e-6, atol=1e-6)
