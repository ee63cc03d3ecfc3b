"""The objectives: minimised, exactly, by the conditional means of Gaussian data; variance near the ends; bad input."""

import itertools
import math

import numpy as np
import pytest
import torch

from genflow.errors import InputError
from genflow.interpolants import (
    INTERPOLANT_OBJECTIVES,
    EncoderDecoderInterpolant,
    InterpolantObjective,
    LinearInterpolant,
    MirrorInterpolant,
    OneSidedInterpolant,
    StochasticInterpolant,
    TrigonometricInterpolant,
)
from genflow.paths import LinearPath, VPPath

(M0, S0), (M1, S1) = (0.7, 0.5), (-1.2, 0.8)
BRIDGES = [
    LinearInterpolant(),
    LinearInterpolant("sigmoid"),
    TrigonometricInterpolant("parabola"),
    EncoderDecoderInterpolant(),
    MirrorInterpolant(),
    OneSidedInterpolant(LinearPath()),
    OneSidedInterpolant(VPPath.linear()),
]


def quadrature() -> tuple[torch.Tensor, ...]:
    """27 points and weights for which the mean of a polynomial of degree 5 in (x0, x1, z) is exact."""
    nodes, weights = np.array([-math.sqrt(3), 0.0, math.sqrt(3)]), np.array([1 / 6, 2 / 3, 1 / 6])
    points = torch.tensor(list(itertools.product(nodes, repeat=3)), dtype=torch.float64)
    factors = torch.tensor([math.prod(w) for w in itertools.product(weights, repeat=3)], dtype=torch.float64)
    return M0 + S0 * points[:, :1], M1 + S1 * points[:, 1:2], points[:, 2:], factors


def solution(bridge: StochasticInterpolant, kind: str, t: float) -> tuple[float, float, float]:
    """The conditional mean ``p + q (x - M)`` for independent normal x0 and x1: p, q and M."""
    m1, s1 = (M1, S1) if bridge.needs_x1 else (0.0, 0.0)
    a, b, a_dot, b_dot = bridge.a(t), bridge.b(t), bridge.a_dot(t), bridge.b_dot(t)
    gamma, gamma_dot = bridge.gamma.value(t), bridge.gamma.dot(t)
    mean, variance = a * M0 + b * m1, (a * S0) ** 2 + (b * s1) ** 2 + gamma**2
    steady, cross = a_dot * M0 + b_dot * m1, a * a_dot * S0**2 + b * b_dot * s1**2
    return {
        "velocity": (steady, (cross + gamma * gamma_dot) / variance, mean),
        "flow": (steady, cross / variance, mean),
        "denoiser": (0.0, gamma / variance, mean),
        "score": (0.0, -1 / variance, mean),
    }[kind]


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("t", [0.15, 0.5, 0.8])
@pytest.mark.parametrize("kind", INTERPOLANT_OBJECTIVES)
@pytest.mark.parametrize("bridge", BRIDGES, ids=lambda b: f"{b.name}-{b.gamma!r}")
def test_the_conditional_mean_is_the_minimum(
    bridge: StochasticInterpolant, kind: str, t: float, antithetic: bool
) -> None:
    x0, x1, z, weights = quadrature()
    objective = InterpolantObjective(bridge, kind, antithetic)
    p, q, mean = solution(bridge, kind, t)

    def expected(p: object, q: object) -> torch.Tensor:
        return weights @ objective.loss(lambda x, t: p + q * (x - mean), x0, x1, z, t)

    p_free = torch.tensor(p, dtype=torch.float64, requires_grad=True)
    q_free = torch.tensor(q, dtype=torch.float64, requires_grad=True)
    best = expected(p_free, q_free)
    gradients = torch.autograd.grad(best, (p_free, q_free))
    scale = 1 + abs(p) + abs(q)
    assert all(abs(g.item()) < 1e-9 * scale for g in gradients), gradients
    # away from it by delta the objective is higher by half the mean square of the change
    higher = expected(p + 0.1, q) - best
    assert higher.item() == pytest.approx(0.005, rel=1e-6)
    assert expected(p, q - 0.2) > best


@pytest.mark.parametrize("end", ["start", "finish"])
@pytest.mark.parametrize("kind", ["velocity", "score"])
@pytest.mark.parametrize("bridge", [LinearInterpolant(), TrigonometricInterpolant()], ids=lambda b: b.name)
def test_antithetic_pairs_cut_the_variance_near_the_ends(bridge: StochasticInterpolant, kind: str, end: str) -> None:
    """Single draws carry a term in 1/gamma; pairs cancel it."""
    t = 1e-4 if end == "start" else 1 - 1e-4
    p, q, mean = solution(bridge, kind, t)
    generator = torch.Generator().manual_seed(0)
    x0, x1, z = torch.randn(3, 4000, 1, dtype=torch.float64, generator=generator)
    x0, x1 = M0 + S0 * x0, M1 + S1 * x1
    variances = {}
    for antithetic in (True, False):
        loss = InterpolantObjective(bridge, kind, antithetic).loss(lambda x, t: p + q * (x - mean), x0, x1, z, t)
        variances[antithetic] = loss.var().item()
    assert variances[True] < variances[False] / 100, variances


def test_one_loss_a_sample() -> None:
    x0, x1, z = torch.randn(3, 5, 2, 4)
    objective = InterpolantObjective(LinearInterpolant(), "velocity")
    t = objective.draw_times(5, torch.Generator().manual_seed(0))
    assert t.shape == (5,)
    assert t.dtype == torch.float64
    assert ((t >= 1e-3) & (t <= 1 - 1e-3)).all()

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x.bfloat16() * t.reshape(-1, 1, 1).bfloat16()

    loss = objective.loss(network, x0.bfloat16(), x1.bfloat16(), z, t)
    assert loss.shape == (5,)
    assert loss.dtype == torch.float32
    for i in range(5):
        alone = objective.loss(network, *(v[i : i + 1] for v in (x0.bfloat16(), x1.bfloat16(), z, t)))
        torch.testing.assert_close(loss[i : i + 1], alone)


ARGUMENTS = (torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: InterpolantObjective(LinearInterpolant(), "velcity"), "did you mean 'velocity'"),
        (lambda: InterpolantObjective(LinearInterpolant("zero"), "score"), "with gamma = 0 does not exist"),
        (lambda: InterpolantObjective(LinearInterpolant(), "score", margin=0.5), "margin: got 0.5"),
        (
            lambda: InterpolantObjective(LinearInterpolant(), "score").loss(torch.add, *ARGUMENTS, 0.0),
            "1 / gamma is not finite",
        ),
        (
            lambda: InterpolantObjective(LinearInterpolant(), "velocity").loss(torch.add, *ARGUMENTS, 1.0),
            "gamma' is not finite",
        ),
    ],
)
def test_bad_input(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
