"""gamma, its derivative and their product: closed forms against differences, ends, bad input."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genflow.errors import InputError
from genflow.interpolants import GAMMAS, Brownian, Gamma, PathGamma, Sigmoid, create_gamma
from genflow.paths import EDMPath, LinearPath, TrigonometricPath, VPPath

ONE_SIDED = [PathGamma(p) for p in (LinearPath(), TrigonometricPath(), VPPath.linear(), VPPath.cosine(), EDMPath(7.0))]
ALL = [*(cls() for cls in GAMMAS.values()), Brownian(3.0), Sigmoid(4.0), *ONE_SIDED]


@pytest.mark.parametrize("gamma", ALL, ids=repr)
@given(t=st.floats(0.01, 0.99))
@settings(deadline=None, max_examples=25)
def test_derivative_and_product(gamma: Gamma, t: float) -> None:
    h = 1e-6
    difference = (gamma.value(t + h) - gamma.value(t - h)) / (2 * h)
    assert gamma.dot(t) == pytest.approx(difference, rel=1e-6, abs=1e-6)
    assert gamma.product(t) == pytest.approx(gamma.value(t) * gamma.dot(t), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("gamma", ALL, ids=repr)
def test_ends(gamma: Gamma) -> None:
    ends = np.array([0.0, 1.0])
    values, products = gamma.value(ends), gamma.product(ends)
    assert np.isfinite(products).all()  # where gamma' is infinite too
    # the product is continuous up to the ends
    np.testing.assert_allclose(products, gamma.product(np.array([1e-9, 1 - 1e-9])), rtol=1e-5, atol=1e-6)
    assert values[0] == 0
    if not isinstance(gamma, PathGamma):
        assert values[1] == 0
        assert gamma.peak == max(gamma.value(np.linspace(0, 1, 101)))


def test_published_values() -> None:
    t = 0.3
    assert create_gamma("brownian").value(t) == pytest.approx(math.sqrt(t * (1 - t)))
    assert create_gamma("brownian", scale=2.0).value(t) == pytest.approx(math.sqrt(2 * t * (1 - t)))
    assert create_gamma("brownian").product(0.0) == 0.5
    assert create_gamma("parabola").value(t) == pytest.approx(t * (1 - t))
    assert create_gamma("sine").value(t) == pytest.approx(math.sin(math.pi * t) ** 2)

    def logistic(u: float) -> float:
        return 1 / (1 + math.exp(-u))

    hill = logistic(10 * (t - 0.5) + 1) - logistic(10 * (t - 0.5) - 1) - logistic(-4) + logistic(-6)
    assert create_gamma("sigmoid").value(t) == pytest.approx(hill)
    assert not create_gamma("zero").value(np.linspace(0, 1, 5)).any()


@pytest.mark.parametrize("name", sorted(GAMMAS))
@given(number=st.floats(0.1, 3.9))
@settings(deadline=None, max_examples=10)
def test_config_round_trip(name: str, number: float) -> None:
    cls = GAMMAS[name]
    gamma = cls(**{option: number for option in cls.option_names})
    again = create_gamma(**json.loads(json.dumps(gamma.to_config())))
    assert again == gamma
    assert hash(again) == hash(gamma)
    t = torch.rand(4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again.value(t), gamma.value(t), rtol=0, atol=0)
    assert gamma.value(t).dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create_gamma("brownina"), "did you mean 'brownian'"),
        (lambda: create_gamma("brownian", scael=1.0), "did you mean 'scale'"),
        (lambda: Brownian(0.0), "scale: got 0.0"),
        (lambda: Sigmoid(math.nan), "rate: got nan"),
    ],
)
def test_bad_input(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
