"""Conversions among prediction kinds: round trips, closed forms, diffusers' own conversions, singular times."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from genflow.errors import InputError
from genflow.paths import EDMPath, LinearPath, Path, TrigonometricPath, VPPath
from genflow.prediction import KINDS, PREDICTION_TYPES, Prediction, convert, target

TABLE = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).alphas_cumprod
FIXED = [VPPath.cosine(), VPPath.from_alphas_cumprod(TABLE), TrigonometricPath()]
paths = st.one_of(
    st.floats(0.2, 5).map(LinearPath),
    st.tuples(st.floats(0.05, 1), st.floats(1, 20)).map(lambda b: VPPath.linear(*b)),
    st.tuples(st.floats(0.05, 1), st.floats(1, 20)).map(lambda b: VPPath.scaled_linear(*b)),
    st.floats(0.5, 100).map(EDMPath),
    st.sampled_from(FIXED),
)
shapes = st.lists(st.integers(1, 3), min_size=1, max_size=5)


def truth(path: Path, x0: torch.Tensor, eps: torch.Tensor, t: float | torch.Tensor) -> dict[str, torch.Tensor]:
    """Every kind, written from its definition for known data and noise."""
    one = (-1,) + (1,) * (x0.ndim - 1)
    as_tensor = torch.as_tensor(t, dtype=torch.float64).expand(x0.shape[0]).reshape(one)
    alpha, sigma = path.alpha(as_tensor), path.sigma(as_tensor)
    return {
        "epsilon": eps,
        "sample": x0,
        "v_prediction": (alpha * eps - sigma * x0) / torch.sqrt(alpha**2 + sigma**2),
        "flow_prediction": eps - x0,
        "velocity": path.alpha_dot(as_tensor) * x0 + path.sigma_dot(as_tensor) * eps,
        "score": -eps / sigma,
    }


@given(path=paths, shape=shapes, t=st.floats(0.1, 0.9), seed=st.integers(0, 99), per_sample=st.booleans())
@settings(deadline=None, max_examples=40)
def test_every_kind_from_every_other(path: Path, shape: list[int], t: float, seed: int, per_sample: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    x0, eps = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    time = t + 0.1 * torch.rand(shape[0], generator=generator, dtype=torch.float64) if per_sample else t
    x = path.perturb(x0, eps, time)
    known = truth(path, x0, eps, time)
    for source in KINDS:
        torch.testing.assert_close(target(source, x0, eps, path, time), known[source], rtol=1e-12, atol=1e-12)
        for other in KINDS:
            got = convert(known[source], source, other, x, path, time)
            back = convert(got, other, source, x, path, time)
            # the size of what is subtracted on the way sets how well a difference can be known
            size = max(1.0, got.abs().max().item(), known[source].abs().max().item(), x.abs().max().item()) ** 2
            torch.testing.assert_close(got, known[other], rtol=0, atol=1e-11 * size)
            torch.testing.assert_close(back, known[source], rtol=0, atol=1e-11 * size)


@pytest.mark.parametrize(
    "path", [LinearPath(), LinearPath(3.0), VPPath.linear(), VPPath.scaled_linear(), EDMPath(2.0), *FIXED], ids=repr
)
def test_round_trips_to_1e12(path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x, value = (torch.randn(64, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    t = 0.2 + 0.5 * torch.rand(64, generator=generator, dtype=torch.float64)
    for source in KINDS:
        for other in KINDS:
            back = convert(convert(value, source, other, x, path, t), other, source, x, path, t)
            torch.testing.assert_close(back, value, rtol=1e-12, atol=1e-12)


@given(path=paths, t=st.floats(0.05, 0.95), scale=st.floats(-3, 3))
@settings(deadline=None, max_examples=40)
def test_conversions_are_linear(path: Path, t: float, scale: float) -> None:
    """convert(mix of predictions) = mix of converts when the weights sum to 1: why CFG is the same in any space."""
    generator = torch.Generator().manual_seed(3)
    x, a, b = (torch.randn(2, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    for source in PREDICTION_TYPES:
        x0 = [convert(value, source, "sample", x, path, t) for value in (a, b, torch.lerp(a, b, scale))]
        size = max(value.abs().max().item() for value in x0)
        torch.testing.assert_close(x0[2], torch.lerp(x0[0], x0[1], scale), rtol=0, atol=1e-12 * size)


def test_velocity_is_flow_prediction_on_the_linear_path() -> None:
    x, value = torch.randn(2, 4, 3, dtype=torch.float64)
    assert torch.equal(convert(value, "velocity", "flow_prediction", x, LinearPath(), 0.3), value)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_parity_with_diffusers_on_a_vp_table(kind: str) -> None:
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=kind
    )
    scheduler.set_timesteps(10)
    path = VPPath.from_alphas_cumprod(scheduler.alphas_cumprod)
    generator = torch.Generator().manual_seed(0)
    for i, timestep in enumerate(scheduler.timesteps):
        x, value = (torch.randn(2, 3, 4, generator=generator) for _ in range(2))
        scheduler._step_index = i
        theirs = scheduler.convert_model_output(value, sample=x)
        ours = Prediction(value, kind, x, path, (int(timestep) + 1) / 1000).x0
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("path", [LinearPath(), LinearPath(2.0), VPPath.cosine(), TrigonometricPath()], ids=repr)
def test_ends_of_the_path(path: Path) -> None:
    x0, eps = torch.randn(2, 2, 3, dtype=torch.float64)
    for kind in ("sample", "flow_prediction", "v_prediction"):
        noise = truth(path, x0, eps, 1.0)
        if kind != "v_prediction":  # at alpha = 0 v is -x0 too, but its own definition is what is tested there
            assert torch.allclose(Prediction(noise[kind], kind, eps, path, 1.0).x0, x0, atol=1e-12)
        assert torch.allclose(Prediction(noise[kind], kind, eps, path, 1.0).epsilon, eps, atol=1e-12)
    assert torch.allclose(Prediction(-x0, "v_prediction", eps, path, 1.0).x0, x0)
    # at t = 0 the state is the data, whatever was predicted
    for kind in ("epsilon", "flow_prediction", "v_prediction", "score"):
        value = torch.zeros_like(x0) if kind == "score" else truth(path, x0, eps, 0.0)[kind]
        assert torch.allclose(Prediction(value, kind, x0, path, 0.0).x0, x0, atol=1e-12)


@pytest.mark.parametrize(
    ("source", "other", "path", "t"),
    [
        ("epsilon", "sample", LinearPath(), 1.0),
        ("epsilon", "flow_prediction", TrigonometricPath(), 1.0),
        ("score", "velocity", LinearPath(), 1.0),
        ("sample", "epsilon", LinearPath(), 0.0),
        ("sample", "flow_prediction", EDMPath(), 0.0),
        ("epsilon", "score", LinearPath(), 0.0),
        ("velocity", "sample", VPPath.linear(), 0.0),
        ("epsilon", "sample", LinearPath(), torch.tensor([0.5, 1.0])),
    ],
)
def test_singular_times_are_named(source: str, other: str, path: Path, t: float | torch.Tensor) -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(InputError, match=rf"'{source}' does not determine '{other}' at t="):
        convert(x, source, other, x, path, t)


def test_targets_at_the_ends() -> None:
    x0, eps = torch.randn(2, 2, 3)
    assert torch.equal(target("velocity", x0, eps, LinearPath(), 1.0), eps - x0)
    assert torch.equal(target("sample", x0, eps, LinearPath(), torch.tensor([0.0, 1.0])), x0)
    assert target("epsilon", x0.half(), eps.half(), LinearPath(), 0.0).dtype == torch.float32
    for kind, path, t in (
        ("score", LinearPath(), 0.0),
        ("score", LinearPath(), torch.tensor([0.5, 0.0])),
        ("velocity", VPPath.linear(), 0.0),
    ):
        with pytest.raises(InputError, match=f"target: '{kind}' is infinite at t="):
            target(kind, x0, eps, path, t)
    with pytest.raises(InputError, match="did you mean 'score'"):
        target("scor", x0, eps, LinearPath(), 0.5)


def test_epsilon_and_score_agree_where_alpha_is_zero() -> None:
    x, eps = torch.randn(2, 2, 3)
    score = convert(eps, "epsilon", "score", x, LinearPath(), 1.0)
    assert torch.equal(score, -eps)
    assert torch.equal(convert(score, "score", "epsilon", x, LinearPath(), 1.0), eps)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float32, torch.float32)],
)
def test_dtype_is_float32_at_least(dtype: torch.dtype, expected: torch.dtype) -> None:
    x = torch.randn(2, 3).to(dtype)
    for kind in KINDS:
        for t in (0.5, torch.tensor([0.5, 0.25])):
            assert convert(x, "epsilon", kind, x, LinearPath(), t).dtype == expected
    assert convert(x, "epsilon", "sample", x.double(), LinearPath(), 0.5).dtype == torch.float64


def test_results_are_kept() -> None:
    x, value = torch.randn(2, 2, 3)
    prediction = Prediction(value, "epsilon", x, LinearPath(), 0.5)
    assert prediction.x0 is prediction.x0 is prediction.to("sample")
    assert prediction.epsilon is prediction.to("epsilon")
    assert prediction.replace(prediction.x0).epsilon == pytest.approx(value, abs=1e-5)
    for name in ("velocity", "score", "v_prediction", "flow_prediction"):
        assert getattr(prediction, name) is prediction.to(name)
    assert "epsilon" in repr(prediction)


def test_gradients_flow_through() -> None:
    x, value = torch.randn(2, 2, 3, dtype=torch.float64)
    value.requires_grad_()
    x0 = convert(value, "epsilon", "sample", x, VPPath.linear(), torch.tensor([0.2, 0.7]))
    (gradient,) = torch.autograd.grad(x0.sum(), value)
    expected = -VPPath.linear().noise_level(torch.tensor([0.2, 0.7]))[:, None].expand(2, 3)
    torch.testing.assert_close(gradient, expected)


def test_bad_input() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(InputError, match="did you mean 'epsilon'"):
        convert(x, "epsilom", "sample", x, LinearPath(), 0.5)
    with pytest.raises(InputError, match="did you mean 'velocity'"):
        convert(x, "epsilon", "velocty", x, LinearPath(), 0.5)
    with pytest.raises(InputError, match="does not fit x"):
        Prediction(x[:1], "epsilon", x, LinearPath(), 0.5)
    with pytest.raises(InputError, match="does not fit"):
        convert(x, "epsilon", "sample", x, LinearPath(), torch.rand(3))
    assert math.isfinite(convert(x, "epsilon", "sample", x, LinearPath(), torch.tensor(0.5)).sum())
