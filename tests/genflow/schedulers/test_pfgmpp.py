"""PFGM++: bit-equal to EDM without augmentation, right by exact denoisers with it, and safe in JSON."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from genflow.errors import InputError
from genflow.models import from_function, on_path
from genflow.paths import EDMPath, LinearPath, PFGMPlusPlusPath, with_student_t
from genflow.schedulers import PFGMPlusPlusScheduler, RectifiedFlowScheduler, create_scheduler, family_from_config
from genflow.solvers import SOLVERS

SHAPE = (3, 1, 4, 4)


def network(x, timestep):
    """A stand-in: any function of the scaled input and the timestep."""
    return torch.sin(3 * x + timestep) - 0.2 * x


def run(scheduler, steps, x):
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, timestep), timestep)
        x = scheduler.step(output, timestep, x).prev_sample
    return x


def algorithm_1(steps, x, sigma_min=0.002, sigma_max=80.0, rho=7.0, data=0.5):
    """Karras et al. 2022, algorithm 1 without churn, from the paper's formulas."""
    i = np.arange(steps)
    top, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    levels = np.append((top + i / max(steps - 1, 1) * (low - top)) ** rho, 0.0)

    def denoise(x, sigma):
        norm = sigma**2 + data**2
        output = network(x / math.sqrt(norm), torch.tensor(math.log(sigma) / 4, dtype=torch.float32))
        return data**2 / norm * x + sigma * data / math.sqrt(norm) * output

    for now, after in itertools.pairwise(levels):
        slope = (x - denoise(x, now)) / now
        guess = x + (after - now) * slope
        if after > 0:
            guess = x + (after - now) * (slope + (guess - denoise(guess, after)) / after) / 2
        x = guess
    return x


@settings(max_examples=15, deadline=None)
@given(steps=st.integers(1, 25), seed=st.integers(0, 99))
def test_without_augmentation_it_is_edm_bit_for_bit(steps, seed):
    mine = PFGMPlusPlusScheduler(D=math.inf)
    theirs = RectifiedFlowScheduler.from_config(EDMEulerScheduler().config, solver="heun")
    normal = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
    start = mine.prior(normal, torch.Generator().manual_seed(1))
    assert torch.equal(start, normal * theirs.init_noise_sigma)
    assert torch.equal(run(mine, steps, start), run(theirs, steps, start))
    start = start.double()
    torch.testing.assert_close(run(mine, steps, start), algorithm_1(steps, start), rtol=1e-6, atol=1e-6)


def test_the_schedule_is_the_papers():
    scheduler = PFGMPlusPlusScheduler()
    assert scheduler.path == PFGMPlusPlusPath(128, 80.0)
    scheduler.set_timesteps(18)
    assert len(scheduler.timesteps) == 35
    assert scheduler.order == 2
    levels = scheduler.sigmas.double()
    assert levels[0] == 80
    assert levels[-2] == pytest.approx(0.002, rel=1e-6)
    assert levels[-1] == 0
    assert scheduler.init_noise_sigma == 80


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_dimension_changes_the_prior_alone(solver):
    normal = torch.randn(SHAPE)
    few = PFGMPlusPlusScheduler(D=4, solver=solver)
    none = PFGMPlusPlusScheduler(D="inf", solver=solver)
    assert torch.equal(run(few, 6, normal), run(none, 6, normal))
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    ratio = few.prior(normal, generators) / none.prior(normal)
    assert not torch.allclose(ratio, torch.ones(()))
    torch.testing.assert_close(ratio, ratio[:, :1, :1, :1].expand(SHAPE))


def denoiser(points, path):
    """The exact posterior mean over a finite data set: ``x, sigma -> E[x0 | x]``."""

    def call(x, sigma):
        distance = torch.cdist(x.double(), points).square() / sigma**2
        if math.isinf(path.D):
            return torch.softmax(-distance / 2, dim=1) @ points
        return torch.softmax(-(points.shape[1] + path.D) / 2 * torch.log1p(distance / path.D), dim=1) @ points

    return call


POINTS = torch.tensor([[1.0, 0.0, 0.5], [-1.0, 0.5, 0.0], [0.2, -1.0, -0.5]], dtype=torch.float64)


def flow(scheduler, x, steps, stop=0.0):
    """Samples of the exact flow at noise level ``stop``: the network gives the denoised point itself."""
    denoise = denoiser(POINTS, scheduler.path)
    if stop:
        levels = np.geomspace(scheduler.path.sigma_max, stop, steps + 1)
        scheduler.set_timesteps(sigmas=levels)
    else:
        scheduler.set_timesteps(steps)
    evaluations = len(scheduler.timesteps) - bool(stop)  # without the step from there to 0
    for i, timestep in enumerate(scheduler.timesteps[:evaluations]):
        sigma = float(scheduler.path.noise_level(float(scheduler.times[i])))
        x = scheduler.step(denoise(x, sigma), timestep, x).prev_sample
    return x


@pytest.mark.parametrize("D", [1, 4, 64, "inf"])
def test_the_exact_denoiser_brings_noise_to_the_data(D):  # noqa: N803
    scheduler = PFGMPlusPlusScheduler(D=D, prediction_type="sample", sigma_max=40.0)
    start = scheduler.prior(torch.randn(300, 3, dtype=torch.float64), torch.Generator().manual_seed(2))
    distances = torch.cdist(flow(scheduler, start, 18), POINTS)
    assert distances.min(dim=1).values.max() < 1e-3
    counts = torch.bincount(distances.argmin(dim=1), minlength=3)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("D", [1, 4, 64])
def test_the_flow_has_the_perturbed_marginals(D):  # noqa: N803
    scheduler = PFGMPlusPlusScheduler(D=D, prediction_type="sample", sigma_max=40.0)
    path, generator = scheduler.path, torch.Generator().manual_seed(3)

    def perturbed(sigma, count=4000):
        data = POINTS[torch.randint(3, (count,), generator=generator)]
        normal = torch.randn(count, 3, dtype=torch.float64, generator=generator)
        return path.perturb(data, path.noise(normal, generator), path.time(sigma))

    # scheduled to end at 0.5, where the samples are neither noise nor data
    ends = flow(scheduler, perturbed(40.0), 40, stop=0.5)
    fresh = perturbed(0.5)
    for axis in (torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.6, 0.8])):
        a, b = ends @ axis.double(), fresh @ axis.double()
        assert stats.ks_2samp(a.numpy(), b.numpy()).pvalue > 1e-3
    assert stats.ks_2samp(ends.norm(dim=1).numpy(), fresh.norm(dim=1).numpy()).pvalue > 1e-3
    # and Gaussian noise would have been found out
    wrong = POINTS[torch.randint(3, (4000,))] + 0.5 * torch.randn(4000, 3, dtype=torch.float64)
    if D < 64:
        assert stats.ks_2samp(ends.norm(dim=1).numpy(), wrong.norm(dim=1).numpy()).pvalue < 1e-3


@pytest.mark.parametrize("D", [0.5, 1, 128, 3e6, "inf", math.inf])
def test_configs_are_json_and_come_back(D, tmp_path):  # noqa: N803
    scheduler = PFGMPlusPlusScheduler(D=D, sigma_data=1.0, solver="euler")
    scheduler.save_pretrained(tmp_path)
    text = (tmp_path / "scheduler_config.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["D"] == ("inf" if D in ("inf", math.inf) else D)
    for again in (
        PFGMPlusPlusScheduler.from_pretrained(tmp_path),
        PFGMPlusPlusScheduler.from_config(scheduler.config),
        RectifiedFlowScheduler.from_config(scheduler.config),  # the network stays what it was trained as
    ):
        assert again.path == scheduler.path
        assert again.family.config == scheduler.family.config
    assert family_from_config(json.loads(text)).path == scheduler.path
    assert PFGMPlusPlusScheduler.from_pretrained(tmp_path).config.solver == "euler"


def test_any_edm_config_will_do():
    theirs = EDMEulerScheduler(sigma_data=1.0, sigma_max=40.0, prediction_type="v_prediction")
    scheduler = PFGMPlusPlusScheduler.from_config(theirs.config, D=2048)
    assert scheduler.path == PFGMPlusPlusPath(2048, 40.0)
    assert (scheduler.config.sigma_data, scheduler.prediction_type) == (1.0, "v_prediction")
    assert PFGMPlusPlusScheduler.from_config(theirs.config).path.D == 128
    assert create_scheduler("pfgm++", theirs.config, D=4).path.D == 4
    svd = EulerDiscreteScheduler(
        timestep_type="continuous",
        prediction_type="v_prediction",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700,
    )
    assert PFGMPlusPlusScheduler.from_config(svd.config, D=8).path == PFGMPlusPlusPath(8, 700.0)
    back = EDMEulerScheduler.from_config(scheduler.config)
    assert (back.config.sigma_data, back.config.sigma_max) == (1.0, 40.0)
    plain = RectifiedFlowScheduler.from_config(theirs.config)
    assert plain.path == EDMPath(40.0)
    assert PFGMPlusPlusScheduler.from_config(plain.config).path.D == 128  # EDM's own config has D unset


@pytest.mark.parametrize(
    "config",
    [
        DDIMScheduler().config,
        FlowMatchEulerDiscreteScheduler(shift=3.0).config,
        RectifiedFlowScheduler(interpolant="trigonometric").config,
        RectifiedFlowScheduler(interpolant="vp").config,
    ],
)
def test_other_families_keep_their_path(config, tmp_path):
    """The law of the noise is one thing, the path another: D changes the first alone."""
    scheduler = PFGMPlusPlusScheduler.from_config(config, D=4)
    plain = RectifiedFlowScheduler.from_config(config, solver="heun")
    assert isinstance(scheduler.path, type(plain.path))
    assert scheduler.path.D == 4
    assert family_from_config(json.loads(scheduler.to_json_string())).path == scheduler.path
    normal = torch.randn(SHAPE)
    assert torch.equal(run(scheduler, 5, normal), run(plain, 5, normal))
    start, generator = scheduler.prior(normal, torch.Generator().manual_seed(1)), torch.Generator().manual_seed(1)
    assert torch.equal(start, scheduler.path.noise(normal, generator) * plain.init_noise_sigma)
    assert not torch.equal(start, normal)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"D": 0}, "D: got 0; allowed: a number > 0, or 'inf'"),
        ({"D": -1.5}, "D: got -1.5"),
        ({"D": math.nan}, "D: got nan"),
        ({"D": "many"}, "D: got 'many'"),
        ({"D": True}, "D: got True"),
        ({"solver": "hoin"}, "solver: 'hoin' is not known"),
        ({"solver": "heun", "solver_options": {"fram": "epsilon"}}, "option 'fram' is not known"),
        ({"solver_options": "epsilon"}, "solver_options: got 'epsilon'; allowed: a dictionary"),
    ],
)
def test_bad_input(options, says):
    with pytest.raises(InputError) as error:
        PFGMPlusPlusScheduler(**options)
    assert says in str(error.value)


@pytest.mark.parametrize("solver", SOLVERS)
def test_any_solver_will_do_that_adds_no_gaussian_noise(solver):
    if SOLVERS[solver].stochastic:
        with pytest.raises(InputError, match="adds Gaussian noise, and that of PFGMPlusPlusPath.* is Student-t"):
            PFGMPlusPlusScheduler(D=16, solver=solver)
        PFGMPlusPlusScheduler(D="inf", solver=solver).set_timesteps(4)
        return
    scheduler = PFGMPlusPlusScheduler(D=16, prediction_type="sample", sigma_max=40.0, solver=solver)
    start = scheduler.prior(torch.randn(200, 3, dtype=torch.float64), torch.Generator().manual_seed(2))
    assert torch.cdist(flow(scheduler, start, 30), POINTS).min(dim=1).values.quantile(0.98) < 1e-2
    assert scheduler.order == {"heun": 2, "rk4": 4}.get(solver, 1)


def test_a_model_keeps_its_noise():
    model = from_function(lambda x, t: x, PFGMPlusPlusPath(16), "sample")
    assert on_path(model, with_student_t(LinearPath(), 16)).path.D == 16
    with pytest.raises(InputError, match="path: LinearPath.* has Gaussian noise; allowed .*: Student-t with D=16"):
        on_path(model, LinearPath())
    assert on_path(from_function(lambda x, t: x, EDMPath(), "sample"), PFGMPlusPlusPath("inf"))


def test_an_ordinary_pipeline_is_handed_the_noise(tiny_pipelines):
    """It multiplies its latents by init_noise_sigma and scales the network's input, as with any EDM scheduler."""
    scheduler = PFGMPlusPlusScheduler(D=3)
    tiny = tiny_pipelines.build("sd", scheduler=scheduler)
    inputs = []
    tiny.denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: inputs.append(args[0] if args else kwargs["sample"]), with_kwargs=True
    )
    size = tiny.denoiser.config.sample_size
    normal = torch.randn(1, 4, size, size)
    generator = torch.Generator().manual_seed(4)
    height = size * tiny.pipe.vae_scale_factor
    tiny.run(scale=1.0, latents=scheduler.path.noise(normal, generator), height=height, width=height)
    start = scheduler.prior(normal, torch.Generator().manual_seed(4))
    torch.testing.assert_close(inputs[0][:1], start / math.sqrt(80**2 + 0.5**2))
