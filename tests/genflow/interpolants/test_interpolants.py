"""Interpolants: ends, derivatives, conversions against the exact Gaussian solution, configs, bad input."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genflow.errors import InputError
from genflow.interpolants import (
    EncoderDecoderInterpolant,
    InterpolantModel,
    LinearInterpolant,
    MirrorInterpolant,
    OneSidedInterpolant,
    StochasticInterpolant,
    TrigonometricInterpolant,
)
from genflow.paths import LinearPath, TrigonometricPath, VPPath
from genflow.prediction import Prediction

GAMMAS = ["brownian", "parabola", "sine", "sigmoid"]
TWO_SIDED = [
    *(LinearInterpolant(g) for g in [*GAMMAS, "zero"]),
    *(TrigonometricInterpolant(g) for g in ("brownian", "parabola", "sigmoid")),
    TrigonometricInterpolant({"name": "brownian", "scale": 2.5}),
    EncoderDecoderInterpolant(),
    EncoderDecoderInterpolant("brownian"),
    MirrorInterpolant(),
]
ONE_SIDED = [OneSidedInterpolant(p) for p in (LinearPath(), TrigonometricPath(), VPPath.linear())]


def draw(shape: tuple[int, ...] = (3, 2, 2), dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype))


@pytest.mark.parametrize("bridge", TWO_SIDED, ids=lambda b: f"{b.name}-{b.gamma!r}")
def test_runs_from_one_density_to_the_other(bridge: StochasticInterpolant) -> None:
    x0, x1, z = draw()
    torch.testing.assert_close(bridge.interpolate(x0, x1, z, 0.0), x0, rtol=0, atol=1e-12)
    end = x1 if bridge.needs_x1 else x0
    torch.testing.assert_close(bridge.interpolate(x0, x1, z, 1.0), end, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bridge", TWO_SIDED + ONE_SIDED, ids=lambda b: f"{b.name}-{b.gamma!r}")
@given(t=st.floats(0.01, 0.99))
@settings(deadline=None, max_examples=15)
def test_derivative(bridge: StochasticInterpolant, t: float) -> None:
    if isinstance(bridge, EncoderDecoderInterpolant) and abs(t - 0.5) < 1e-3:
        return  # its second derivative jumps there
    x0, x1, _ = draw()
    h = 1e-6
    difference = (bridge.mean(x0, x1, t + h) - bridge.mean(x0, x1, t - h)) / (2 * h)
    torch.testing.assert_close(bridge.mean_dot(x0, x1, t), difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bridge", TWO_SIDED + ONE_SIDED, ids=lambda b: f"{b.name}-{b.gamma!r}")
def test_derivative_is_finite_at_the_ends(bridge: StochasticInterpolant) -> None:
    x0, x1, _ = draw()
    for t in (0.0, 1.0):
        assert torch.isfinite(bridge.mean_dot(x0, x1, t)).all()


def test_encoder_decoder_passes_through_pure_noise() -> None:
    x0, x1, z = draw()
    assert torch.equal(EncoderDecoderInterpolant().interpolate(x0, x1, z, 0.5), z)


@pytest.mark.parametrize("bridge", TWO_SIDED[:-1], ids=lambda b: f"{b.name}-{b.gamma!r}")
def test_trigonometric_keeps_unit_variance(bridge: StochasticInterpolant) -> None:
    t = np.linspace(0.05, 0.95, 7)
    variance = bridge.a(t) ** 2 + bridge.b(t) ** 2 + bridge.gamma.value(t) ** 2
    assert np.allclose(variance, 1) == (bridge.name == "trigonometric")


@pytest.mark.parametrize("bridge", TWO_SIDED, ids=lambda b: f"{b.name}-{b.gamma!r}")
@pytest.mark.parametrize("t", [0.2, 0.5, 0.83, torch.tensor([0.1, 0.4, 0.9])])
def test_conversions_meet_the_exact_gaussian_solution(bridge: StochasticInterpolant, t: object) -> None:
    """b = M' + V'/(2V) (x - M) transports normal(M, V); v, eta and s follow from their definitions."""
    (m0, s0), (m1, s1) = (0.7, 0.5), (-1.2, 0.8)
    if not bridge.needs_x1:
        m1, s1 = 0.0, 0.0
    times = torch.as_tensor(t, dtype=torch.float64)
    a, b, a_dot, b_dot = bridge.a(times), bridge.b(times), bridge.a_dot(times), bridge.b_dot(times)
    gamma, product = bridge.gamma.value(times), bridge.gamma.product(times)
    mean, variance = a * m0 + b * m1, (a * s0) ** 2 + (b * s1) ** 2 + gamma**2
    x, _, _ = draw((3,))
    u = (x - mean) / variance
    flow = a_dot * m0 + b_dot * m1 + (a * a_dot * s0**2 + b * b_dot * s1**2) * u
    eta, score = gamma * u, -u
    velocity = a_dot * m0 + b_dot * m1 + (a * a_dot * s0**2 + b * b_dot * s1**2 + product) * u
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(bridge.velocity_from_score(flow, score, t), velocity, **close)
    torch.testing.assert_close(bridge.velocity_from_denoiser(flow, eta, t), velocity, **close)
    torch.testing.assert_close(bridge.flow_from_score(velocity, score, t), flow, **close)
    torch.testing.assert_close(bridge.flow_from_denoiser(velocity, eta, t), flow, **close)
    torch.testing.assert_close(bridge.denoiser_from_score(score, t), eta, **close)
    if bridge.gamma.peak > 0:
        torch.testing.assert_close(bridge.score_from_denoiser(eta, t), score, **close)
    for sign in (1.0, -1.0):  # the drifts of both directions, by every choice of networks
        wanted = velocity + sign * 0.3 * score
        if bridge.gamma.peak == 0 or isinstance(t, torch.Tensor):
            continue
        for networks in ({"velocity": velocity, "score": score}, {"velocity": velocity, "denoiser": eta},
                         {"flow": flow, "score": score}, {"flow": flow, "denoiser": eta}):  # fmt: skip
            model = InterpolantModel(bridge, **{k: lambda x, t, value=value: value for k, value in networks.items()})
            torch.testing.assert_close(model.drift(x, t, 0.3, False, sign), wanted, **close)
            relative = 0.3 / float(gamma)
            torch.testing.assert_close(model.drift(x, t, relative, True, sign), wanted, **close)


@pytest.mark.parametrize("bridge", ONE_SIDED, ids=repr)
def test_one_sided_is_the_gaussian_path(bridge: OneSidedInterpolant) -> None:
    x0, _, z = draw()
    path, t = bridge.path, 0.4
    x = bridge.interpolate(x0, None, z, t)
    torch.testing.assert_close(x, path.perturb(x0, z, t))
    prediction = Prediction(x0, "sample", x, path, t)  # a network that knows the answer
    torch.testing.assert_close(bridge.velocity_from_denoiser(bridge.mean_dot(x0, None, t), z, t), prediction.velocity)
    torch.testing.assert_close(bridge.score_from_denoiser(z, t), prediction.score)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@given(shape=st.lists(st.integers(1, 3), min_size=1, max_size=4), index=st.integers(0, 99))
@settings(deadline=None, max_examples=15)
def test_shapes_and_dtypes(dtype: torch.dtype, shape: list[int], index: int) -> None:
    bridge = (TWO_SIDED + ONE_SIDED)[index % len(TWO_SIDED + ONE_SIDED)]
    x0, x1, z = draw(tuple(shape), dtype)
    t = torch.linspace(0.1, 0.9, shape[0])
    x = bridge.interpolate(x0, x1, z, t)
    assert x.shape == x0.shape
    assert x.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for i in range(shape[0]):  # samples do not depend on one another
        alone = bridge.interpolate(x0[i : i + 1], x1[i : i + 1], z[i : i + 1], float(t[i]))
        torch.testing.assert_close(x[i : i + 1], alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bridge", TWO_SIDED + ONE_SIDED, ids=lambda b: f"{b.name}-{b.gamma!r}")
def test_config_round_trip(bridge: StochasticInterpolant) -> None:
    again = StochasticInterpolant.from_config(json.loads(json.dumps(bridge.to_config())))
    assert again == bridge
    assert hash(again) == hash(bridge)
    assert type(again) is type(bridge)
    assert again.a(0.3) == bridge.a(0.3)


def test_two_bridges_that_differ_are_not_equal() -> None:
    assert LinearInterpolant("sine") != LinearInterpolant("brownian")
    assert OneSidedInterpolant(LinearPath()) != OneSidedInterpolant(LinearPath(3.0))


X0, X1, Z = draw()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TrigonometricInterpolant("sine"), "reaches 1; allowed for 'trigonometric': below 1"),
        (lambda: TrigonometricInterpolant({"name": "brownian", "scale": 4.0}), "reaches 1"),
        (lambda: LinearInterpolant("brown"), "did you mean 'brownian'"),
        (lambda: StochasticInterpolant.from_config({"interpolant": "linaer"}), "did you mean 'linear'"),
        (lambda: StochasticInterpolant.from_config({"interpolant": "linear", "path": {}}), "unknown key 'path'"),
        (lambda: LinearInterpolant().interpolate(X0, None, Z, 0.5), "x1: shape None"),
        (lambda: LinearInterpolant().interpolate(X0, X1[:1], Z, 0.5), "x1: shape"),
        (lambda: LinearInterpolant().interpolate(X0, X1, Z[:1], 0.5), "z: shape"),
        (lambda: LinearInterpolant().score_from_denoiser(Z, 0.0), "1 / gamma is not finite at t=0.0"),
        (lambda: LinearInterpolant().velocity_from_denoiser(X0, Z, torch.tensor([0.1, 0.2, 1.0])), "gamma' is not"),
        (lambda: InterpolantModel(LinearInterpolant(), flow=torch.add), "velocity: None"),
        (
            lambda: InterpolantModel(LinearInterpolant(), velocity=torch.add, denoiser=torch.add, score=torch.add),
            "both were given",
        ),
    ],
)
def test_bad_input(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
