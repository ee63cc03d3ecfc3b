"""Real diffusers pipelines with tiny random networks: each with each scheduler of the registry.

test_diffusers_pipelines.py compares the few rules that both sides have; here is the breadth.
"""

import contextlib
import functools

import diffusers
import pytest
import torch

from genflow.guidance import APG, CFG, guide
from genflow.schedulers import SCHEDULERS, create_scheduler

GUIDED = ["controlnet", "dit", "flux", "kandinsky", "pixart", "sd", "sd3", "sd3_img2img", "sd_img2img", "sd_inpaint"]
GUIDED += ["sd_inpaint_9", "sd_v", "sdxl", "wan"]
SPREAD = 3  # pipelines a scheduler runs on: the whole product would take too long


@pytest.fixture(scope="module")
def pipelines(tiny_pipelines):
    """``(name, dtype) -> TinyPipeline``, built once; and the scheduler it came with."""
    built = {}

    def get(name, dtype=torch.float32):
        if (name, dtype) not in built:
            tiny = tiny_pipelines.build(name, dtype=dtype)
            built[name, dtype] = tiny, tiny.pipe.scheduler
        return built[name, dtype]

    get.names = sorted(tiny_pipelines.BUILDERS)
    return get


def result(pipelines, pipeline, scheduler, dtype=torch.float32, steps=3, **options):
    tiny, own = pipelines(pipeline, dtype)
    tiny.pipe.scheduler = own if scheduler is None else create_scheduler(scheduler, own.config, **options)
    with torch.no_grad():
        latents = tiny.run(steps=steps)
    tiny.pipe.scheduler = own
    assert torch.isfinite(latents).all(), (pipeline, scheduler)
    return latents


def some(names, scheduler, count=SPREAD):
    """A few of the names, others for every scheduler, and every name for some."""
    first = list(SCHEDULERS).index(scheduler)
    return [names[(first + k * len(SCHEDULERS)) % len(names)] for k in range(count)]


def distance(one, other):
    return ((one - other).norm() / other.norm()).item()


@pytest.fixture(scope="module")
def in_float32(pipelines):
    """``(pipeline, scheduler) -> latents`` in float32, made once."""
    return functools.cache(functools.partial(result, pipelines))


@pytest.fixture(scope="module")
def references(pipelines):
    """What every pipeline gives with the scheduler it came with, in the same number of steps."""
    return {name: result(pipelines, name, None) for name in pipelines.names}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_pipeline_with_every_scheduler(in_float32, references, scheduler):
    """Three steps of one ODE (or SDE) of one network: near what the pipeline's own scheduler gives."""
    for name, reference in references.items():
        latents = in_float32(name, scheduler)
        assert latents.shape == reference.shape
        assert 0.5 < latents.std() / reference.std() < 2, name
        stochastic = create_scheduler(scheduler).make_solver().stochastic
        if not stochastic and name != "kandinsky":  # its own, DDPM, is stochastic
            assert distance(latents, reference) < 0.7, name


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_in_bfloat16(pipelines, in_float32, scheduler):
    """Some pipelines each, and every pipeline with some."""
    for name in some(pipelines.names, scheduler):
        got = result(pipelines, name, scheduler, torch.bfloat16)
        assert distance(got, in_float32(name, scheduler)) < 0.06, name


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_with_offload_hooks(tiny_pipelines, scheduler):
    """enable_model_cpu_offload's hooks (here on and off the CPU itself) change nothing, not even a bit."""
    tiny = tiny_pipelines.build(some(sorted(tiny_pipelines.BUILDERS), scheduler)[0])
    tiny.pipe.scheduler = create_scheduler(scheduler, tiny.pipe.scheduler.config)
    with torch.no_grad():
        expected = tiny.run()
        tiny.pipe.enable_model_cpu_offload(device="cpu")
        assert tiny.pipe._all_hooks
        assert torch.equal(tiny.run(), expected)
        assert torch.equal(tiny.run(), expected)  # the hooks were laid anew


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_with_guidance_attached(pipelines, scheduler):
    """guide(CFG) gives the pipeline's own image at that scale with every scheduler; guide(APG) another, finite one."""
    for name in some(GUIDED, scheduler, 2):
        tiny, own = pipelines(name)
        images = []
        for rule in (None, CFG(scale=4.0), APG(scale=4.0)):
            tiny.pipe.scheduler = create_scheduler(scheduler, own.config)
            with torch.no_grad(), guide(tiny.pipe, rule) if rule else contextlib.nullcontext():
                images.append(tiny.run(scale=4.0))
        tiny.pipe.scheduler = own
        assert distance(images[1], images[0]) < 1e-4, name
        assert torch.isfinite(images[2]).all(), name
        assert distance(images[2], images[0]) > 1e-4, name


@pytest.fixture(scope="module")
def solution(pipelines):
    """Where the ODE of the pipeline with v-prediction leads."""
    return result(pipelines, "sd_v", "heun", steps=40, timestep_spacing="trailing")


@pytest.mark.parametrize("scheduler", ["euler", "heun", "rk4", "ab", "dpm++", "hb", "ghvb"])
def test_more_steps_lead_to_one_image(pipelines, solution, scheduler):
    few, many = (
        distance(result(pipelines, "sd_v", scheduler, steps=steps, timestep_spacing="trailing"), solution)
        for steps in (4, 16)
    )
    assert many < min(few, 0.1)  # the network is not smooth in the timestep: there is a floor of 0.05


@pytest.mark.parametrize("scheduler", ["euler", "ab", "dpm++", "hb", "ghvb"])
def test_base_and_refiner_share_a_run(tiny_pipelines, scheduler):
    """denoising_end and denoising_start: the second half starts with an empty history, which costs next to nothing.

    Rules of several evaluations a step are left out: diffusers' pipelines cut the schedule inside a step of theirs,
    after the first of its two evaluations, and go back to its start, which moves any second-order scheduler's image.
    """
    tiny = tiny_pipelines.build("sdxl")
    base, parts = tiny.pipe, ("vae", "unet", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    base.scheduler = create_scheduler(scheduler, base.scheduler.config)
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline(
        scheduler=base.scheduler, add_watermarker=False, **{name: getattr(base, name) for name in parts}
    )
    refiner.set_progress_bar_config(disable=True)
    with torch.no_grad():
        whole = tiny.run(steps=8)
        half = tiny.run(steps=8, denoising_end=0.5)
        arguments = {key: value for key, value in tiny.arguments.items() if key not in ("height", "width")}
        arguments |= {"image": half, "denoising_start": 0.5, "num_inference_steps": 8, "output_type": "latent"}
        latents = refiner(**arguments, generator=torch.Generator().manual_seed(0)).images.float()
    assert refiner.scheduler.begin_index == 4
    assert distance(latents, whole) < (1e-6 if scheduler == "euler" else 0.01)
