"""What guide() does not serve, it refuses with one clear line and without leaving anything behind."""

import re
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genflow.errors import InputError, NonFiniteError
from genflow.guidance import APG, CFG, AutoGuidance, check_guidable, guide
from genflow.guidance.attach_layout import LAYOUTS, SCALES, Layout, layout_of


def make_class(name: str, module: str = "diffusers.pipelines", **arguments: Any) -> type:
    def call(self: Any, guidance_scale: float = 5.0) -> None: ...

    return type(name, (), {"__call__": call, "__module__": module, **arguments})


# --- on entering the block


@pytest.mark.parametrize("wrong", [None, 7.5, "apg", APG, AutoGuidance(nn.Identity(), CFG(2.0))])
def test_a_guidance_that_is_no_rule(tiny_pipelines: ModuleType, wrong: Any) -> None:
    with (
        pytest.raises(InputError, match="guidance: got .* allowed: a rule"),
        guide(tiny_pipelines.build("sd").pipe, wrong),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("StableDiffusionInstructPix2PixPipeline", "three parts"),
        ("StableDiffusionXLInstructPix2PixPipeline", "three parts"),
        ("StableDiffusionPAGPipeline", "perturbed attention"),
        ("KandinskyV22CombinedPipeline", "decoder_pipe"),
        ("LatentConsistencyModelPipeline", "distilled"),
        ("LEditsPPPipelineStableDiffusion", "of its own"),
        ("OmniGenPipeline", "three parts"),
        ("FluxFillPipeline", "distilled"),
        ("FluxControlPipeline", "distilled"),
    ],
)
def test_pipelines_whose_guidance_is_not_cfg(name: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        layout_of(getattr(diffusers, name))


def test_not_a_pipeline_or_without_cfg() -> None:
    with pytest.raises(InputError, match="allowed: a diffusers pipeline"), guide(nn.Linear(1, 1), CFG(2.0)):
        pass
    plain = diffusers.DDPMPipeline(
        diffusers.UNet2DModel(
            sample_size=8, block_out_channels=(8,), norm_num_groups=4, down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",), layers_per_block=1,
        ), diffusers.DDPMScheduler(),
    )  # fmt: skip
    with pytest.raises(InputError, match="has no CFG to replace"), guide(plain, CFG(2.0)):
        pass
    scheduler = SimpleNamespace(config={})
    guider = make_class("HunyuanImagePipeline")()
    guider.scheduler, guider.guider = scheduler, object()
    with pytest.raises(InputError, match="guider component"):
        check_guidable(guider)
    nothing = make_class("SomePipeline")()
    nothing.scheduler = scheduler
    with pytest.raises(InputError, match="no denoiser that genflow knows"):
        check_guidable(nothing)


def test_genflows_own_pipeline_takes_the_guidance_itself() -> None:
    from genflow.pipelines import ImagePipeline

    with pytest.raises(InputError, match=r"pipe\(guidance="):
        layout_of(ImagePipeline)


def test_a_network_distilled_for_guidance(tiny_pipelines: ModuleType) -> None:
    tiny = tiny_pipelines.build("sd")
    tiny.pipe.unet = tiny_pipelines.unet(time_cond_proj_dim=8)
    with pytest.raises(InputError, match="distilled"), guide(tiny.pipe, CFG(2.0)):
        pass


def test_a_scheduler_without_a_gaussian_path(tiny_pipelines: ModuleType) -> None:
    tiny = tiny_pipelines.build("sd")
    tiny.pipe.scheduler = diffusers.ScoreSdeVeScheduler()
    kind = type(tiny.pipe)
    with pytest.raises(InputError, match=r"ScoreSdeVeScheduler.*not to a Gaussian path"), guide(tiny.pipe, CFG(2.0)):
        pass
    assert type(tiny.pipe) is kind


def test_one_block_at_a_time(tiny_pipelines: ModuleType) -> None:
    tiny = tiny_pipelines.build("sd")
    kind = type(tiny.pipe)
    with guide(tiny.pipe, CFG(2.0)):
        with pytest.raises(InputError, match="guided already"), guide(tiny.pipe, APG(3.0)):
            pass
        inner = type(tiny.pipe)
        assert inner is not kind
    assert type(tiny.pipe) is kind
    with guide(tiny.pipe, CFG(2.0)):  # a second block afterwards
        tiny.run()


# --- in a call


@pytest.mark.parametrize("scale", [1.0, 0, -2.5])
def test_a_scale_that_turns_the_pipelines_cfg_off(tiny_pipelines: ModuleType, scale: float) -> None:
    for name in ("sd", "flux"):
        tiny = tiny_pipelines.build(name)
        with guide(tiny.pipe, CFG(3.0)), pytest.raises(InputError, match=f"{tiny.scale_name}: got {scale}"):
            tiny.run(scale)


@pytest.mark.parametrize("embeds", [False, True])
def test_flux_without_a_negative_prompt(tiny_pipelines: ModuleType, embeds: bool) -> None:
    tiny = tiny_pipelines.build("flux", guidance_embeds=embeds)
    with guide(tiny.pipe, CFG(3.0)), pytest.raises(InputError, match="negative_prompt"):
        tiny.run(negative_prompt_embeds=None, negative_pooled_prompt_embeds=None)
    own = tiny.run(3.0)  # with one, a distilled network is guided by true CFG as it is by the pipeline
    with guide(tiny.pipe, CFG(3.0)):
        torch.testing.assert_close(tiny.run(), own, rtol=1e-4, atol=1e-4)


def test_a_third_prediction(tiny_pipelines: ModuleType) -> None:
    tiny = tiny_pipelines.build("sd3")
    with guide(tiny.pipe, CFG(3.0)), pytest.raises(InputError, match="skip_guidance_layers"):
        tiny.run(skip_guidance_layers=[0])


def test_cfg_that_ends_before_the_run(tiny_pipelines: ModuleType) -> None:
    tiny = tiny_pipelines.build("sd")

    def stop(pipe: Any, step: int, timestep: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe._guidance_scale = 0.0
        return {"prompt_embeds": state["prompt_embeds"][-1:]}

    arguments = {"callback_on_step_end": stop, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with guide(tiny.pipe, CFG(3.0)), pytest.raises(InputError, match="without an unconditional half"):
        tiny.run(**arguments)


@pytest.mark.parametrize("name", ["sd", "flux", "dit", "wan"])
def test_an_exception_inside_leaves_nothing_behind(tiny_pipelines: ModuleType, name: str) -> None:
    tiny = tiny_pipelines.build(name)
    kind, own = type(tiny.pipe), tiny.run(3.0)

    class StopError(Exception):
        pass

    def fail(*args: Any, **kwargs: Any) -> None:
        raise StopError

    hook = tiny.pipe.vae.register_forward_pre_hook(fail) if name == "dit" else None
    scheduler = tiny.pipe.scheduler
    step, scheduler.step = scheduler.step, fail
    with pytest.raises(StopError), guide(tiny.pipe, CFG(3.0)):
        tiny.run()
    assert scheduler.step is fail  # what stood there before, ours gone
    del scheduler.step
    assert scheduler.step == step
    if hook is not None:
        hook.remove()
    assert type(tiny.pipe) is kind
    assert not tiny.denoiser._forward_hooks
    assert "set_timesteps" not in vars(scheduler)
    assert torch.equal(tiny.run(3.0), own)
    with guide(tiny.pipe, CFG(3.0)):  # and the block can go on after a failed call
        with pytest.raises(InputError):
            tiny.run(0.5)
        torch.testing.assert_close(tiny.run(), own, rtol=1e-4, atol=1e-4)


def test_two_threads_and_a_shared_network(tiny_pipelines: ModuleType) -> None:
    tiny, other = tiny_pipelines.build("sd"), tiny_pipelines.build("sd_v")
    other.pipe.unet = tiny.pipe.unet
    expected = other.run(3.0)
    found: dict[str, Any] = {}

    def elsewhere() -> None:
        found["other"] = other.run(3.0)  # another pipeline with the same network, not guided
        try:
            tiny.run()
        except InputError as error:
            found["error"] = str(error)

    def during(pipe: Any, step: int, timestep: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        if step == 0:
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
        return {}

    with guide(tiny.pipe, CFG(3.0)):
        tiny.run(callback_on_step_end=during)
    assert torch.equal(found["other"], expected)
    assert "running already" in found["error"]


def test_nan_from_the_network(tiny_pipelines: ModuleType) -> None:
    tiny = tiny_pipelines.build("sd")
    next(iter(tiny.pipe.unet.parameters())).fill_(float("nan"))
    with guide(tiny.pipe, CFG(3.0)), pytest.raises(NonFiniteError, match="evaluation 1 of 3"):
        tiny.run()


# --- pipelines that the table does not know


class HomeMade:
    """A loop of the kind that anybody may write, around a network that tells the two conditions apart."""

    def __init__(self, kind: str, scheduler: Any) -> None:
        self.kind, self.scheduler, self.unet = kind, scheduler, Two()

    @torch.no_grad()
    def __call__(self, guidance_scale: float = 4.0, batch: int = 1, rounds: int = 1) -> Tensor:
        x = torch.randn(batch, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        for _ in range(rounds):
            self.scheduler.set_timesteps(4)
            for t in self.scheduler.timesteps:
                x = self.scheduler.step(self.predict(x, t, guidance_scale), t, x).prev_sample
        return x

    def predict(self, x: Tensor, t: Tensor, scale: float) -> Tensor:
        one, zero = torch.ones(len(x)), torch.zeros(len(x))
        if self.kind in ("halves", "squares"):
            uncond, cond = self.unet(torch.cat([x, x]), t, torch.cat([zero, one])).chunk(2)
            guided = uncond + scale * (cond - uncond)
            return guided.square() if self.kind == "squares" else guided
        if self.kind == "one":
            return self.unet(x, t, one)
        cond = self.unet(x, t, one)
        if self.kind == "copies":  # what the second call is answered with comes too late
            cond = cond.double()
        uncond = self.unet(x, t, zero)
        if self.kind == "three":
            cond = cond + self.unet(x, t, 2 * one)
        return (uncond + scale * (cond - uncond)).float()


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 3, 1)

    def forward(self, sample: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        return self.inner(sample) + condition.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("kind", ["halves", "two"])
def test_an_unknown_pipeline_is_understood(kind: str, batch: int, tiny_pipelines: ModuleType) -> None:
    pipe = HomeMade(kind, tiny_pipelines.ddim())
    own = pipe(7.0, batch)
    with guide(pipe, CFG(7.0)):
        torch.testing.assert_close(pipe(batch=batch), own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["halves", "two"])
def test_two_schedules_in_one_call_are_two_runs(kind: str, tiny_pipelines: ModuleType) -> None:
    pipe = HomeMade(kind, tiny_pipelines.ddim())
    own = pipe(7.0, rounds=2)
    with guide(pipe, CFG(7.0)):
        torch.testing.assert_close(pipe(rounds=2), own, rtol=1e-4, atol=1e-4 * float(own.abs().max()))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["halves", "two"]), st.floats(1.01, 100), st.floats(-5, 30), st.integers(1, 4))
def test_whatever_scale_the_pipeline_has(
    tiny_pipelines: ModuleType, kind: str, theirs: float, ours: float, batch: int
) -> None:
    pipe = HomeMade(kind, tiny_pipelines.ddim())
    expected = pipe(ours, batch)
    with guide(pipe, CFG(ours)):
        got = pipe(theirs, batch)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("squares", "something else"), ("copies", "something else"), ("three", "more than the two"),
        ("one", "without an unconditional half"),
    ],
)  # fmt: skip
def test_or_refused(kind: str, why: str, batch: int, tiny_pipelines: ModuleType) -> None:
    pipe = HomeMade(kind, tiny_pipelines.ddim())
    with guide(pipe, CFG(7.0)), pytest.raises(InputError, match=why):
        pipe(batch=batch)
    assert type(pipe) is HomeMade


# --- the table against the sources of diffusers


def calls_of_diffusers() -> list[tuple[str, str, bool | None, list[str]]]:
    """For every pipeline: its name, "halves" or "two", which half comes first, its arguments; by reading its source."""
    found = []
    for path in sorted((Path(diffusers.__file__).parent / "pipelines").rglob("pipeline_*.py")):
        if "deprecated" in path.parts or "onnx" in path.name:
            continue
        for cls in re.split(r"^class ", path.read_text(), flags=re.MULTILINE)[1:]:
            name, _, call = re.match(r"\w+", cls)[0], *cls.partition("    def __call__(")[1:]
            signature, _, body = call.partition("\n    )")
            if name.endswith("Pipeline") and body:
                kind, first = _read(re.split(r"^    (?:def|@)", body, flags=re.MULTILINE)[0])
                found.append((name, kind, first, re.findall(r"^        (\w+)", signature, flags=re.MULTILINE)))
    return found


def _read(source: str) -> tuple[str, bool | None]:
    for names, value in re.findall(r"^ +(\w+, \w+) = (?=(.*(?:\n.*//.*)?))", source, flags=re.MULTILINE):
        if ("chunk(2" in value or "// 2" in value) and "uncond" in names:
            return "halves", "uncond" in names.split(", ")[1]
    if "model_out_list[:" in source:  # Z-Image's lists
        return "halves", True
    two = re.search(r"\(\w*(cond|pred|text|velocity)\w* - \w*(uncond|neg|null)\w*\)", source)
    return ("two" if two else "none"), None


def test_the_table_says_what_the_sources_say() -> None:
    known = wrong = 0
    for name, kind, first, arguments in calls_of_diffusers():
        if kind == "none" or not set(SCALES) & set(arguments):
            continue
        call = eval(f"lambda {', '.join(arguments)}: None")
        try:
            layout = layout_of(make_class(name, __call__=call))
        except InputError:
            continue
        known += 1
        if (kind == "two") != (layout.calls == "two") or (first is not None and first != layout.conditional_first):
            wrong += 1
            print(name, kind, first, layout)
    assert wrong == 0
    assert known > 100


def test_layouts_by_the_longest_name_and_by_the_class_above() -> None:
    assert layout_of(make_class("JoyImageEditPlusPipeline")) == Layout()
    assert layout_of(make_class("Flux2KleinPipeline")) == LAYOUTS["Flux2Klein"]
    assert layout_of(type("MyPipeline", (make_class("DiTPipeline"),), {})) == LAYOUTS["DiT"]
    assert layout_of(make_class("SomebodysPipeline")) == Layout()
