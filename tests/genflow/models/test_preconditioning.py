"""EDM's preconditioning: the identities of its derivation, and diffusers' own scalings."""

import math

import pytest
import torch
from diffusers import EDMEulerScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from genflow.errors import InputError
from genflow.models import EDMPreconditioning

levels = st.floats(1e-3, 1e3)
data_stds = st.floats(0.05, 5)


@given(sigma=levels, sigma_data=data_stds)
@settings(deadline=None, max_examples=100)
def test_identities(sigma: float, sigma_data: float) -> None:
    c = EDMPreconditioning(sigma_data)
    # unit variance of the network's input: c_in^2 (sigma_data^2 + sigma^2) = 1
    assert c.c_in(sigma) ** 2 * (sigma_data**2 + sigma**2) == pytest.approx(1, rel=1e-12)
    # unit variance of its target: ((1 - c_skip)^2 sigma_data^2 + c_skip^2 sigma^2) / c_out^2 = 1
    variance = (1 - c.c_skip(sigma)) ** 2 * sigma_data**2 + c.c_skip(sigma) ** 2 * sigma**2
    assert variance / c.c_out(sigma) ** 2 == pytest.approx(1, rel=1e-9)
    assert c.loss_weight(sigma) * c.c_out(sigma) ** 2 == pytest.approx(1, rel=1e-12)
    assert c.c_noise(sigma) == pytest.approx(math.log(sigma) / 4)


@given(sigma=levels, sigma_data=data_stds, nudge=st.floats(0.9, 1.1))
@settings(deadline=None, max_examples=50)
def test_c_skip_makes_c_out_smallest(sigma: float, sigma_data: float, nudge: float) -> None:
    """The paper's c_skip minimises the amplification of the network's errors."""
    c = EDMPreconditioning(sigma_data)
    other = c.c_skip(sigma) * nudge
    assert math.sqrt((1 - other) ** 2 * sigma_data**2 + other**2 * sigma**2) >= c.c_out(sigma) * (1 - 1e-12)


@pytest.mark.parametrize("sigma", [0.01, 0.5, 3.0, 80.0])
def test_unit_variance_by_monte_carlo(sigma: float) -> None:
    c = EDMPreconditioning(0.5)
    generator = torch.Generator().manual_seed(0)
    x0 = 0.5 * torch.randn(1, 200_000, generator=generator)
    x = x0 + sigma * torch.randn(1, 200_000, generator=generator)
    assert (c.c_in(sigma) * x).std().item() == pytest.approx(1, abs=0.01)
    target = c.target(x0.double(), x.double(), sigma)
    assert target.std().item() == pytest.approx(1, abs=0.01)
    torch.testing.assert_close(c.denoised(x.double(), target, sigma), x0.double())


def test_tensors_and_numbers_agree() -> None:
    c = EDMPreconditioning()
    sigma = torch.tensor([0.1, 2.0], dtype=torch.float64)
    for name in ("c_skip", "c_out", "c_in", "c_noise", "loss_weight"):
        assert getattr(c, name)(sigma).tolist() == [getattr(c, name)(s) for s in sigma.tolist()]
    x, output = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    both = c.denoised(x, output, sigma)
    for i in range(2):
        torch.testing.assert_close(both[i], c.denoised(x[i], output[i], float(sigma[i])))


def test_parity_with_diffusers() -> None:
    scheduler = EDMEulerScheduler(sigma_data=0.6)
    c = EDMPreconditioning(0.6)
    x, output = torch.randn(2, 4, 3)
    for sigma in (0.002, 0.5, 80.0):
        level = torch.tensor(sigma)
        torch.testing.assert_close(c.c_in(sigma) * x, scheduler.precondition_inputs(x, level))
        torch.testing.assert_close(c.denoised(x, output, sigma), scheduler.precondition_outputs(x, output, level))
        torch.testing.assert_close(torch.tensor(c.c_noise(sigma)), scheduler.precondition_noise(level))


def test_sigma_data_must_be_positive() -> None:
    with pytest.raises(InputError, match="sigma_data"):
        EDMPreconditioning(0.0)
