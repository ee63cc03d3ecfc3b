"""APG against its formula in float64, against diffusers' on x0, and what must not change it."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genflow.errors import InputError
from genflow.guidance import APG, CFG, Guidance, GuidedModel, create_guidance
from genflow.models import from_function
from genflow.paths import EDMPath, LinearPath, Path, TrigonometricPath, VPPath, expand_like
from genflow.prediction import KINDS, PREDICTION_TYPES
from genflow.sampling import sample, time_grid

PATHS = [LinearPath(), VPPath.linear(), EDMPath(5.0), TrigonometricPath()]
NULL = 10
LABELS = torch.tensor([0, 3, 7])
STILL = {"eta": 1.0, "norm_threshold": None, "momentum": 0.0}


def tensors(count: int, shape: tuple[int, ...] = (3, 2, 4), seed: int = 0, dtype: Any = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def formula(cond: np.ndarray, uncond: np.ndarray, m: np.ndarray, w: float, eta: float, r: float, beta: float) -> Any:
    """Algorithm 1 for one sample, word for word, in float64; gives the guided x0 and the new m."""
    m = (cond - uncond) + beta * m
    size = np.sqrt((m**2).sum())
    d = m * min(1.0, r / size) if r > 0 and size > 0 else m
    length = np.sqrt((cond**2).sum())
    unit = cond / length if length > 0 else cond
    parallel = (d * unit).sum() * unit
    return cond + (w - 1) * ((d - parallel) + eta * parallel), m


@given(
    scale=st.floats(-3, 20),
    eta=st.floats(-1, 2),
    limit=st.sampled_from([0.0, 0.5, 3.0, 1e6]),
    momentum=st.floats(-0.95, 0.95),
    shape=st.sampled_from([(1, 7), (3, 2, 4), (2, 3, 4, 4), (2, 3, 2, 4, 4)]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_the_formula(
    scale: float, eta: float, limit: float, momentum: float, shape: Any, dtype: Any, seed: int
) -> None:
    guidance = APG(scale, eta, limit, momentum)
    guidance.reset(4)
    m = [np.zeros(shape[1:])] * shape[0]
    for step in range(4):
        cond, uncond = tensors(2, shape, 10 * seed + step, dtype)
        out = guidance(cond, uncond, cond, 1.0, step)
        for b in range(shape[0]):
            expected, m[b] = formula(
                cond[b].double().numpy(), uncond[b].double().numpy(), m[b], scale, eta, limit, momentum
            )
            tolerance = 1e-9 if dtype == torch.float64 else 2e-4
            np.testing.assert_allclose(out[b].double().numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("limit", [0.0, 5.0])
def test_diffusers_own_on_x0(eta: float, limit: float) -> None:
    ours, theirs = APG(7.5, eta, limit, -0.5), MomentumBuffer(-0.5)
    for step in range(6):
        cond, uncond = tensors(2, (2, 4, 16, 16), step, torch.float32)
        expected = normalized_guidance(cond, uncond, 6.5, theirs, eta, limit, use_original_formulation=True)
        torch.testing.assert_close(ours(cond, uncond, cond, 1.0, step), expected, rtol=1e-5, atol=1e-5)


def labelled(path: Path, kind: str) -> Any:
    """One denoiser for all, told as ``kind``: its x0 depends on the label and the state, not on the kind."""

    def x0(x: Tensor, t: Any, class_labels: Any) -> Tensor:
        shift = torch.as_tensor(class_labels).to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
        return torch.sin(x / (1 + expand_like(path.noise_level(t), x)) + shift)

    exact = from_function(x0, path, "sample", num_classes=NULL)
    return from_function(lambda x, t, **c: exact.predict(x, t, **c).to(kind), path, kind, num_classes=NULL)


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_without_its_parts_it_is_cfg_in_every_space(path: Path, kind: str) -> None:
    x = tensors(1)[0]
    model = labelled(path, kind)
    ours, cfg = (GuidedModel(model, rule) for rule in (APG(6.0, **STILL), CFG(6.0)))
    for t in (0.9, 0.5, 0.05, torch.tensor([0.9, 0.5, 0.05], dtype=torch.float64)):
        prediction, expected = (m.predict(x, t, class_labels=LABELS) for m in (ours, cfg))
        for space in KINDS:
            torch.testing.assert_close(prediction.to(space), expected.to(space), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_what_the_network_predicts_does_not_matter(path: Path, solver: str) -> None:
    x = tensors(1)[0] * path.sigma(0.95)
    times = time_grid(path, 6, start=0.95)
    results = []
    for kind in PREDICTION_TYPES:
        rule = APG(5.0, 0.2, 1.5, -0.6)
        results.append(sample(labelled(path, kind), x, times, solver, rule, class_labels=LABELS))
    plain = sample(labelled(path, "sample"), x, times, solver, CFG(5.0), class_labels=LABELS)
    assert (results[0] - plain).abs().max() > 0.1  # the rule does something
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-8, atol=1e-8)


def test_momentum_is_counted_once_a_step() -> None:
    """Each evaluation adds to the m of the step before; the first of a step is the one that is kept."""
    estimates = [tensors(2, seed=i) for i in range(6)]
    steps = [0, 0, 1, 1, 1, 2]
    guidance = APG(3.0, 1.0, None, -0.5)
    d = [cond - uncond for cond, uncond in estimates]
    m = [d[0], d[1], d[2] - 0.5 * d[0], d[3] - 0.5 * d[0], d[4] - 0.5 * d[0], d[5] - 0.5 * (d[2] - 0.5 * d[0])]
    for (cond, uncond), step, expected in zip(estimates, steps, m, strict=True):
        torch.testing.assert_close(guidance(cond, uncond, cond, 1.0, step), cond + 2 * expected)


def test_heun_guides_as_often_as_euler() -> None:
    """With estimates that never change, a second evaluation a step changes nothing."""
    path, x = LinearPath(), tensors(1)[0]
    seen: dict[str, list[Tensor]] = {}
    for solver in ("euler", "heun"):

        class Recording(APG):
            def _guide(self, *args: Any) -> Tensor:
                out = super()._guide(*args)
                seen.setdefault(solver, []).append(out)  # noqa: B023 (used within the turn)
                return out

        constant = from_function(
            lambda x, t, class_labels: (1.0 + class_labels.to(x.dtype)).reshape(-1, 1, 1).expand_as(x), path, "sample",
            num_classes=NULL,
        )  # fmt: skip
        rule = Recording(3.0, 1.0, None, -0.5)
        sample(constant, x, [1.0, 0.75, 0.5, 0.25, 0.0], solver, rule, class_labels=LABELS)
    assert len(seen["euler"]) == 4
    assert len(seen["heun"]) == 7
    for i, out in enumerate(seen["heun"]):
        torch.testing.assert_close(out, seen["euler"][i // 2])


def test_every_run_begins_without_momentum() -> None:
    guidance, fresh = APG(4.0), APG(4.0)
    for step in range(3):
        guidance(*tensors(2, seed=step), tensors(1)[0], 1.0, step)
    guidance.reset(3)
    cond, uncond = tensors(2, (5, 2, 4), 9)  # another batch size, and a start in the middle
    assert torch.equal(guidance(cond, uncond, cond, 1.0, 7), fresh(cond, uncond, cond, 1.0, 0))
    with pytest.raises(InputError, match="call reset"):
        guidance(*tensors(2, seed=1), tensors(1)[0], 1.0, 8)
    again = APG(4.0)
    for step in (5, 6, 0):  # a step that falls is a new run, even where nobody says so
        cond, uncond = tensors(2, seed=step)
        out = again(cond, uncond, cond, 1.0, step)
    assert torch.equal(out, APG(4.0)(cond, uncond, cond, 1.0, 3))


@pytest.mark.parametrize("options", [{"interval": (0.0, 1.0)}, {"start": 0.5}])
def test_momentum_of_a_guidance_that_starts_late(options: dict[str, Any]) -> None:
    """It begins where guidance begins: the run from there on is the run of a guidance that knows no interval."""
    path, x = LinearPath(), tensors(1)[0]
    model = labelled(path, "flow_prediction")
    times = [1.0, 0.75, 0.5, 0.25, 0.0]
    late = sample(model, x, times, "euler", APG(4.0, **options), class_labels=LABELS)
    half = sample(model, x, times[:3], "euler", class_labels=LABELS)
    torch.testing.assert_close(late, sample(model, half, times[2:], "euler", APG(4.0), class_labels=LABELS))


def test_samples_of_their_own_times_keep_their_own_momentum() -> None:
    guidance = APG(4.0, interval=(0.5, 2.0))
    alone = [APG(4.0, interval=(0.5, 2.0)) for _ in range(3)]
    for step, levels in enumerate(([3.0, 1.9, 1.0], [1.8, 1.0, 0.7], [1.0, 0.6, 0.4])):
        cond, uncond = tensors(2, seed=step)
        out = guidance(cond, uncond, cond, torch.tensor(levels), step)
        for i, level in enumerate(levels):
            if alone[i].is_active(level, step):
                expected = alone[i](cond[i : i + 1], uncond[i : i + 1], cond[i : i + 1], level, step)
            else:
                expected = cond[i : i + 1]
            torch.testing.assert_close(out[i : i + 1], expected)


def test_a_scale_for_each_sample() -> None:
    scales = torch.tensor([1.0, 4.5, -2.0])
    together, alone = APG(scales), [APG(scale) for scale in scales.tolist()]
    for step in range(3):
        cond, uncond = tensors(2, seed=step)
        out = together(cond, uncond, cond, 1.0, step)
        assert torch.equal(out[0], cond[0])
        for i, rule in enumerate(alone):
            torch.testing.assert_close(out[i], rule(cond[i : i + 1], uncond[i : i + 1], cond, 1.0, step)[0])
    with pytest.raises(InputError, match="does not fit"):
        APG(torch.ones(2) * 2)(cond, uncond, cond, 1.0, 0)


def test_scale_one_asks_for_nothing() -> None:
    calls = []

    def network(x: Tensor, t: float, class_labels: Tensor) -> Tensor:
        calls.append(len(x))
        return x

    model = from_function(network, LinearPath(), "sample", num_classes=NULL)
    sample(model, tensors(1)[0], [1.0, 0.5, 0.0], "euler", APG(1.0), class_labels=LABELS)
    assert calls == [3, 3]
    assert not APG(torch.ones(3)).is_active(1.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_zeros_and_large_values(dtype: torch.dtype) -> None:
    cond, uncond = tensors(2, dtype=dtype)
    zero = torch.zeros_like(cond)
    for rule in (APG(7.0), APG(7.0, norm_threshold=1.0), APG(7.0, 0.3, None)):
        for a, b in ((cond, cond), (zero, zero)):  # no update
            rule.reset()
            assert torch.equal(rule(a, b, a, 1.0, 0).to(dtype), a)
        rule.reset()
        out = rule(zero, uncond, zero, 1.0, 0)  # no direction to project on: all of the update is orthogonal
        limit = {"auto": 15 * math.sqrt(8 / 65536), None: math.inf}.get(rule.norm_threshold, rule.norm_threshold)
        expected = (
            -6 * uncond.double() * (limit / uncond.double().flatten(1).norm(dim=1)).clamp(max=1).reshape(-1, 1, 1)
        )
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    big = torch.full((1, 4, 64, 64), 600.0, dtype=dtype)  # its squares overflow float16, their sum by far
    out = APG(3.0, 1.0, 128.0, 0.0)(big, -big, big, 1.0, 0)
    torch.testing.assert_close(out.double(), big.double() + 2 * 128 / 128)


def test_the_automatic_threshold_is_the_papers_at_its_size() -> None:
    cond, uncond = tensors(2, (2, 4, 128, 128), dtype=torch.float32)
    assert torch.equal(APG(4.0)(cond, uncond, cond, 1.0, 0), APG(4.0, norm_threshold=15.0)(cond, uncond, cond, 1.0, 0))
    small = cond[:, :1, :64, :64], uncond[:, :1, :64, :64]
    out = APG(4.0)(*small, cond, 1.0, 0)
    torch.testing.assert_close(out, APG(4.0, norm_threshold=15.0 / 4)(*small, cond, 1.0, 0))
    update = APG(2.0, eta=1.0, momentum=0.0)(*small, cond, 1.0, 0) - small[0]
    torch.testing.assert_close(update.flatten(1).norm(dim=1), torch.full((2,), 3.75))


def test_gradients_go_through_and_stop_at_the_memory() -> None:
    guidance = APG(3.0, norm_threshold=1.0)
    for step in range(2):
        cond, uncond = tensors(2, seed=step)
        cond.requires_grad_()
        out = guidance(cond, uncond, cond, 1.0, step)
        (gradient,) = torch.autograd.grad(out.square().sum(), cond)
        assert bool(torch.isfinite(gradient).all())
    assert not guidance._latest.requires_grad


def test_config() -> None:
    for guidance in (APG(4.0), APG([2.0, 3.0], 0.5, 0, 0.2, (0.1, 2.0), 0.25, 0.75, 0.7), APG(15, 0, 15)):
        again = create_guidance(**json.loads(json.dumps(guidance.to_config())))
        assert isinstance(again, APG)
        assert again.to_config() == guidance.to_config()
        assert repr(again) == repr(guidance)
    assert APG(4.0, norm_threshold=-1).norm_threshold is None
    assert "eta=0.0" in repr(APG(4.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": math.nan}, "scale: got nan"),
        ({"scale": torch.tensor([1.0, math.nan])}, "scale"),
        ({"scale": None}, "scale"),
        ({"eta": math.inf}, "eta"),
        ({"eta": "0"}, "eta"),
        ({"norm_threshold": math.nan}, "norm_threshold"),
        ({"norm_threshold": "none"}, "norm_threshold"),
        ({"norm_threshold": [1.0]}, "norm_threshold"),
        ({"momentum": -1.0}, "momentum"),
        ({"momentum": 1.0}, "momentum"),
        ({"momentum": math.nan}, "momentum"),
        ({"stop": 0.0}, "stop"),
        ({"etta": 0.0}, "did you mean 'eta'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_guidance("apg", **options)


def test_no_waiting_for_the_device() -> None:
    """Every operation of a step is one that the host can queue without knowing a value: meta tensors have none."""
    cond, uncond = (torch.empty(2, 4, 8, 8, device="meta") for _ in range(2))
    rules: list[Guidance] = [APG(4.0, rescale=0.7, interval=(0.1, 9.0)), APG(torch.tensor([2.0, 3.0])), CFG(2.0)]
    for rule in rules:
        for step, level in ((0, 1.0), (0, 1.0), (1, torch.empty(2, device="meta"))):
            assert rule(cond, uncond, cond, level, step).shape == cond.shape
