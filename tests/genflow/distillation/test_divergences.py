"""Each f against its derivatives and against known divergences of Gaussians; functions that are no f''."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genflow.distillation import DIVERGENCES, Divergence, UserDivergence, create_divergence
from genflow.errors import InputError

RATIOS = torch.logspace(-3, 3, 61, dtype=torch.float64)
ALL = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=lambda d: d.name)


def slope(f: Callable[[Tensor], Tensor], r: Tensor) -> Tensor:
    return torch.autograd.grad(f(r).sum(), r, create_graph=True)[0]


@ALL
def test_f2_is_the_second_derivative_of_f(divergence: Divergence) -> None:
    ratios = RATIOS.clone().requires_grad_()
    second = slope(lambda r: slope(divergence.f, r), ratios)
    torch.testing.assert_close(second, divergence.f2(RATIOS), rtol=1e-9, atol=0)


@ALL
@settings(deadline=None)
@given(log_ratio=st.floats(-9, 9))
def test_the_weight_is_positive_and_f2_times_the_square(divergence: Divergence, log_ratio: float) -> None:
    r = torch.tensor([math.exp(log_ratio)], dtype=torch.float64)
    assert divergence.f2(r).item() > 0
    torch.testing.assert_close(divergence.h(r), divergence.f2(r) * r**2, rtol=1e-12, atol=0)
    for dtype in (torch.float32, torch.bfloat16):
        weight = divergence.h(r.to(dtype))
        assert weight.dtype == dtype
        assert weight.shape == r.shape
        assert 0 < weight.item() < math.inf


@ALL
def test_equal_densities_have_no_divergence(divergence: Divergence) -> None:
    assert divergence.f(torch.ones(1, dtype=torch.float64)).item() == 0


def known_divergences(mean: float) -> dict[str, float]:
    """Between p = normal(mean, 1) and q = normal(0, 1), in closed form."""
    kl = mean**2 / 2
    return {
        "reverse-kl": kl,
        "forward-kl": kl,
        "jeffreys": 2 * kl,
        "squared-hellinger": 1 - math.exp(-(mean**2) / 8),
        "neyman": math.exp(mean**2) - 1,
    }


@pytest.mark.parametrize("mean", [0.3, -1.2])
@pytest.mark.parametrize("name", ["reverse-kl", "forward-kl", "jeffreys", "squared-hellinger", "neyman"])
def test_values_between_gaussians(name: str, mean: float) -> None:
    x = torch.linspace(-14, 14, 8001, dtype=torch.float64)
    q = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    r = torch.exp(mean * x - mean**2 / 2)
    value = torch.trapezoid(q * DIVERGENCES[name].f(r), x).item()
    assert value == pytest.approx(known_divergences(mean)[name], rel=1e-9)


def test_the_symmetric_ones_are_mixtures_of_kl() -> None:
    """JS's f gives KL(p, m) + KL(q, m), the softened reverse-KL's 2 KL(m, p), with m between p and q."""
    x = torch.linspace(-14, 14, 8001, dtype=torch.float64)
    p, q = (torch.exp(-((x - m) ** 2) / (2 * s**2)) / (s * math.sqrt(2 * math.pi)) for m, s in ((0.8, 0.9), (0.0, 1.1)))
    m = (p + q) / 2

    def kl(a: Tensor, b: Tensor) -> float:
        return torch.trapezoid(a * (a / b).log(), x).item()

    values = {name: torch.trapezoid(q * d.f(p / q), x).item() for name, d in DIVERGENCES.items()}
    assert values["js"] == pytest.approx(kl(p, m) + kl(q, m), rel=1e-9)
    assert values["softened-reverse-kl"] == pytest.approx(2 * kl(m, p), rel=1e-9)


@ALL
def test_a_user_divergence_finds_f_from_its_second_derivative(divergence: Divergence) -> None:
    """Up to the straight line that makes no difference."""
    user = UserDivergence(divergence.f2, "mine")
    one = torch.ones(1, dtype=torch.float64, requires_grad=True)
    line = slope(divergence.f, one).detach() * (RATIOS - 1)
    torch.testing.assert_close(user.f(RATIOS), divergence.f(RATIOS) - line, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(user.h(RATIOS), divergence.h(RATIOS), rtol=1e-12, atol=0)
    assert user.name == "mine"


def test_the_ways_to_a_divergence() -> None:
    assert create_divergence("js") is DIVERGENCES["js"]
    user = create_divergence(lambda r: r**-0.5)
    assert create_divergence(user) is user
    torch.testing.assert_close(user.h(RATIOS), RATIOS**1.5)
    with pytest.raises(InputError, match="'forward_kl' is not known .did you mean 'forward-kl'"):
        create_divergence("forward_kl")


@pytest.mark.parametrize(
    ("f2", "message"),
    [
        (lambda r: -1 / r, "f2: -1000 at ratio 0.001; allowed: positive"),
        (lambda r: 1 - r / 100, "at ratio 100; allowed: positive"),
        (lambda r: (r - 5).log(), "f2: nan"),
        (lambda r: 1 / (r * 0), "f2: inf"),
        (lambda r: r.sum(), r"f2: gave \(\) for ratios of shape \(121,\)"),
        (lambda r: 1.0, "f2: gave float"),
        (lambda r: math.exp(r), "f2: failed on a tensor of ratios"),
        (3, "f2: got int"),
    ],
)
def test_what_is_no_second_derivative(f2: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        UserDivergence(f2)
