"""Noise, grids, the loop and the adaptive ODE: distributions, independence of the batch, failures."""

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genflow.errors import InputError, NonFiniteError
from genflow.guidance import CFG, GuidedModel
from genflow.models import LeanUNet2DModel, PathModel, from_diffusers, from_function, on_path
from genflow.paths import EDMPath, LinearPath, Path, TrigonometricPath, VPPath
from genflow.sampling import randn, sample, sample_adaptive, time_grid
from genflow.solvers import Heun

PATHS = [
    LinearPath(),
    LinearPath(3.0),
    VPPath.linear(),
    VPPath.scaled_linear(),
    VPPath.cosine(),
    VPPath.from_alphas_cumprod(np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))),
    EDMPath(20.0),
    TrigonometricPath(),
]
MODES, WEIGHTS, WIDTH = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64), (0.2, 0.5, 0.3), 0.15


def mixture_model(path: Path) -> PathModel:
    """The exact posterior mean of x0 for a mixture of three normals."""

    def posterior_mean(x: Tensor, t: float, **_: Any) -> Tensor:
        alpha, sigma = path.alpha(t), path.sigma(t)
        variance = alpha**2 * WIDTH**2 + sigma**2
        offset = x[..., None] - alpha * MODES
        responsibility = torch.softmax(torch.tensor(WEIGHTS).log() - offset**2 / (2 * variance), dim=-1)
        return (responsibility * (MODES + alpha * WIDTH**2 / variance * offset)).sum(-1)

    return from_function(posterior_mean, path, "sample")


def small_network(**options: Any) -> LeanUNet2DModel:
    torch.manual_seed(0)
    network = LeanUNet2DModel(
        sample_size=8, block_out_channels=(16, 32), attention_head_dim=16, num_classes=3, **options
    ).eval()
    with torch.no_grad():  # the zero-initialised parts would make it the identity
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return network


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_a_mixture_comes_out_with_the_right_moments(path: Path, solver: str) -> None:
    count = 4000
    generator = torch.Generator().manual_seed(0)
    x = path.prior_std * torch.randn(count, 1, generator=generator, dtype=torch.float64)
    times = time_grid(path, 120 if solver == "euler" else 40, "karras")
    x = sample(mixture_model(path), x, times, solver)[:, 0]
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    mean = (weights * MODES).sum()
    variance = (weights * (MODES**2 + WIDTH**2)).sum() - mean**2
    third = (weights * ((MODES - mean) ** 3 + 3 * (MODES - mean) * WIDTH**2)).sum()
    # six standard errors of each moment, and a little for the steps
    slack = 6 / math.sqrt(count)
    assert x.mean().item() == pytest.approx(mean.item(), abs=slack * variance.sqrt().item() + 0.01)
    assert x.var().item() == pytest.approx(variance.item(), rel=slack * 1.5 + 0.01)
    assert ((x - mean) ** 3).mean().item() == pytest.approx(third.item(), abs=slack * 3 + 0.03)
    nearest = (x[:, None] - MODES).abs().argmin(1)
    share = torch.bincount(nearest, minlength=3) / count
    torch.testing.assert_close(share.double(), weights, atol=0.05, rtol=0)
    for k in range(3):
        assert (x[nearest == k] - MODES[k]).std().item() == pytest.approx(WIDTH, rel=0.12)


@pytest.mark.parametrize("outer", [LinearPath(), EDMPath(80.0), TrigonometricPath()], ids=repr)
def test_a_vp_model_samples_on_other_paths(gaussian_model, gaussian_flow, outer: Path) -> None:
    """The flow of one problem, scaled: the same x0 at the end on any path."""
    inner = VPPath.linear()
    start = 10.0  # a noise level that all of them have
    noise = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x0 = 0.7 + 0.5 * noise.roll(1, 0)
    t, t_inner = outer.time(start), inner.time(start)
    times = time_grid(outer, 400, "karras", start=t, noise_min=0.001)
    result = sample(on_path(gaussian_model(inner), outer), outer.perturb(x0, noise, t), times, "heun")
    exact = gaussian_flow(inner, inner.perturb(x0, noise, t_inner), t_inner, 0.0)
    torch.testing.assert_close(result, exact, rtol=1e-3, atol=1e-3)


def test_one_step_from_pure_noise_is_the_mean(gaussian_model) -> None:
    for path in (LinearPath(), VPPath.cosine(), TrigonometricPath()):
        x = torch.randn(5, 2)
        for solver in ("euler", "heun"):
            result = sample(gaussian_model(path), x, time_grid(path, 1), solver)
            torch.testing.assert_close(result, torch.full_like(x, 0.7))


def test_randn_gives_every_sample_its_own_noise() -> None:
    together = randn((2, 3), [5, 6, 7])
    alone = randn((2, 3), [torch.Generator().manual_seed(6)])
    assert together.shape == (3, 2, 3)
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(together[0], together[1])
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(randn((2, 3), [5, 6, 7], dtype=dtype), together.to(dtype))
    generator = torch.Generator().manual_seed(5)  # one generator used twice goes on
    first, second = randn((4,), [generator, generator])
    assert not torch.equal(first, second)
    with pytest.raises(InputError, match="generators"):
        randn((2,), [])


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("guidance", [None, CFG(3.0, interval=(0.3, 5.0))], ids=["plain", "cfg"])
def test_a_sample_does_not_depend_on_its_batch(solver: str, guidance: CFG | None) -> None:
    model = from_diffusers(small_network(), LinearPath(), "flow_prediction")
    times = time_grid(LinearPath(), 5)
    seeds, labels = list(range(7)), [0, 1, 2, 0, 1, 2, 3]

    def run(chosen: list[int]) -> Tensor:
        x = randn((1, 8, 8), [seeds[i] for i in chosen])
        return sample(model, x, times, solver, guidance, class_labels=torch.tensor([labels[i] for i in chosen]))

    together = run(list(range(7)))
    assert together.std() > 0.1
    for chosen in ([0], [3, 5], [6, 2, 0, 1]):
        torch.testing.assert_close(run(chosen), together[chosen], rtol=1e-4, atol=1e-4)


def test_guidance_in_the_loop(gaussian_model) -> None:
    seen: list[tuple[float, int]] = []

    class Recording(CFG):
        def reset(self, steps: int | None = None) -> None:
            assert steps == 3
            seen.clear()

        def __call__(self, cond_x0: Tensor, uncond_x0: Tensor, x: Tensor, noise_level: Any, step: int) -> Tensor:
            seen.append((noise_level, step))
            return super().__call__(cond_x0, uncond_x0, x, noise_level, step)

    path = LinearPath()
    model = from_function(
        lambda x, t, class_labels: class_labels.to(x.dtype).reshape(-1, 1).expand_as(x), path, "sample", num_classes=10
    )
    labels, x = torch.tensor([1, 2]), torch.randn(2, 3)
    guidance = Recording(2.0)
    for _ in range(2):  # the second run starts afresh
        out = sample(model, x, [1.0, 0.5, 0.25, 0.0], "heun", guidance, class_labels=labels)
    assert [step for _, step in seen] == [0, 0, 1, 1, 2]
    assert [level for level, _ in seen] == [math.inf, 1.0, 1.0, pytest.approx(1 / 3), pytest.approx(1 / 3)]
    torch.testing.assert_close(out, torch.tensor([[1.0], [2.0]]).expand(2, 3) * 2 - 10)
    again = sample(GuidedModel(model, CFG(2.0)), x, [1.0, 0.5, 0.25, 0.0], "heun", class_labels=labels)
    assert torch.equal(again, out)
    other = sample(model, x, [1.0, 0.0], "euler", CFG(2.0), null_label=0, class_labels=labels)
    torch.testing.assert_close(other, torch.tensor([[2.0], [4.0]]).expand(2, 3))


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_callback(gaussian_model, solver: str) -> None:
    path = VPPath.linear()
    calls: list[tuple[int, float, Tensor, Tensor]] = []
    times = time_grid(path, 4)
    result = sample(gaussian_model(path), torch.randn(2, 3), times, solver, callback=lambda *call: calls.append(call))
    assert [step for step, *_ in calls] == [0, 1, 2, 3]
    assert [t for _, t, *_ in calls] == times[1:].tolist()
    assert torch.equal(calls[-1][2], result)
    torch.testing.assert_close(calls[-1][3], result)  # the last step gives the predicted data


def test_progress(gaussian_model, capsys: pytest.CaptureFixture[str]) -> None:
    sample(gaussian_model(LinearPath()), torch.randn(2, 3), time_grid(LinearPath(), 4), "heun", progress=True)
    captured = capsys.readouterr()
    assert "7/7" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("solver", "bad_evaluation", "step"), [("euler", 0, 1), ("euler", 3, 4), ("heun", 3, 2), ("heun", 6, 4)]
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_stops_with_the_step_named(solver: str, bad_evaluation: int, step: int, value: float) -> None:
    calls = 0

    def network(x: Tensor, t: float) -> Tensor:
        nonlocal calls
        out = x.clone()
        if calls == bad_evaluation:
            out[1, 0] = value
        calls += 1
        return out

    model = from_function(network, LinearPath(), "flow_prediction")
    with pytest.raises(NonFiniteError, match=f"step {step} of 4 "):
        sample(model, torch.randn(2, 3), time_grid(LinearPath(), 4), solver)
    assert calls == bad_evaluation + 1  # on the host it stops there and then


def test_bad_input_is_refused_before_any_work() -> None:
    def network(x: Tensor, t: float) -> Tensor:
        raise AssertionError("the network must not be asked")

    model = from_function(network, LinearPath(), "flow_prediction")
    x = torch.randn(2, 3)
    with pytest.raises(InputError, match="did you mean 'heun'"):
        sample(model, x, [1.0, 0.0], "huen")
    with pytest.raises(InputError, match="times"):
        sample(model, x, [0.0, 1.0])
    with pytest.raises(InputError, match="initial state"):
        sample(model, x / 0, [1.0, 0.0])
    with pytest.raises(InputError, match="steps"):
        time_grid(LinearPath(), 0)


def test_state_dtype(gaussian_model) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        result = sample(gaussian_model(LinearPath()), torch.randn(2, 3).to(dtype), [1.0, 0.5, 0.0], Heun())
        assert result.dtype == torch.promote_types(dtype, torch.float32)
        assert not result.requires_grad


@given(path=st.sampled_from(PATHS), steps=st.integers(1, 60), spacing=st.sampled_from(["uniform", "karras"]))
@settings(deadline=None, max_examples=60)
def test_grids_fall_from_start_to_zero(path: Path, steps: int, spacing: str) -> None:
    for start in (1.0, 0.6):
        times = time_grid(path, steps, spacing, start=start)
        assert times.shape == (steps + 1,)
        assert times.dtype == np.float64
        assert times[0] == pytest.approx(start, rel=1e-12)
        assert times[-1] == 0
        assert (np.diff(times) < 0).all()


def test_karras_levels() -> None:
    path = EDMPath(80.0)
    levels = path.noise_level(time_grid(path, 18, "karras"))
    assert levels[0] == pytest.approx(80)
    assert levels[-2] == pytest.approx(0.002)
    roots = levels[:-1] ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots), np.diff(roots)[0], rtol=1e-9)
    # where pure noise has no level, the paper's 80 is replaced by the start
    linear = time_grid(LinearPath(), 18, "karras")
    assert linear[0] == 1
    np.testing.assert_allclose(LinearPath().noise_level(linear[1:]), levels[1:], rtol=1e-9, atol=1e-12)
    chosen = LinearPath().noise_level(time_grid(LinearPath(), 5, "karras", noise_min=0.1, noise_max=9.0, rho=1.0))
    np.testing.assert_allclose(chosen, [9.0, 6.775, 4.55, 2.325, 0.1, 0.0], rtol=1e-12)
    table = VPPath.from_alphas_cumprod(np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000)))
    assert time_grid(table, 10, "karras")[-2] == pytest.approx(1 / 1000)  # the network knows no smaller time


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"spacing": "karas"}, "did you mean 'karras'"),
        ({"start": 0.0}, "start"),
        ({"start": 1.5}, "start"),
        ({"end": 1.0}, "end"),
        ({"spacing": "karras", "rho": 0.0}, "rho"),
        ({"spacing": "karras", "noise_min": 100.0}, "noise_min"),
        ({"spacing": "karras", "noise_max": math.inf}, "noise_max"),
    ],
)
def test_bad_grids(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        time_grid(LinearPath(), **{"steps": 4, **options})


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_adaptive_integration_follows_the_exact_flow(gaussian_model, gaussian_flow, path: Path) -> None:
    x = path.prior_std * torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result = sample_adaptive(gaussian_model(path), x, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(result.x, gaussian_flow(path, x, 1.0, 0.0), rtol=0, atol=1e-4)
    end = path.time(0.01)
    part = sample_adaptive(gaussian_model(path), x, noise_min=0.01, rtol=1e-8, atol=1e-8, denoise=False)
    torch.testing.assert_close(part.x, gaussian_flow(path, x, 1.0, end), rtol=0, atol=1e-6)


def test_adaptive_evaluations_are_counted_and_grow_with_accuracy() -> None:
    calls = 0

    def network(x: Tensor, t: float) -> Tensor:
        nonlocal calls
        calls += 1
        assert 0 <= t <= 1
        return torch.sin(3 * x) + t

    model = from_function(network, LinearPath(), "flow_prediction")
    x = torch.randn(3, 2)
    counts = []
    for tolerance in (1e-2, 1e-4, 1e-6):
        calls = 0
        result = sample_adaptive(model, x, noise_min=0.0, rtol=tolerance, atol=tolerance)
        assert result.evaluations == calls
        assert result.x.dtype == torch.float32
        counts.append(calls)
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    fine = sample(model, x.double(), time_grid(LinearPath(), 2000), "heun")
    torch.testing.assert_close(result.x.double(), fine, rtol=1e-4, atol=1e-4)


def test_adaptive_failures() -> None:
    x = torch.randn(2, 3)
    model = from_function(lambda x, t: x * (math.nan if t < 0.5 else 1), LinearPath(), "flow_prediction")
    with pytest.raises(NonFiniteError, match=r"evaluation \d+ \(t=0\.\d+\)"):
        sample_adaptive(model, x)
    for options in ({"method": "euler"}, {"rtol": 0.0}, {"atol": -1.0}, {"start": 2.0}, {"noise_min": -1.0}):
        with pytest.raises(InputError, match=next(iter(options))):
            sample_adaptive(model, x, **options)


def test_the_ground_floor_needs_torch_alone() -> None:
    """Nothing up to the sampling loop imports diffusers, which alone costs seconds."""
    code = (
        "import sys, genflow.paths, genflow.solvers, genflow.models, genflow.guidance, genflow.sampling\n"
        "print([m for m in ('diffusers', 'transformers', 'matplotlib', 'torchdiffeq') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
