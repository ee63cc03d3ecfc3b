"""HBScheduler and GHVBScheduler: any pipeline's config, momentum's life, start-up, image-to-image, saving."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)
from torch import Tensor

from genflow.errors import InputError
from genflow.schedulers import GHVBScheduler, HBScheduler, RectifiedFlowScheduler, create_scheduler
from genflow.solvers import GHVB, HB

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PIPELINES = {
    "sd": PNDMScheduler(skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False, **SD),
    "sd2-v": DDIMScheduler(prediction_type="v_prediction", steps_offset=1, clip_sample=False, **SD),
    "sdxl": EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1, **SD),
    "sd3": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flux": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    "dit": DDIMScheduler(beta_schedule="linear", clip_sample=False),
    "pixart": DPMSolverMultistepScheduler(beta_schedule="linear"),
    "edm": EDMEulerScheduler(),
}
OPTIONS = [
    ("ghvb", {"order": 1.8}),
    ("ghvb", {"order": 3.4, "frame": "epsilon", "coefficients": "matched", "startup": "heun"}),
    ("hb", {"order": 3, "beta": 0.7, "variant": "nesterov"}),
    ("hb", {"around": "dpm++", "beta": 0.8}),
    ("ab", {"order": 4}),
    ("dpm++", {"order": 3}),
]


def noise(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def run(scheduler, x: Tensor, timesteps: Tensor | None = None) -> Tensor:
    for t in scheduler.timesteps if timesteps is None else timesteps:
        out = torch.tanh(scheduler.scale_model_input(x, t).roll(1, -1))
        x = scheduler.step(out, t, x).prev_sample
    return x


def lay_out(scheduler, steps: int) -> None:
    dynamic = scheduler.config.get("use_dynamic_shifting")
    scheduler.set_timesteps(steps, **({"mu": 0.9} if dynamic else {}))


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_pipelines_config(pipeline: str, name: str, options: dict) -> None:
    scheduler = create_scheduler(name, PIPELINES[pipeline].config, **options)
    assert scheduler.order == 1
    for steps in (1, 2, 7):
        lay_out(scheduler, steps)
        x = run(scheduler, scheduler.init_noise_sigma * noise())
        assert torch.isfinite(x).all()
        assert scheduler.num_inference_steps == steps
        extra = len(scheduler.timesteps) - steps
        assert 0 <= extra <= (4 if "startup" in options else 0)


def test_the_issues_own_line() -> None:
    pipe = type("Pipe", (), {"scheduler": PIPELINES["sdxl"]})()
    pipe.scheduler = GHVBScheduler.from_config(pipe.scheduler.config, order=1.8)
    assert pipe.scheduler.config.order == 1.8
    assert pipe.scheduler.config.timestep_spacing == "leading"
    solver = pipe.scheduler.make_solver()
    assert isinstance(solver, GHVB)
    assert solver.order == 1.8
    # and on to another rule, and back to diffusers
    hb = HBScheduler.from_config(pipe.scheduler.config, order=2, around="dpm++")
    assert isinstance(hb.make_solver(), HB)
    back = EulerDiscreteScheduler.from_config(hb.config)
    assert back.config.beta_end == 0.012
    assert back.config.timestep_spacing == "leading"


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_set_timesteps_resets_momentum(name: str, options: dict) -> None:
    scheduler = create_scheduler(name, PIPELINES["sd3"].config, **options)
    lay_out(scheduler, 6)
    first = run(scheduler, noise())
    lay_out(scheduler, 6)
    run(scheduler, noise(1), scheduler.timesteps[:4])  # left in the middle
    lay_out(scheduler, 6)
    assert torch.equal(run(scheduler, noise()), first)


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
@pytest.mark.parametrize("pipeline", ["sdxl", "sd3", "edm"])
def test_image_to_image(pipeline: str, name: str, options: dict) -> None:
    """Begun at index 3, by set_begin_index or by the timestep, the run is one of its own: no weights of a history that
    does not exist."""
    scheduler = create_scheduler(name, PIPELINES[pipeline].config, **options)
    lay_out(scheduler, 8)
    begin = len(scheduler.timesteps) - 4
    x = scheduler.add_noise(noise(1), noise(2), scheduler.timesteps[begin])
    results = []
    for by_index in (True, False):
        lay_out(scheduler, 8)
        if by_index:
            scheduler.set_begin_index(begin)
        results.append(run(scheduler, x, scheduler.timesteps[begin:]))
        assert scheduler.step_index == begin + 4
    assert torch.equal(*results)
    if "startup" not in options:
        short = create_scheduler(name, PIPELINES[pipeline].config, **options)
        short.set_timesteps(timesteps=scheduler.timesteps[begin:].double().numpy())
        torch.testing.assert_close(run(short, x), results[0], rtol=1e-3, atol=1e-3)


def test_image_to_image_inside_a_start_up_step() -> None:
    scheduler = GHVBScheduler(order=3.5, startup="rk4", shift=3.0)
    for begin in range(12):
        scheduler.set_timesteps(6)
        scheduler.set_begin_index(begin)
        x = run(scheduler, noise(), scheduler.timesteps[begin:])
        assert torch.isfinite(x).all()


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_saved_and_loaded(name: str, options: dict, tmp_path) -> None:
    scheduler = create_scheduler(name, PIPELINES["sdxl"].config, **options)
    scheduler.save_pretrained(tmp_path)
    text = (tmp_path / "scheduler_config.json").read_text()
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    loaded = type(scheduler).from_pretrained(tmp_path)
    assert loaded.make_solver().to_config() == scheduler.make_solver().to_config()
    for one in (scheduler, loaded):
        one.set_timesteps(5)
    assert torch.equal(run(loaded, noise()), run(scheduler, noise()))
    module = __import__(type(scheduler).__module__, fromlist=["SchedulerMixin"])
    assert hasattr(module, "SchedulerMixin")  # diffusers looks the load method up there


def test_order_one_is_euler() -> None:
    for config in PIPELINES.values():
        euler = RectifiedFlowScheduler.from_config(config.config)
        ab = create_scheduler("ab", config.config, order=1)
        for one in (euler, ab):
            lay_out(one, 6)
        x = euler.init_noise_sigma * noise()
        torch.testing.assert_close(run(ab, x), run(euler, x), rtol=1e-4, atol=1e-4)


def test_a_zero_terminal_snr_run_is_finite() -> None:
    config = DDIMScheduler(
        rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing", **SD
    ).config
    for name, options in OPTIONS:
        scheduler = create_scheduler(name, config, **options)
        lay_out(scheduler, 6)
        assert torch.isfinite(run(scheduler, noise())).all()


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (GHVBScheduler, {"order": 0.0}, "order"),
        (GHVBScheduler, {"order": 6}, "order"),
        (GHVBScheduler, {"order": float("nan")}, "order"),
        (GHVBScheduler, {"beta": 0.5}, "did you mean 'beta_"),
        (GHVBScheduler, {"frame": "eps"}, "frame"),
        (HBScheduler, {"beta": 0.0}, "beta"),
        (HBScheduler, {"order": 1.8}, "order: got 1.8; allowed: an integer"),
        (HBScheduler, {"around": "dpm++", "order": 5}, "order"),
        (HBScheduler, {"startup": "euler"}, "startup"),
        (HBScheduler, {"coefficients": "exact"}, "coefficients"),
    ],
)
def test_bad_options(cls: type, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        cls(**options)
    with pytest.raises(InputError):
        cls.from_config(PIPELINES["sd"].config, **options)


def test_timesteps_are_the_solvers_evaluations() -> None:
    scheduler = GHVBScheduler(order=2.5, startup="heun")
    scheduler.set_timesteps(5)
    np.testing.assert_allclose(scheduler.timesteps.numpy(), [1000, 800, 800, 600, 600, 400, 200], rtol=1e-6)
    assert scheduler.sigmas[-1] == 0
