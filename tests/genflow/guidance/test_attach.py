"""guide(): real pipelines with tiny weights make the images that our guidance says, and are left as they were."""

import importlib
from types import ModuleType
from typing import Any

import accelerate
import diffusers
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from genflow.guidance import APG, CFG, Guidance, guide
from genflow.schedulers import create_scheduler

NAMES = (
    "sd", "sd_v", "sd_img2img", "sd_inpaint", "sd_inpaint_9", "controlnet", "sdxl", "sd3", "sd3_img2img", "flux", "dit",
    "pixart", "kandinsky", "wan", "qwen", "lumina", "z_image", "sdxl_img2img", "sdxl_inpaint", "kontext", "cogvideox",
    "lumina2", "if_upscale", "wan_2_2",
)  # fmt: skip
SCALE = 6.0


class Recorder(Guidance):
    """CFG that keeps what it was given."""

    name = "recorder"

    def reset(self, steps: int | None = None) -> None:
        super().reset(steps)
        self.levels: list[float] = []
        self.numbers: list[int] = []
        self.cond: list[Tensor] = []
        self.uncond: list[Tensor] = []
        self.states: list[Tensor] = []

    def _guide(self, cond: Tensor, uncond: Tensor, x: Tensor, noise_level: float | Tensor, step: int) -> Tensor:
        assert isinstance(noise_level, float)
        self.levels.append(noise_level)
        self.numbers.append(step)
        self.cond.append(cond.clone())
        self.uncond.append(uncond.clone())
        self.states.append(x.clone())
        return torch.lerp(uncond, cond, self.scale_like(cond))


def own_images(tiny: Any, name: str, monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> Tensor:
    """What the pipeline makes by itself at CFG scale SCALE."""
    if name == "z_image":
        return tiny.run(SCALE - 1, **arguments)  # its scale counts from 0
    if name != "qwen":
        return tiny.run(SCALE, **arguments)
    home = importlib.import_module("diffusers.pipelines.qwenimage.pipeline_qwenimage")
    with monkeypatch.context() as patch:  # CFG as it is, without the norms brought back after it
        ones = lambda value, dim, keepdim: torch.ones_like(value).amax(dim, keepdim)  # noqa: E731
        patch.setattr(home, "torch", _Shadow(torch, norm=ones))
        return tiny.run(SCALE, **arguments)


class _Shadow:
    def __init__(self, module: ModuleType, **names: Any) -> None:
        self.__dict__.update(names, _module=module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def assert_untouched(tiny: Any, kind: type) -> None:
    assert type(tiny.pipe) is kind
    assert "step" not in vars(tiny.pipe.scheduler)
    assert "set_timesteps" not in vars(tiny.pipe.scheduler)
    assert not tiny.denoiser._forward_hooks
    assert not tiny.denoiser._forward_hooks_with_kwargs
    assert "prepare_latents" not in vars(tiny.pipe)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_cfg_is_the_pipelines_own_and_apg_is_not(
    tiny_pipelines: ModuleType, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = tiny_pipelines.build(name, dtype=dtype)
    kind = type(tiny.pipe)
    own = own_images(tiny, name, monkeypatch)
    size = float(own.abs().max())
    tolerance = size * (1e-5 if dtype == torch.float32 else 0.05)
    with guide(tiny.pipe, CFG(SCALE)) as same:
        assert same is tiny.pipe
        assert isinstance(tiny.pipe, kind)
        torch.testing.assert_close(tiny.run(), own, rtol=0, atol=tolerance)
        assert torch.equal(tiny.run(1.5), tiny.run(9.0))  # the pipeline's own scale has no say
        torch.testing.assert_close(tiny.run(9.0), own, rtol=0, atol=tolerance)
    with guide(tiny.pipe, APG(SCALE)):
        adaptive = tiny.run()
    assert torch.isfinite(adaptive).all()
    assert float((adaptive - own).abs().max()) > 0.02 * size
    assert_untouched(tiny, kind)
    torch.testing.assert_close(own_images(tiny, name, monkeypatch), own, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_which_half_is_which(tiny_pipelines: ModuleType, name: str) -> None:
    """Another negative prompt changes the unconditional estimate, and another prompt the conditional one, alone."""
    tiny = tiny_pipelines.build(name)
    rule = Recorder(SCALE)

    def first() -> tuple[Tensor, Tensor]:
        with guide(tiny.pipe, rule):
            tiny.run()
        return rule.cond[0], rule.uncond[0]

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(entry) for entry in value]
        return value.roll(1, -1) if isinstance(value, Tensor) else value + 1

    def embeds(key: str) -> bool:
        return key.endswith("_embeds") or key == "class_labels"

    def far(value: Tensor, other: Tensor) -> bool:
        return float((value - other).abs().max()) > 1e-4

    before = tiny.arguments
    cond, uncond = first()
    assert far(cond, uncond)
    tiny.arguments = {k: moved(v) if embeds(k) and not k.startswith("negative_") else v for k, v in before.items()}
    other_cond, other_uncond = first()
    assert far(other_cond, cond)
    assert not far(other_uncond, uncond)
    if name == "dit":  # its unconditional half is a label that nobody passes
        return
    tiny.arguments = {k: moved(v) if embeds(k) and k.startswith("negative_") else v for k, v in before.items()}
    other_cond, other_uncond = first()
    assert not far(other_cond, cond)
    assert far(other_uncond, uncond)


@pytest.mark.parametrize("name", ["sd", "sd_v"])
def test_apg_against_a_loop_by_hand(tiny_pipelines: ModuleType, name: str) -> None:
    """Nothing of genflow but the rule: x0 by the textbook formula, diffusers' own steps."""
    tiny = tiny_pipelines.build(name)
    start = torch.randn(1, 4, 8, 8)
    with guide(tiny.pipe, APG(SCALE, norm_threshold=4.0)):
        got = tiny.run(latents=start.clone())
    scheduler, rule, x = tiny.pipe.scheduler, APG(SCALE, norm_threshold=4.0), start.clone()
    scheduler.set_timesteps(tiny_pipelines.STEPS)
    rule.reset()
    with torch.no_grad():
        for step, t in enumerate(scheduler.timesteps):
            square = scheduler.alphas_cumprod[t].double()
            a, s = square.sqrt().item(), (1 - square).sqrt().item()
            cond, uncond = (
                tiny.pipe.unet(x, t, encoder_hidden_states=tiny.arguments[key]).sample
                for key in ("prompt_embeds", "negative_prompt_embeds")
            )
            if name == "sd":
                x0 = rule((x - s * cond) / a, (x - s * uncond) / a, x, s / a, step)
                output = (x - a * x0) / s
            else:
                x0 = rule(a * x - s * cond, a * x - s * uncond, x, s / a, step)
                output = (a * x - x0) / s
            x = scheduler.step(output, t, x).prev_sample
    torch.testing.assert_close(got, x, rtol=1e-4, atol=1e-4)


def test_both_networks_of_wan_2_2_are_guided(tiny_pipelines: ModuleType) -> None:
    tiny = tiny_pipelines.build("wan_2_2")
    calls = {name: 0 for name in ("transformer", "transformer_2")}

    def count(name: str) -> Any:
        def hook(*args: Any) -> None:
            calls[name] += 1

        return hook

    hooks = [getattr(tiny.pipe, name).register_forward_hook(count(name)) for name in calls]
    rule = Recorder(SCALE)
    with guide(tiny.pipe, rule):
        tiny.run(steps=4)
    for hook in hooks:
        hook.remove()
    assert min(calls.values()) > 0
    assert sum(calls.values()) == 8
    assert rule.numbers == [0, 1, 2, 3]


SCHEDULERS = (
    "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "EDMEulerScheduler", "euler", "heun", "rk4", "ghvb",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind"), [("sd", kind) for kind in SCHEDULERS] + [("sd_img2img", kind) for kind in SCHEDULERS[::3]]
)
def test_noise_level_state_and_step_of_every_scheduler(tiny_pipelines: ModuleType, name: str, kind: str) -> None:
    config = {} if kind.startswith("EDM") else tiny_pipelines.ddim(prediction_type="v_prediction").config
    tiny = tiny_pipelines.build(name, scheduler=create_scheduler(kind, config))
    rule = Recorder(SCALE)
    own = tiny.run(SCALE, steps=6)
    with guide(tiny.pipe, rule):
        got = tiny.run(steps=6)
    torch.testing.assert_close(got, own, rtol=0, atol=2e-5 * float(own.abs().max()))
    scheduler = tiny.pipe.scheduler
    steps = 6 if name == "sd" else 4
    assert rule.steps == steps
    assert sorted(set(rule.numbers)) == list(range(steps))
    assert rule.numbers == sorted(rule.numbers)
    begin = len(scheduler.timesteps) - len(rule.levels)
    if kind in ("PNDMScheduler", "KDPM2DiscreteScheduler"):
        return  # no sigmas, or sigmas that are not those of the evaluations
    if hasattr(scheduler, "sigmas"):
        expected = torch.as_tensor(scheduler.sigmas[begin : begin + len(rule.levels)]).double()
        # some diffusers schedulers round a timestep whose sigma they do not round
        torch.testing.assert_close(torch.tensor(rule.levels).double(), expected, rtol=0.03, atol=1e-4)
    else:
        square = scheduler.alphas_cumprod[scheduler.timesteps[begin:].long()].double()
        expected = ((1 - square) / square).sqrt()
        torch.testing.assert_close(torch.tensor(rule.levels).double(), expected, rtol=1e-5, atol=0)


def test_state_is_on_the_path(tiny_pipelines: ModuleType) -> None:
    """The network's scaled input is the state of a beta schedule; EDM's scaling is undone."""
    latents = torch.randn(1, 4, 8, 8)
    euler = tiny_pipelines.build(
        "sd", scheduler=create_scheduler("EulerDiscreteScheduler", tiny_pipelines.ddim().config)
    )
    edm = tiny_pipelines.build("sd", scheduler=diffusers.EDMEulerScheduler())
    for tiny, std in ((euler, 1.0), (edm, 80.0)):
        rule = Recorder(SCALE)
        with guide(tiny.pipe, rule):
            tiny.run(latents=latents.clone())
        level = rule.levels[0]
        scale = 1 / (1 + level**2) ** 0.5 if std == 1 else 1.0
        expected = latents * float(tiny.pipe.scheduler.init_noise_sigma) * scale
        torch.testing.assert_close(rule.states[0], expected, rtol=1e-4, atol=1e-4 * std)


def test_two_images_a_prompt_and_two_prompts(tiny_pipelines: ModuleType) -> None:
    for name in ("sd", "flux", "wan"):
        tiny = tiny_pipelines.build(name)
        many = "num_videos_per_prompt" if name == "wan" else "num_images_per_prompt"
        own = tiny.run(SCALE, **{many: 2})
        with guide(tiny.pipe, CFG(SCALE)):
            torch.testing.assert_close(tiny.run(**{many: 2}), own, rtol=1e-4, atol=1e-4)
        with guide(tiny.pipe, CFG([SCALE, 3.0])):  # a scale an image
            each = tiny.run(**{many: 2})
        torch.testing.assert_close(each[0], own[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(each[1], tiny.run(3.0, **{many: 2})[1], rtol=1e-4, atol=1e-4)


def test_two_equal_latents_do_not_look_like_two_halves(tiny_pipelines: ModuleType) -> None:
    tiny = tiny_pipelines.build("flux")
    arguments = {"num_images_per_prompt": 2, "latents": torch.randn(1, 16, 16).repeat(2, 1, 1)}
    own = tiny.run(SCALE, **arguments)
    with guide(tiny.pipe, CFG(SCALE)):
        torch.testing.assert_close(tiny.run(**arguments), own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_the_pipelines_own_rescale_does_nothing(tiny_pipelines: ModuleType, name: str) -> None:
    tiny = tiny_pipelines.build(name)
    with guide(tiny.pipe, APG(SCALE)):
        plain, rescaled = tiny.run(), tiny.run(guidance_rescale=0.7)
    torch.testing.assert_close(rescaled, plain, rtol=1e-4, atol=1e-4)


def test_controlnet_that_guesses(tiny_pipelines: ModuleType) -> None:
    tiny = tiny_pipelines.build("controlnet")
    own = tiny.run(SCALE, guess_mode=True)
    with guide(tiny.pipe, CFG(SCALE)):
        torch.testing.assert_close(tiny.run(guess_mode=True), own, rtol=1e-4, atol=1e-4)


def test_guidance_inside_an_interval_and_a_window(tiny_pipelines: ModuleType) -> None:
    tiny = tiny_pipelines.build("sd")
    rule = Recorder(SCALE, interval=(0.1, 2.0))
    with guide(tiny.pipe, rule):
        tiny.run(steps=6)
    assert rule.numbers == [2, 3, 4]
    with guide(tiny.pipe, Recorder(SCALE, start=0.5)) as pipe, pytest.raises(AttributeError):
        pipe.nothing_of_that_name  # noqa: B018 (a mistake inside the block)
    plain = tiny.run(1.0)
    for neutral in (CFG(1.0), APG(SCALE, interval=(900.0, None))):
        with guide(tiny.pipe, neutral):
            torch.testing.assert_close(tiny.run(), plain, rtol=1e-4, atol=1e-4)


def test_momentum_does_not_leak_from_run_to_run(tiny_pipelines: ModuleType) -> None:
    tiny = tiny_pipelines.build("sd3", scheduler=create_scheduler("heun", tiny_pipelines.flow(shift=3.0).config))
    with guide(tiny.pipe, APG(SCALE, momentum=-0.75)):
        assert torch.equal(tiny.run(), tiny.run())


def test_scheduler_and_network_exchanged_inside_the_block(tiny_pipelines: ModuleType) -> None:
    tiny, other = tiny_pipelines.build("sd"), tiny_pipelines.build("sd_v")
    expected = other.run(SCALE)
    with guide(tiny.pipe, CFG(SCALE)):
        tiny.run()
        tiny.pipe.scheduler, tiny.pipe.unet = other.pipe.scheduler, other.pipe.unet
        torch.testing.assert_close(tiny.run(), expected, rtol=1e-4, atol=1e-4)
    assert_untouched(tiny, diffusers.StableDiffusionPipeline)


class Counter(ModelHook):
    """Counts, and changes nothing."""

    calls = 0

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return args, kwargs


@pytest.mark.parametrize("name", ["sd", "flux", "dit", "wan"])
@pytest.mark.parametrize("hook", ["model", "layers", "own"])
def test_beside_the_hooks_of_accelerate(tiny_pipelines: ModuleType, name: str, hook: str) -> None:
    tiny = tiny_pipelines.build(name)
    with guide(tiny.pipe, APG(SCALE)):
        expected = tiny.run()
    counter = Counter()
    if hook == "model":
        tiny.pipe.enable_model_cpu_offload(device="cpu")  # which takes its hooks off and on at the end of a call
    elif hook == "layers":
        for part in tiny.pipe.components.values():
            if isinstance(part, torch.nn.Module):
                accelerate.cpu_offload(part, execution_device=torch.device("cpu"), offload_buffers=True)
    else:
        add_hook_to_module(tiny.denoiser, counter)
    with guide(tiny.pipe, APG(SCALE)):
        assert torch.equal(tiny.run(), expected)
        assert torch.equal(tiny.run(), expected)
    assert hook != "own" or counter.calls > 0
    assert hasattr(tiny.denoiser, "_hf_hook")
    assert_untouched(tiny, type(tiny.pipe))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_compiled_networks(tiny_pipelines: ModuleType, inplace: bool) -> None:
    tiny = tiny_pipelines.build("dit")
    with guide(tiny.pipe, APG(SCALE)):
        expected = tiny.run()
    if inplace:
        tiny.pipe.transformer.compile(backend="eager", fullgraph=True)
    else:
        tiny.pipe.transformer = torch.compile(tiny.pipe.transformer, backend="eager", fullgraph=True)
    own = tiny.run(SCALE)
    compiled = tiny.denoiser._compiled_call_impl
    with guide(tiny.pipe, APG(SCALE)):
        torch.testing.assert_close(tiny.run(), expected, rtol=1e-4, atol=1e-4)
    assert tiny.denoiser._compiled_call_impl is compiled
    torch.testing.assert_close(tiny.run(SCALE), own, rtol=0, atol=0)


class Reads(TorchDispatchMode):
    """Counts the reads of a tensor's value by the host, each of which would wait for an accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["sd", "sd3", "flux"])
def test_no_read_of_the_device_in_a_step(tiny_pipelines: ModuleType, name: str) -> None:
    tiny = tiny_pipelines.build(name)

    def reads(steps: int, guided: bool) -> int:
        with Reads() as mode:
            if guided:
                with guide(tiny.pipe, APG(SCALE)):
                    tiny.run(steps=steps)
            else:
                tiny.run(SCALE, steps=steps)
        return mode.count

    extra = [reads(steps, True) - reads(steps, False) for steps in (3, 6)]
    assert extra[0] == extra[1]  # some a run, none a step
