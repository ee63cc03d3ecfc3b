"""CFG's identities, and the guided model around any other."""

import json
import math
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.guiders.guider_utils import rescale_noise_cfg
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genflow.errors import InputError
from genflow.guidance import APG, CFG, GUIDANCES, GuidedModel, create_guidance
from genflow.models import PathModel, from_diffusers, from_function
from genflow.paths import EDMPath, LinearPath, TrigonometricPath, VPPath
from genflow.prediction import KINDS, Prediction
from genflow.sampling import sample, sample_adaptive

PATHS = [LinearPath(), VPPath.linear(), VPPath.cosine(), EDMPath(5.0), TrigonometricPath()]
NULL = 10


class Labelled(PathModel):
    """Predicts a different function for every label, and counts calls and samples."""

    num_classes = NULL

    def __init__(self, path: Any = None, kind: str = "flow_prediction") -> None:
        self.path, self.kind = path or LinearPath(), kind
        self.batches: list[int] = []

    def predict(self, x: Tensor, t: float | Tensor, class_labels: Tensor, **_: Any) -> Prediction:
        self.batches.append(len(x))
        shape = (-1, *(1,) * (x.ndim - 1))
        shift = torch.as_tensor(class_labels).to(x.dtype).reshape(shape)
        time = torch.as_tensor(t, dtype=x.dtype).expand(len(x)).reshape(shape)
        return Prediction(torch.sin(x + shift) * (1 + time), self.kind, x, self.path, t)


def state(seed: int = 0) -> Tensor:
    return torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(scale=st.floats(-5, 20), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_cfg_identities(scale: float, seed: int) -> None:
    cond, uncond, x = (state(3 * seed + i) for i in range(3))
    out = CFG(scale)(cond, uncond, x, 1.0, 0)
    torch.testing.assert_close(out, uncond + scale * (cond - uncond))
    torch.testing.assert_close(out, cond + (scale - 1) * (cond - uncond))
    torch.testing.assert_close(CFG(scale)(cond, cond, x, 1.0, 0), cond)
    # swapping the roles mirrors the scale
    torch.testing.assert_close(CFG(1 - scale)(uncond, cond, x, 1.0, 0), out)
    # linear in both estimates
    torch.testing.assert_close(CFG(scale)(2 * cond + x, 2 * uncond + x, x, 1.0, 0), 2 * out + x)


def test_scales_zero_and_one_are_exact() -> None:
    cond, uncond = state(1) * 1e3, state(2)
    assert torch.equal(CFG(1.0)(cond, uncond, cond, 1.0, 0), cond)
    assert torch.equal(CFG(0.0)(cond, uncond, cond, 1.0, 0), uncond)


def test_a_scale_for_each_sample() -> None:
    cond, uncond = state(1), state(2)
    scales = torch.tensor([0.0, 1.0, 4.5], dtype=torch.float64)
    out = CFG(scales)(cond, uncond, cond, 1.0, 0)
    for i, scale in enumerate(scales.tolist()):
        torch.testing.assert_close(out[i], CFG(scale)(cond[i], uncond[i], cond[i], 1.0, 0))
    assert CFG(scales).is_active(1.0)
    assert not CFG(torch.ones(3)).is_active(1.0)
    with pytest.raises(InputError, match="does not fit"):
        CFG(torch.ones(2) * 2)(cond, uncond, cond, 1.0, 0)


def test_interval() -> None:
    guidance = CFG(2.0, interval=(0.5, 3.0))
    assert [guidance.is_active(level) for level in (0.0, 0.5, 0.50001, 3.0, 3.1, math.inf)] == [
        *(False, False, True, True, False, False)
    ]
    assert CFG(2.0).is_active(math.inf)
    assert CFG(2.0, interval=(0.5, None)).is_active(math.inf)
    assert not CFG(1.0).is_active(1.0)


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("per_sample_time", [False, True])
def test_one_batched_call_is_two_calls(path: Any, per_sample_time: bool) -> None:
    model = Labelled(path)
    x, labels = state(), torch.tensor([0, 3, 7])
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64) if per_sample_time else 0.4
    guided = GuidedModel(model, CFG(3.0)).predict(x, t, class_labels=labels)
    assert model.batches == [6]
    cond, uncond = (model.predict(x, t, class_labels=c).x0 for c in (labels, torch.full((3,), NULL)))
    torch.testing.assert_close(guided.x0, uncond + 3 * (cond - uncond))
    assert guided.t is t
    assert guided.path == path


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_cfg_is_the_same_in_every_space(path: Any, kind: str) -> None:
    x, labels, t = state(), torch.tensor([0, 3, 7]), 0.4
    guided = GuidedModel(Labelled(path, kind), CFG(3.0)).predict(x, t, class_labels=labels).to(kind)
    raw = [Labelled(path, kind).predict(x, t, class_labels=c).to(kind) for c in (labels, torch.full((3,), NULL))]
    torch.testing.assert_close(guided, raw[1] + 3 * (raw[0] - raw[1]), rtol=1e-7, atol=1e-7)


def test_no_second_half_where_guidance_does_not_act() -> None:
    model, labels = Labelled(), torch.tensor([0, 3, 7])
    plain = model.predict(state(), 0.5, class_labels=labels).x0
    for guidance in (CFG(1.0), CFG(4.0, interval=(2.0, 5.0)), CFG(torch.ones(3))):
        assert torch.equal(GuidedModel(model, guidance).predict(state(), 0.5, class_labels=labels).x0, plain)
    GuidedModel(model, CFG(1.0)).predict(state(), torch.full((3,), 0.5), class_labels=labels)
    assert model.batches == [3] * 5


def test_interval_with_times_of_their_own() -> None:
    model, labels = Labelled(), torch.tensor([0, 3, 7])
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)  # levels 1/9, 1, 9
    some = GuidedModel(model, CFG(3.0, interval=(0.5, 2.0))).predict(state(), t, class_labels=labels).x0
    every = GuidedModel(model, CFG(3.0)).predict(state(), t, class_labels=labels).x0
    none = model.predict(state(), t, class_labels=labels).x0
    torch.testing.assert_close(some, torch.stack([none[0], every[1], none[2]]))


def test_a_part_of_the_steps() -> None:
    guidance = CFG(3.0, start=0.2, stop=0.75)
    assert guidance.counts_steps
    assert not CFG(3.0).counts_steps
    with pytest.raises(InputError, match="number of steps is not known"):
        guidance.is_active(1.0, 3)
    for steps, active in ((10, range(2, 8)), (4, range(1, 3)), (1, ())):
        guidance.reset(steps)
        assert [step for step in range(steps) if guidance.is_active(1.0, step)] == list(active)
    for steps in range(1, 200):  # the fraction k/N begins at step k whatever rounding does to it
        for first in range(steps):
            guidance = CFG(3.0, start=first / steps)
            guidance.reset(steps)
            assert guidance.is_active(1.0, first)
            assert first == 0 or not guidance.is_active(1.0, first - 1)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_the_loop_guides_a_part_of_the_steps(solver: str) -> None:
    model, labels, x = Labelled(), torch.tensor([0, 3, 7]), state()
    times = [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    some = sample(model, x, times, solver, CFG(3.0, start=0.2, stop=0.6), class_labels=labels)
    evaluations = {"euler": [3, 6, 6, 3, 3], "heun": [3, 3, 6, 6, 6, 6, 3, 3, 3]}[solver]
    assert model.batches == evaluations
    if solver == "euler":  # the same part in noise level: steps 1 and 2 ask at t = 0.8 and 0.6
        levels = CFG(3.0, interval=(1.0, 4.5))
        assert torch.equal(some, sample(model, x, times, solver, levels, class_labels=labels))


def test_an_adaptive_solver_counts_no_steps() -> None:
    model, labels = Labelled(), torch.tensor([0, 3, 7])
    for guidance in (CFG(3.0, stop=0.5), APG(3.0)):
        with pytest.raises(InputError, match="adaptive solver"):
            sample_adaptive(model, state(), guidance=guidance, class_labels=labels)
    plain = sample_adaptive(model, state(), guidance=CFG(1.5), rtol=1e-3, atol=1e-3, class_labels=labels)
    still = APG(1.5, eta=1.0, norm_threshold=None, momentum=0.0)
    other = sample_adaptive(model, state(), guidance=still, rtol=1e-3, atol=1e-3, class_labels=labels)
    torch.testing.assert_close(plain.x, other.x)


def test_rescale_in_closed_form() -> None:
    cond, uncond = state(1), state(2) + 1
    guided = CFG(6.0)(cond, uncond, cond, 1.0)
    std = guided.std(dim=(1, 2), keepdim=True) / cond.std(dim=(1, 2), keepdim=True)
    full = CFG(6.0, rescale=1.0)(cond, uncond, cond, 1.0)
    torch.testing.assert_close(full, guided / std)
    torch.testing.assert_close(full.std(dim=(1, 2)), cond.std(dim=(1, 2)))
    some = CFG(6.0, rescale=0.7)(cond, uncond, cond, 1.0)
    torch.testing.assert_close(some, 0.7 * full + 0.3 * guided)
    theirs = rescale_noise_cfg(guided, cond, 0.7)
    torch.testing.assert_close(some, theirs)
    scales = torch.tensor([1.0, 6.0, 3.0])  # each sample by itself
    torch.testing.assert_close(CFG(scales, rescale=0.7)(cond, uncond, cond, 1.0)[1], some[1])
    flat = torch.full((2, 1, 4), 3.0)
    torch.testing.assert_close(CFG(2.0, rescale=0.7)(flat, flat * 0, flat, 1.0), flat * 2)
    assert torch.equal(CFG(2.0, rescale=0.7)(flat[:, :, :1], flat[:, :, :1], flat[:, :, :1], 1.0), flat[:, :, :1])


@pytest.mark.parametrize("rule", [CFG, APG])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_answer_is_float32_at_least(rule: Any, dtype: torch.dtype) -> None:
    cond, uncond = state(1).to(dtype), state(2).to(dtype)
    for scale in (2.5, torch.tensor([1.0, 2.0, 3.0])):
        out = rule(scale, rescale=0.5)(cond, uncond, cond, 1.0, 0)
        assert out.dtype == torch.promote_types(dtype, torch.float32)
        wide = rule(scale, rescale=0.5)(cond.double(), uncond.double(), cond, 1.0, 0)
        torch.testing.assert_close(out.double(), wide, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="uncond_x0"):
        rule(2.0)(cond, uncond[:1], cond, 1.0)


def test_other_conditioning_and_its_unconditional_value() -> None:
    seen: dict[str, Any] = {}

    def network(x: Tensor, t: float, **conditioning: Any) -> Tensor:
        seen.update(conditioning)
        return x * conditioning["prompt"].mean(dim=1).reshape(-1, 1, 1)

    model = from_function(network, LinearPath(), "sample")
    prompt, empty = torch.full((3, 5), 2.0, dtype=torch.float64), torch.ones(1, 5, dtype=torch.float64)
    guided = GuidedModel(model, CFG(4.0), unconditional={"prompt": empty})
    x = state()
    out = guided.predict(x, 0.5, prompt=prompt, size=torch.tensor([1, 2, 3]), flag=True, common=torch.zeros(()))
    torch.testing.assert_close(out.x0, x + 4 * (2 * x - x))
    assert seen["size"].tolist() == [1, 2, 3, 1, 2, 3]
    assert seen["flag"] is True
    assert seen["common"].shape == ()
    with pytest.raises(InputError, match="guide towards"):
        guided.predict(x, 0.5)
    with pytest.raises(InputError, match="guide towards"):
        GuidedModel(Labelled(), CFG(2.0)).predict(x, 0.5)


def test_null_label() -> None:
    model = from_function(lambda x, t, class_labels: x * class_labels.reshape(-1, 1, 1), LinearPath(), "sample")
    with pytest.raises(InputError, match="null_label"):
        GuidedModel(model, CFG(2.0)).predict(state(), 0.5, class_labels=torch.ones(3, dtype=torch.int64))
    guided = GuidedModel(model, CFG(2.0), null_label=5)
    assert guided.null_label == 5
    out = guided.predict(state(), 0.5, class_labels=[1, 2, 3])
    torch.testing.assert_close(out.x0[0], state()[0] * (5 + 2 * (1 - 5)))


def test_a_real_network() -> None:
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        num_class_embeds=NULL + 1,
    ).eval()
    model = from_diffusers(network, LinearPath(), "flow_prediction", num_classes=NULL)
    x, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 9])
    with torch.no_grad():
        guided = GuidedModel(model, CFG(2.0)).predict(x, 0.6, class_labels=labels).velocity
        cond, uncond = network(x, 600, labels).sample, network(x, 600, torch.full((4,), NULL)).sample
    torch.testing.assert_close(guided, uncond + 2 * (cond - uncond), rtol=1e-4, atol=1e-5)


def test_reset_and_step_reach_the_guidance() -> None:
    class Remembering(CFG):
        def reset(self, steps: int | None = None) -> None:
            super().reset(steps)
            self.seen: list[int] = []

        def __call__(self, cond_x0: Tensor, uncond_x0: Tensor, x: Tensor, noise_level: Any, step: int = 0) -> Tensor:
            self.seen.append(step)
            return super().__call__(cond_x0, uncond_x0, x, noise_level, step)

    guidance = Remembering(2.0)
    guided = GuidedModel(Labelled(), guidance)
    guided.step = 7
    guided.reset(2)
    assert (guided.step, guidance.steps) == (0, 2)
    for guided.step in (0, 0, 1):
        guided.predict(state(), 0.5, class_labels=torch.tensor([0, 3, 7]))
    assert guidance.seen == [0, 0, 1]


def test_config() -> None:
    assert set(GUIDANCES) == {"cfg", "apg"}
    for guidance in (CFG(3.0), CFG(torch.tensor([1.0, 2.5]), interval=(0.25, 4.0)), CFG(), CFG(2, rescale=0.7)):
        config = json.loads(json.dumps(guidance.to_config()))
        again = create_guidance(**config)
        assert again.interval == guidance.interval
        assert again.to_config() == guidance.to_config()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cgf"}, "did you mean 'cfg'"),
        ({"name": "cfg", "scael": 2.0}, "did you mean 'scale'"),
        ({"name": "cfg", "scale": math.nan}, "scale"),
        ({"name": "cfg", "scale": "2"}, "scale"),
        ({"name": "cfg", "scale": torch.tensor([1.0, math.inf])}, "scale"),
        ({"name": "cfg", "scale": torch.ones(2, 2)}, "scale"),
        ({"name": "cfg", "scale": [1.0, "2"]}, "scale"),
        ({"name": "cfg", "scale": []}, "scale"),
        ({"name": "cfg", "start": 1.0}, "start"),
        ({"name": "cfg", "start": 0.5, "stop": 0.5}, "stop"),
        ({"name": "cfg", "stop": 1.1}, "stop"),
        ({"name": "cfg", "rescale": 1.1}, "rescale"),
        ({"name": "cfg", "rescale": math.nan}, "rescale"),
        ({"name": "cfg", "interval": (2.0, 1.0)}, "interval"),
        ({"name": "cfg", "interval": (-1.0, 1.0)}, "interval"),
        ({"name": "cfg", "interval": (1.0,)}, "interval"),
        ({"name": "cfg", "interval": 1.0}, "interval"),
        ({"name": "cfg", "interval": ("a", "b")}, "interval"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_guidance(**options)
