"""Sampling between two densities: exact moments in both directions, order, seeds, ends, bad input."""

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

import genflow.bridges
from genflow.bridges import sample_interpolant
from genflow.errors import InputError, NonFiniteError
from genflow.interpolants import (
    EncoderDecoderInterpolant,
    InterpolantModel,
    LinearInterpolant,
    MirrorInterpolant,
    OneSidedInterpolant,
    StochasticInterpolant,
    TrigonometricInterpolant,
)
from genflow.paths import LinearPath, TrigonometricPath

(M0, S0), (M1, S1) = (0.7, 0.5), (-1.2, 0.8)
BRIDGES = [
    LinearInterpolant(),
    LinearInterpolant("sine"),
    TrigonometricInterpolant(),
    EncoderDecoderInterpolant(),
    MirrorInterpolant(),
    OneSidedInterpolant(LinearPath()),
    OneSidedInterpolant(TrigonometricPath()),
]


@functools.cache
def law(bridge: StochasticInterpolant, t: float) -> tuple[float, float]:
    """Mean and variance of x_t for independent normal x0 and x1."""
    m1, s1 = (M1, S1) if bridge.needs_x1 else (0.0, 0.0)
    a, b, gamma = bridge.a(t), bridge.b(t), bridge.gamma.value(t)
    return a * M0 + b * m1, (a * S0) ** 2 + (b * s1) ** 2 + gamma**2


def exact(bridge: StochasticInterpolant, *kinds: str) -> InterpolantModel:
    """The conditional means in closed form."""
    m1, s1 = (M1, S1) if bridge.needs_x1 else (0.0, 0.0)

    @functools.cache
    def weights(t: float) -> dict[str, tuple[float, float]]:
        """``(p, q)`` of ``p + q (x - M)``."""
        _, variance = law(bridge, t)
        a, b, a_dot, b_dot = bridge.a(t), bridge.b(t), bridge.a_dot(t), bridge.b_dot(t)
        steady, cross = a_dot * M0 + b_dot * m1, a * a_dot * S0**2 + b * b_dot * s1**2
        return {
            "velocity": (steady, (cross + bridge.gamma.product(t)) / variance),
            "flow": (steady, cross / variance),
            "denoiser": (0.0, bridge.gamma.value(t) / variance),
            "score": (0.0, -1 / variance),
        }

    def network(kind: str) -> Callable[[torch.Tensor, float], torch.Tensor]:
        def answer(x: torch.Tensor, t: float) -> torch.Tensor:
            p, q = weights(t)[kind]
            return p + q * (x - law(bridge, t)[0])

        return answer

    return InterpolantModel(bridge, **{kind: network(kind) for kind in kinds})


@pytest.fixture
def moment_errors(monkeypatch) -> Callable[..., tuple[float, float]]:
    """Errors of mean and variance at the last time, without drawing: a run on these models is affine in its noise."""

    def measure(model: InterpolantModel, times: np.ndarray, **options: object) -> tuple[float, float]:
        steps, drawn = len(times) - 1, []

        def unit_noise(shape, generators, dtype, device) -> torch.Tensor:
            noise = torch.zeros(2 + steps, 1, dtype=dtype)
            noise[2 + len(drawn)] = 1
            drawn.append(noise)
            return noise

        monkeypatch.setattr(genflow.bridges, "randn", unit_noise)
        x = torch.zeros(2 + steps, 1, dtype=torch.float64)
        x[1] = 1
        generators = [torch.Generator()] * (2 + steps)
        final = sample_interpolant(model, x, times, generators=generators, **options)[:, 0].numpy()
        (m, v), (m_end, v_end) = law(model.interpolant, float(times[0])), law(model.interpolant, float(times[-1]))
        slope = final[1] - final[0]
        variance = slope**2 * v + np.sum((final[2:] - final[0]) ** 2)
        return final[0] + slope * m - m_end, variance - v_end

    return measure


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("epsilon", [0.0, 0.4, lambda t: t * (1 - t)], ids=["ode", "constant", "function"])
@pytest.mark.parametrize("bridge", BRIDGES, ids=lambda b: f"{b.name}-{b.gamma!r}")
def test_carries_one_density_to_the_other(moment_errors, bridge, epsilon, direction) -> None:
    """From the very start to the very end, and at the method's order."""
    ends = (0.0, 1.0) if direction == "forward" else (1.0, 0.0)
    model = exact(bridge, "velocity", "score")
    for method, least, bound in (("euler", 0.8, 0.15), ("heun", 1.75, 0.01)):
        errors = [
            max(map(abs, moment_errors(model, np.linspace(*ends, n + 1), epsilon=epsilon, method=method)))
            for n in (40, 80)
        ]
        assert errors[1] < bound, (method, errors)
        assert errors[1] < 2e-4 or math.log2(errors[0] / errors[1]) > least, (method, errors)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("bridge", BRIDGES[:4], ids=lambda b: f"{b.name}-{b.gamma!r}")
def test_networks_of_flow_and_denoiser(moment_errors, bridge, direction) -> None:
    """Inside (0, 1) they determine everything; with epsilon relative to gamma, b and eta reach the ends."""
    inside, ends = np.linspace(0.02, 0.98, 101), np.linspace(0, 1, 101)
    order = 1 if direction == "forward" else -1
    for kinds in (("flow", "denoiser"), ("velocity", "denoiser"), ("flow", "score")):
        errors = moment_errors(exact(bridge, *kinds), inside[::order], epsilon=0.1)
        assert max(map(abs, errors)) < 0.01
    errors = moment_errors(exact(bridge, "velocity", "denoiser"), ends[::order], epsilon=0.5, relative=True)
    assert max(map(abs, errors)) < 0.01


def test_the_mirror_needs_a_denoiser_alone(moment_errors) -> None:
    bridge = MirrorInterpolant("sine")
    for epsilon in (0.0, 0.3):
        errors = moment_errors(exact(bridge, "denoiser"), np.linspace(0.01, 0.99, 151), epsilon=epsilon)
        assert max(map(abs, errors)) < 0.01


def test_the_sde_really_is_random_and_the_ode_is_not() -> None:
    model = exact(LinearInterpolant(), "velocity", "score")
    x, times = torch.full((200, 1), 0.7), np.linspace(0, 1, 21)
    assert sample_interpolant(model, x, times).std() < 1e-6
    assert sample_interpolant(model, x, times, epsilon=0.5).std() > 0.3


def test_there_and_back_again() -> None:
    """The ODE run forward and then backward returns to where it began."""
    model = exact(TrigonometricInterpolant(), "velocity")
    x = torch.randn(5, 2, dtype=torch.float64)
    times = np.linspace(0, 1, 201)
    there = sample_interpolant(model, x, times)
    assert (there - x).abs().min() > 0.1
    torch.testing.assert_close(sample_interpolant(model, there, times[::-1]), x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("method", genflow.bridges.METHODS)
def test_a_sample_depends_on_its_own_seed(method: str, dtype: torch.dtype) -> None:
    model = exact(EncoderDecoderInterpolant(), "velocity", "score")
    x = torch.randn(3, 2, 2).to(dtype)

    def run(rows: list[int]) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(row) for row in rows]
        return sample_interpolant(
            model, x[rows], np.linspace(1, 0, 9), epsilon=0.2, method=method, generators=generators
        )

    together = run([0, 1, 2])
    assert together.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(together, run([0, 1, 2]))
    for row in range(3):
        torch.testing.assert_close(run([row])[0], together[row], rtol=1e-5, atol=1e-5)


def test_nan_is_named() -> None:
    model = InterpolantModel(LinearInterpolant(), velocity=lambda x, t: x / (t < 0.5))
    with pytest.raises(NonFiniteError, match="step 6 of 10"):
        sample_interpolant(model, torch.ones(1, 1), np.linspace(0, 1, 11), method="euler")


MODEL = exact(LinearInterpolant(), "velocity", "denoiser")
X = torch.zeros(2, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"times": [0.0]}, "times: "),
        ({"times": [0.0, 0.5, 0.4]}, "strictly rising or falling"),
        ({"times": [0.0, 1.1]}, "times: "),
        ({"method": "hein"}, "did you mean 'heun'"),
        ({"epsilon": -0.1}, "epsilon: -0.1; allowed: finite numbers >= 0"),
        ({"epsilon": lambda t: math.nan}, "epsilon: nan"),
        ({"epsilon": 0.5}, "1 / gamma is not finite at t=0.0"),
        ({"generators": [torch.Generator()]}, "generators: got 1; allowed: one for each of 2"),
        ({"x": torch.full((1, 1), math.inf)}, "initial state has NaN"),
        ({"model": exact(LinearInterpolant(), "velocity"), "epsilon": 0.1}, "without a denoiser or a score"),
        ({"model": exact(LinearInterpolant(), "flow", "denoiser")}, "gamma' is not finite at t=0.0"),
    ],
)
def test_bad_input(options: dict, message: str) -> None:
    arguments = {"model": MODEL, "x": X, "times": np.linspace(0, 1, 5), **options}
    with pytest.raises(InputError, match=message):
        sample_interpolant(**arguments)
