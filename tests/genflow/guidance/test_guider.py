"""A guidance as the guider of diffusers' modular pipelines: real ones with tiny weights, and the contract itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.modular_pipelines import SequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline import BlockState
from diffusers.modular_pipelines.stable_diffusion_3 import before_denoise as sd3
from diffusers.modular_pipelines.stable_diffusion_3.denoise import StableDiffusion3DenoiseStep
from diffusers.modular_pipelines.stable_diffusion_3.inputs import StableDiffusion3TextInputStep
from diffusers.modular_pipelines.stable_diffusion_xl import before_denoise as sdxl
from diffusers.modular_pipelines.stable_diffusion_xl.denoise import StableDiffusionXLDenoiseStep
from torch import Tensor, nn

from genflow.errors import InputError
from genflow.guidance import APG, CFG, AutoGuidance, Guidance, PathGuider, guide
from genflow.paths import LinearPath
from genflow.prediction import Prediction
from genflow.schedulers import create_scheduler

SDXL = {
    "input": sdxl.StableDiffusionXLInputStep,
    "set_timesteps": sdxl.StableDiffusionXLSetTimestepsStep,
    "prepare_latents": sdxl.StableDiffusionXLPrepareLatentsStep,
    "prepare_conditions": sdxl.StableDiffusionXLPrepareAdditionalConditioningStep,
    "denoise": StableDiffusionXLDenoiseStep,
}
SD3 = {
    "input": StableDiffusion3TextInputStep,
    "prepare_latents": sd3.StableDiffusion3PrepareLatentsStep,
    "set_timesteps": sd3.StableDiffusion3SetTimestepsStep,
    "denoise": StableDiffusion3DenoiseStep,
}

Run = Callable[..., Tensor]


class Modular:
    """A tiny pipeline (``tiny``) and a modular one of the same network and scheduler (``pipe``)."""

    def __init__(self, tiny: Any, blocks: dict[str, type], scheduler: str | None = None) -> None:
        self.tiny = tiny
        if scheduler is not None:
            self.tiny.pipe.scheduler = create_scheduler(scheduler, tiny.pipe.scheduler.config)
        self.pipe = SequentialPipelineBlocks.from_blocks_dict({key: block() for key, block in blocks.items()})
        self.pipe = self.pipe.init_pipeline()
        self.pipe.set_progress_bar_config(disable=True)
        parts = {key: value for key, value in tiny.pipe.components.items() if key in self.pipe.components}
        self.pipe.update_components(**parts)

    def run(self, guider: Any, steps: int = 4, **arguments: Any) -> Tensor:
        self.pipe.update_components(guider=guider)
        return self.pipe(
            **{**self.tiny.arguments, **arguments}, num_inference_steps=steps, output="latents",
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip


@pytest.mark.parametrize("scheduler", [None, "DDIMScheduler", "HeunDiscreteScheduler", "euler", "heun", "ghvb"])
def test_sdxl_as_its_ordinary_pipeline(tiny_pipelines: Any, scheduler: str | None) -> None:
    """CFG gives the image of the pipeline's own CFG; APG gives that of the pipeline inside ``guide``.

    diffusers' guider gives it too, but for Heun: it takes evaluations for steps, and stops guiding half-way.
    """
    modular = Modular(tiny_pipelines.build("sdxl"), SDXL, scheduler)
    theirs = modular.tiny.run(4.0, steps=4)
    own = modular.run(ClassifierFreeGuidance(guidance_scale=4.0))
    assert torch.allclose(own, theirs, rtol=1e-4, atol=1e-4) == ("heun" not in str(scheduler).lower())
    torch.testing.assert_close(modular.run(PathGuider(CFG(4.0), modular.pipe)), theirs, rtol=1e-4, atol=1e-4)
    rule = APG(4.0, norm_threshold=2.0, stop=0.75)
    ours = PathGuider(rule, modular.pipe)
    first = modular.run(ours)
    assert (first - theirs).abs().max() > 0.1
    assert torch.equal(modular.run(ours), first)  # the next run forgets
    with guide(modular.tiny.pipe, rule):
        ordinary = modular.tiny.run(steps=4)
    torch.testing.assert_close(first, ordinary, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheduler", [None, "euler", "ghvb"])
def test_sd3(tiny_pipelines: Any, scheduler: str | None) -> None:
    modular = Modular(tiny_pipelines.build("sd3"), SD3, scheduler)
    modular.tiny.arguments |= {"height": 64, "width": 64}  # without a VAE the pipeline takes one of 8 for granted
    theirs = modular.run(ClassifierFreeGuidance(guidance_scale=4.0))
    torch.testing.assert_close(modular.run(PathGuider(CFG(4.0), modular.pipe)), theirs, rtol=1e-4, atol=1e-4)
    still = APG(4.0, eta=1.0, norm_threshold=None, momentum=0.0)
    torch.testing.assert_close(modular.run(PathGuider(still, modular.pipe)), theirs, rtol=1e-4, atol=1e-4)
    assert (modular.run(PathGuider(APG(4.0), modular.pipe)) - theirs).abs().max() > 0.05
    with pytest.raises(InputError, match="no unconditional"):
        modular.run(PathGuider(CFG(4.0), modular.pipe), negative_prompt_embeds=None, negative_pooled_prompt_embeds=None)


def test_half_precision(tiny_pipelines: Any) -> None:
    full = Modular(tiny_pipelines.build("sdxl"), SDXL)
    half = Modular(tiny_pipelines.build("sdxl", dtype=torch.bfloat16), SDXL)
    expected, out = (modular.run(PathGuider(APG(3.0), modular.pipe)) for modular in (full, half))
    assert out.dtype == torch.bfloat16
    error = (out.float() - expected).square().mean().sqrt() / expected.std()
    assert error < 0.1


def test_no_second_call_where_guidance_does_not_act(tiny_pipelines: Any) -> None:
    modular = Modular(tiny_pipelines.build("sdxl"), SDXL, "heun")
    calls: list[float] = []
    modular.pipe.unet.register_forward_pre_hook(lambda module, args: calls.append(float(args[1])))
    off = PathGuider(CFG(4.0), modular.pipe, enabled=False)  # SDXL's blocks put every guider on again
    off.set_state(0, 4, None)
    assert off.num_conditions == 1
    for guider, expected in (
        (PathGuider(CFG(4.0), modular.pipe), 2 * 7),
        (PathGuider(CFG(1.0)), 7),
        (PathGuider(CFG(4.0, start=0.5), modular.pipe), 2 * 3 + 4),
        (PathGuider(CFG(4.0, interval=(0.0, 1e-6)), modular.pipe), 7),
    ):
        for _ in range(2):
            calls.clear()
            modular.run(guider)
            assert len(calls) == expected
        # before a run prompts are encoded: the unconditional one where any step of the run wants it
        assert guider.num_conditions == (1 if guider.guidance.neutral else 2)
    assert len(modular.pipe.unet._forward_pre_hooks) == 1  # the test's own


def test_momentum_counts_outer_steps(tiny_pipelines: Any) -> None:
    class Recording(APG):
        def _guide(self, cond: Tensor, uncond: Tensor, x: Tensor, noise_level: Any, step: int) -> Tensor:
            seen.append(step)
            return super()._guide(cond, uncond, x, noise_level, step)

    for scheduler in ("heun", "HeunDiscreteScheduler"):
        seen: list[int] = []
        modular = Modular(tiny_pipelines.build("sdxl"), SDXL, scheduler)
        rule = Recording(3.0)
        modular.run(PathGuider(rule, modular.pipe), 3)
        assert seen == [0, 0, 1, 1, 2]
        assert rule.steps == 3


class Halving(nn.Module):
    """A network that predicts a half of its input for a true condition and a third for a false one."""

    def forward(self, hidden_states: Any, condition: bool) -> Tensor:
        x = torch.stack(hidden_states) if isinstance(hidden_states, list) else hidden_states
        return x[:, :2] / (2.0 if condition else 3.0)


def one_step(guider: PathGuider, index: int, x: Any, from_block: bool) -> Tensor:
    """What a denoising block does, in its two ways."""
    network = Halving()
    timestep = guider._owner.timesteps[index]
    guider.set_state(step=index, num_inference_steps=len(guider._owner.timesteps), timestep=timestep)
    if from_block:
        state = BlockState(yes=True, no=False)
        batches = guider.prepare_inputs_from_block_state(state, {"condition": ("yes", "no")})
    else:
        batches = guider.prepare_inputs({"condition": (True, False)})
    for batch in batches:
        guider.prepare_models(network)
        assert guider.is_conditional == batch.condition
        batch.noise_pred = network(hidden_states=x, condition=batch.condition)
        guider.cleanup_models(network)
    return guider(batches).pred


@pytest.mark.parametrize("from_block", [False, True])
def test_the_contract(from_block: bool) -> None:
    """A flow network with two state channels of three (the last is a mask, say)."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    guider, rule = PathGuider(APG(3.0, norm_threshold=1.0), scheduler), APG(3.0, norm_threshold=1.0)
    for index in range(4):
        x = torch.randn(2, 3, 4, 4)
        out = one_step(guider, index, x, from_block)
        t = float(scheduler.sigmas[index])
        state = x[:, :2]
        x0 = [Prediction(state / part, "flow_prediction", state, LinearPath(), t).x0 for part in (2, 3)]
        guided = Prediction(out, "flow_prediction", state, LinearPath(), t)
        torch.testing.assert_close(guided.x0, rule(*x0, state, 1.0, index))
    assert guider.get_state()["num_conditions"] == 2


def test_a_network_that_takes_a_list() -> None:
    """Z-Image's: one tensor an image, with an axis of frames that the output does not have."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(2)
    guider, rows = PathGuider(CFG(3.0), scheduler), list(torch.randn(2, 2, 4, 4))
    assert torch.equal(one_step(guider, 0, rows, True), one_step(guider, 0, torch.stack(rows), True))


def test_a_run_that_begins_late() -> None:
    """Image to image: the loop counts from 0, the scheduler from its begin index."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(2)
    rule = CFG(3.0, stop=0.5)
    guider = PathGuider(rule, scheduler)
    guider.set_state(0, 2, scheduler.timesteps[2])
    assert guider.num_conditions == 2
    assert rule.steps == 2
    assert guider._time == pytest.approx(float(scheduler.sigmas[2]))
    guider.set_state(1, 2, scheduler.timesteps[3])
    assert guider.num_conditions == 1
    with pytest.raises(InputError, match="past the 4 evaluations"):
        guider.set_state(2, 2, scheduler.timesteps[3])


@pytest.mark.parametrize("rule", [CFG(3.0, interval=(0.1, 5.0)), APG([2.0, 3.0], rescale=0.7)], ids=["cfg", "apg"])
def test_saved_and_loaded(tmp_path: Path, rule: Guidance) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(2)
    guider = PathGuider(rule, scheduler)
    guider.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "guider_config.json").read_text())
    assert (saved["_class_name"], saved["guidance"]) == ("PathGuider", rule.to_config())
    loaded = PathGuider.from_pretrained(tmp_path)
    assert loaded.guidance.to_config() == rule.to_config()
    with pytest.raises(InputError, match="call bind"):
        loaded.set_state(0, 2, scheduler.timesteps[0])
    x = torch.randn(2, 3, 4, 4)
    expected = one_step(guider, 0, x, True)
    assert torch.equal(one_step(loaded.bind(scheduler), 0, x, True), expected)
    assert torch.equal(one_step(guider.new(), 0, x, True), expected)
    assert guider.new(guidance=CFG(7.0)).config.guidance["scale"] == 7.0
    assert "PathGuider" in repr(guider)


def test_bad_input() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(2)
    with pytest.raises(InputError, match="guidance: got float"):
        PathGuider(7.5)
    with pytest.raises(InputError, match="guidance: got AutoGuidance"):
        PathGuider(AutoGuidance(nn.Linear(2, 2), CFG(2.0)))
    with pytest.raises(InputError, match="did you mean 'cfg'"):
        PathGuider({"name": "cgf"})
    with pytest.raises(InputError, match="guidance"):
        PathGuider({"scale": 2.0})
    with pytest.raises(InputError, match="scheduler: object has none"):
        PathGuider(CFG(2.0), object())
    guider = PathGuider(CFG(2.0), scheduler)
    guider.set_state(0, 2, scheduler.timesteps[0])
    guider.prepare_models(network := Halving())
    network(torch.randn(2, 3, 4, 4), True)
    with pytest.raises(InputError, match="does not belong to its input"):
        guider.forward(torch.randn(2, 5, 4, 4), torch.randn(2, 5, 4, 4))
