"""The SDE scheduler: SiT's grid and evaluations, its own networks, options, configs, bad input.

What every scheduler has to do (prediction types, dtypes, seeds, img2img, saving) is in test_every_scheduler.py.
"""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genflow.errors import InputError
from genflow.prediction import Prediction
from genflow.schedulers import RectifiedFlowScheduler, StochasticInterpolantScheduler, create_scheduler
from genflow.solvers import DIFFUSIONS

FLOW = {"shift": 1.0}
BETA = {"beta_schedule": "linear"}
SIT = {"interpolant": "Linear", "reversed_time": True}
MEAN, STD = 0.7, 0.5


def exact_output(scheduler, x, timestep):
    """What an exact network for normal(0.7, 0.5^2) data answers, in the scheduler's own words."""
    t = float(scheduler.family.time(float(timestep)))
    alpha, sigma = scheduler.path.alpha(t), scheduler.path.sigma(t)
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    x0 = MEAN + gain * (x - alpha * MEAN)
    return scheduler.family.model_output(Prediction(x0, "sample", x, scheduler.path, t))


def run(scheduler, x, seed=0):
    generators = [torch.Generator().manual_seed(seed + row) for row in range(len(x))]
    for t in scheduler.timesteps:
        x = scheduler.step(exact_output(scheduler, x, t), t, x, generator=generators).prev_sample
    return x


@pytest.mark.parametrize("config", [FLOW, BETA, SIT, {**SIT, "interpolant": "GVP"}, {**SIT, "interpolant": "VP"}])
@pytest.mark.parametrize(("solver", "evaluations"), [("sde-euler", 250), ("sde-exponential", 250), ("sde-heun", 499)])
def test_steps_are_network_evaluations(config, solver, evaluations):
    """SiT issue 21: what is asked for is what the network is called, the last step included."""
    scheduler = StochasticInterpolantScheduler(solver=solver, last_step_size=0.04, **config)
    scheduler.set_timesteps(250)
    assert scheduler.num_inference_steps == 250
    assert len(scheduler.timesteps) == evaluations
    assert scheduler.times[-1] == pytest.approx(0.04)
    calls = 0
    x = scheduler.init_noise_sigma * torch.randn(1, 3)
    for t in scheduler.timesteps:
        calls += 1
        x = scheduler.step(exact_output(scheduler, x, t), t, x).prev_sample
    assert calls == evaluations
    with pytest.raises(InputError, match="run of"):
        scheduler.step(x, t, x)


def test_sits_grid():
    """SiT: num_steps points from 0 to 1 - 0.04 in its time, a step between each two, and the last step of 0.04."""
    scheduler = StochasticInterpolantScheduler(last_step="mean", last_step_size=0.04, **SIT)
    scheduler.set_timesteps(250)
    np.testing.assert_allclose(scheduler.timesteps.double().numpy(), np.linspace(0, 0.96, 250), atol=1e-7)
    whole = StochasticInterpolantScheduler(**SIT)
    whole.set_timesteps(4)
    assert whole.times.tolist() == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(
    ("solver", "last_step"),
    [*(("sde-euler", rule) for rule in ("mean", "tweedie", "euler", None)), ("sde-heun", "tweedie")],
)
@pytest.mark.parametrize("diffusion", DIFFUSIONS)
@pytest.mark.parametrize("interpolant", ["Linear", "GVP", "VP"])
def test_sits_networks_give_the_data(interpolant, diffusion, solver, last_step):
    """Velocities in SiT's time and direction, from pure noise, never NaN: mean and deviation of the data."""
    scheduler = StochasticInterpolantScheduler(
        diffusion=diffusion,
        solver=solver,
        last_step=last_step,
        last_step_size=0.02,
        interpolant=interpolant,
        reversed_time=True,
    )
    scheduler.set_timesteps(100)
    x = run(scheduler, torch.randn(2, 3000, generator=torch.Generator().manual_seed(5)))
    assert x.mean().item() == pytest.approx(MEAN, abs=0.05)
    # without a last rule the noise of a last step of 0.02 stays: up to 2 D h = 0.04 for D = 1
    assert x.std().item() == pytest.approx(STD, abs=0.06 if last_step else 0.1)


def test_sits_velocity_points_to_the_data():
    """On SiT's linear path the network answers x0 - eps at t = 1 - ours."""
    x0, eps = torch.randn(2, 4, 3)
    scheduler = StochasticInterpolantScheduler(norm=0.0, **SIT)
    scheduler.set_timesteps(5)
    x = eps
    for i, t in enumerate(scheduler.timesteps):
        assert float(t) == pytest.approx(i / 5)
        x = scheduler.step(x0 - eps, t, x).prev_sample
    torch.testing.assert_close(x, x0)


@pytest.mark.parametrize("kind", ["epsilon", "score"])
@pytest.mark.parametrize("interpolant", ["Linear", "GVP", "VP"])
def test_networks_of_noise_start_beside_pure_noise(interpolant, kind):
    """SiT's interval for networks that say nothing where alpha is 0; VP has some data left there."""
    scheduler = StochasticInterpolantScheduler(interpolant=interpolant, reversed_time=True, prediction_type=kind)
    scheduler.set_timesteps(50)
    assert scheduler.times[0] == pytest.approx(1.0 if interpolant == "VP" else 0.999)
    x = run(scheduler, torch.randn(2, 3000, generator=torch.Generator().manual_seed(5)))
    assert x.std().item() == pytest.approx(STD, abs=0.06)


@pytest.mark.parametrize("solver", ["sde-euler", "sde-heun", "sde-exponential"])
@pytest.mark.parametrize("config", [FLOW, BETA, SIT])
def test_without_diffusion_it_is_the_ode(config, solver):
    ours = StochasticInterpolantScheduler(norm=0.0, solver=solver, **config)
    ode = RectifiedFlowScheduler(solver="heun" if solver == "sde-heun" else "euler", **config)
    x = torch.randn(2, 3, 4, 4)
    results = []
    for scheduler in (ours, ode):
        scheduler.set_timesteps(7)
        results.append(run(scheduler, scheduler.init_noise_sigma * x))
    assert torch.equal(*results)


def test_the_ode_solvers_are_here_too():
    for solver in ("euler", "heun"):
        ours = StochasticInterpolantScheduler(solver=solver, **FLOW)
        ode = RectifiedFlowScheduler(solver=solver, **FLOW)
        assert ours.order == ode.order
        x = torch.randn(2, 3)
        results = []
        for scheduler in (ours, ode):
            scheduler.set_timesteps(4)
            results.append(run(scheduler, x))
        assert torch.equal(*results)


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
def test_heun_begins_where_a_pipeline_cuts(diffusion):
    """At every multiple of ``order``, after a first step from an infinite D too (sbdm at pure noise)."""
    scheduler = StochasticInterpolantScheduler(solver="sde-heun", diffusion=diffusion, **FLOW)
    for step in range(4):
        scheduler.set_timesteps(4)
        scheduler.set_begin_index(2 * step)
        x = torch.randn(2, 3)
        for t in scheduler.timesteps[2 * step :]:
            x = scheduler.step(exact_output(scheduler, x, t), t, x).prev_sample
        assert torch.isfinite(x).all()


def test_seeds():
    """Same generators, same images; other generators, other images; each image by its own."""
    scheduler = StochasticInterpolantScheduler(**FLOW)
    x = torch.randn(3, 2, 4, 4)
    results = []
    for seed, rows in ((0, slice(None)), (0, slice(None)), (7, slice(None)), (1, slice(1, 2))):
        scheduler.set_timesteps(6)
        results.append(run(scheduler, x[rows], seed))
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2])
    torch.testing.assert_close(results[3], results[0][1:2], rtol=1e-6, atol=1e-6)


def test_noise_is_drawn_after_the_network_is_asked():
    """diffusers issue 8549: a step must not raise the noise of the state the network has seen."""
    scheduler = StochasticInterpolantScheduler(**FLOW)
    scheduler.set_timesteps(3)
    x = torch.randn(1, 4)
    kept = x.clone()
    output = scheduler.step(exact_output(scheduler, x, scheduler.timesteps[0]), scheduler.timesteps[0], x)
    assert torch.equal(x, kept)
    t = float(scheduler.times[0])
    wanted = Prediction(exact_output(scheduler, x, 1000.0), "flow_prediction", x, scheduler.path, t).x0
    torch.testing.assert_close(output.pred_original_sample, wanted)


@given(
    diffusion=st.sampled_from(DIFFUSIONS),
    norm=st.floats(0, 4, allow_nan=False),
    last_step=st.sampled_from(["mean", "tweedie", "euler", None]),
    size=st.none() | st.floats(0.001, 0.1),
    solver=st.sampled_from(["sde-euler", "sde-heun", "sde-exponential", "euler", "heun"]),
    config=st.sampled_from([FLOW, BETA, SIT, {**SIT, "interpolant": "GVP", "timestep_scale": 1000.0}]),
)
@settings(deadline=None, max_examples=40)
def test_config_round_trip(diffusion, norm, last_step, size, solver, config):
    scheduler = StochasticInterpolantScheduler(
        diffusion=diffusion, norm=norm, last_step=last_step, last_step_size=size, solver=solver, **config
    )
    text = json.dumps(dict(scheduler.config), allow_nan=False)
    again = StochasticInterpolantScheduler.from_config(json.loads(text))
    x = torch.randn(1, 2)
    results = []
    for each in (scheduler, again):
        each.set_timesteps(4)
        results.append(run(each, x))
    assert torch.equal(*results)
    assert torch.equal(scheduler.timesteps, again.timesteps)


def test_the_family_goes_from_scheduler_to_scheduler():
    sde = StochasticInterpolantScheduler(interpolant="GVP", reversed_time=True, diffusion="sbdm")
    for name in ("euler", "ghvb", "sde"):
        other = create_scheduler(name, sde.config)
        assert other.path == sde.path
        other.set_timesteps(3)
        assert other.timesteps[0] == 0
    # and leaves the families of diffusers alone
    assert StochasticInterpolantScheduler.from_config(RectifiedFlowScheduler(shift=3.0).config).family.name == "flow"


def test_the_rule_of_another_class_is_not_taken_over(tmp_path):
    """``solver="heun"`` of a rectified-flow scheduler does not make an SDE scheduler a deterministic one."""
    ode = RectifiedFlowScheduler(solver="heun", shift=3.0)
    ode.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    for config in (ode.config, saved):
        sde = StochasticInterpolantScheduler.from_config(config)
        assert sde.config.solver == "sde-exponential"
        assert sde.config.shift == 3.0
        assert StochasticInterpolantScheduler.from_config(sde.config, norm=2.0).config.norm == 2.0
        assert RectifiedFlowScheduler.from_config(sde.config).config.solver == "euler"
    chosen = StochasticInterpolantScheduler.from_config(ode.config, solver="sde-heun", diffusion="sbdm")
    again = StochasticInterpolantScheduler.from_config(chosen.config)
    assert (again.config.solver, again.config.diffusion) == ("sde-heun", "sbdm")
    assert RectifiedFlowScheduler.from_config(ode.config).config.solver == "heun"


@pytest.mark.parametrize("interpolant", ["linear", "trigonometric", "vp"])
def test_sigmas_and_timesteps_of_the_callers(interpolant):
    scheduler = RectifiedFlowScheduler(interpolant=interpolant, timestep_scale=100.0)
    sigmas = np.array([0.9, 0.6, 0.2])
    scheduler.set_timesteps(sigmas=sigmas)
    np.testing.assert_allclose(scheduler.path.sigma(scheduler.times), sigmas, rtol=1e-9)
    scheduler.set_timesteps(timesteps=[80.0, 30.0])
    assert scheduler.times.tolist() == pytest.approx([0.8, 0.3])
    x0, eps = torch.randn(2, 2, 3)
    noisy = scheduler.add_noise(x0, eps, torch.tensor([80.0, 30.0]))
    torch.testing.assert_close(noisy[1], scheduler.path.perturb(x0[1:], eps[1:], 0.3)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"diffusion": "inccreasing-decreasing"}, "did you mean 'increasing-decreasing'"),
        ({"norm": -1}, "norm: got -1"),
        ({"norm": math.inf}, "norm: got inf"),
        ({"last_step": "twedie"}, "did you mean 'tweedie'"),
        ({"last_step_size": 0}, "last_step_size: got 0"),
        ({"last_step_size": 1.5}, "last_step_size: got 1.5"),
        ({"solver": "dopri5"}, "solver: 'dopri5' is not known"),
        ({"frame": "time"}, "frame: 'time'; solver 'sde-exponential' has none"),
        ({"solver": "sde-euler", "frame": "velocity"}, "frame: 'velocity' is not known"),
        ({"diffusoin": "sigma"}, "did you mean 'diffusion'"),
        ({"interpolant": "GPV"}, "interpolant: 'GPV' is not known"),
        ({"interpolant": "linear", "reversed_time": 1}, "reversed_time: got 1"),
        ({"interpolant": "linear", "timestep_scale": 0}, "timestep_scale: got 0"),
        ({"interpolant": "linear", "prediction_type": "noise"}, "prediction_type: 'noise'"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        StochasticInterpolantScheduler(**options)


def test_bad_runs():
    scheduler = StochasticInterpolantScheduler(last_step_size=0.9, **FLOW)
    with pytest.raises(InputError, match="last_step_size: 0.9; allowed in this run: between 0 and 0.8"):
        scheduler.set_timesteps(sigmas=[0.8, 0.4])
    with pytest.raises(InputError, match="first is 1.5"):
        StochasticInterpolantScheduler(**SIT).set_timesteps(sigmas=[1.5, 0.5])


def test_pfgm_noise_is_refused():
    scheduler = StochasticInterpolantScheduler(sigma_data=0.5, sigma_max=80.0, D=128.0)
    with pytest.raises(InputError, match="Gaussian noise"):
        scheduler.set_timesteps(4)
