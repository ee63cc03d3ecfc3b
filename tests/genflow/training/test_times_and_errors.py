"""U-shaped times against their distribution function, a grid of times, and the error measures by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from genflow.errors import InputError
from genflow.models import from_function
from genflow.paths import LinearPath, VPPath
from genflow.training.objectives import Objective, create_objective
from genflow.training.perceptual import create_lpips

PATH = LinearPath()


def times(shape, count, seed=0):
    objective = create_objective("velocity", PATH, "u-shaped", shape=shape)
    return objective.draw_times(count, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [0.3, 4.0, 25.0])
def test_u_shaped_times_have_the_density_of_the_paper(shape):
    """exp(a t) + exp(a (1 - t)), the exponential law of Lee et al. joined with its mirror image, by quadrature."""

    def density(t):
        return np.exp(shape * (t - 1)) + np.exp(-shape * t)

    whole = integrate.quad(density, 0, 1)[0]
    grid = np.linspace(0, 1, 401)
    steps = [integrate.quad(density, a, b)[0] / whole for a, b in itertools.pairwise(grid)]
    cdf = np.concatenate([[0.0], np.cumsum(steps)])
    drawn = times(shape, 20_000).numpy()
    assert stats.kstest(drawn, lambda t: np.interp(t, grid, cdf)).pvalue > 0.01
    if shape > 1:  # and the test tells it from another law
        assert stats.kstest(drawn, "uniform").pvalue < 1e-6


@settings(max_examples=50, deadline=None)
@given(shape=st.floats(1e-6, 1000), seed=st.integers(0, 2**31))
def test_u_shaped_times_lie_inside_for_any_shape(shape, seed):
    drawn = times(shape, 64, seed)
    assert drawn.dtype == torch.float64
    assert bool(((drawn > 0) & (drawn < 1)).all())


def test_a_grid_is_drawn_evenly():
    objective = Objective(PATH, "flow_prediction", grid=(1.0, 0.5, 0.25))
    drawn = objective.draw_times(30_000, torch.Generator().manual_seed(0))
    values, counts = drawn.unique(return_counts=True)
    assert values.tolist() == [0.25, 0.5, 1.0]
    assert stats.chisquare(counts.numpy()).pvalue > 0.01


def off_by(error, x0, noise):
    """A model whose velocity is off by ``error`` everywhere: its x0 is off by -t error."""
    return from_function(lambda x, t: noise - x0 + error, PATH, "flow_prediction")


def batch(count=5, shape=(2, 3, 4)):
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(count, *shape, generator=generator) for _ in range(2))
    return x0, noise, torch.linspace(0.1, 1.0, count, dtype=torch.float64)


def test_pseudo_huber_by_hand():
    x0, noise, t = batch()
    size = x0[0].numel()
    error = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    objective = create_objective("velocity", PATH, "uniform", error="pseudo-huber")
    found = objective.loss(off_by(error, x0, noise), x0, noise, t)
    norm = error.flatten(1).double().norm(dim=1)
    c = 0.00054 * size
    torch.testing.assert_close(found.double(), ((norm**2 + c**2).sqrt() - c) / size, rtol=1e-5, atol=1e-7)
    small = objective.loss(off_by(1e-6 * error, x0, noise), x0, noise, t)
    assert bool((small >= 0).all())
    assert float(small.max()) < 1e-6


def test_huber_has_a_gradient_where_the_error_is_zero():
    x0, noise, t = batch()
    error = torch.zeros(x0.shape, requires_grad=True)
    objective = create_objective("velocity", PATH, "uniform", error="pseudo-huber")
    objective.loss(off_by(error, x0, noise), x0, noise, t).sum().backward()
    assert bool(torch.isfinite(error.grad).all())


def test_lpips_huber_weighs_its_two_halves():
    x0, noise, t = batch()
    error = torch.full(x0.shape, 0.5)
    seen = []

    def perceptual(predicted, wanted):
        seen.append((predicted, wanted))
        return torch.arange(len(predicted)).float()

    objective = create_objective("velocity", PATH, "uniform", error="lpips-huber", perceptual=perceptual)
    huber = create_objective("velocity", PATH, "uniform", error="pseudo-huber")
    found = objective.loss(off_by(error, x0, noise), x0, noise, t)
    expected = (1 - t) * huber.loss(off_by(error, x0, noise), x0, noise, t).double() + torch.arange(5)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    predicted, wanted = seen[0]
    assert wanted is x0
    torch.testing.assert_close(predicted, x0 - (t.view(-1, 1, 1, 1) * 0.5).float(), rtol=1e-5, atol=1e-5)


def test_errors_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="objective.error: 'l3'.*l2, pseudo-huber, lpips-huber"):
        create_objective("velocity", PATH, "uniform", error="l3")
    with pytest.raises(InputError, match="lpips-huber.*linear path"):
        create_objective("v_prediction", VPPath.linear(), "uniform", error="lpips-huber", perceptual=lambda a, b: a)
    with pytest.raises(InputError, match="objective.times_shape: got 0"):
        create_objective("velocity", PATH, "u-shaped", shape=0)
    with pytest.raises(InputError, match="4 channels; allowed: 1 or 3"):
        create_lpips(4)


def test_lpips_without_torchvision_is_refused_with_the_mend(monkeypatch):
    monkeypatch.setattr("torchmetrics.image.lpip._TORCHVISION_AVAILABLE", False)
    with pytest.raises(InputError, match="needs torchvision.*allowed without: pseudo-huber, l2"):
        create_lpips(1)


def test_lpips_is_grey_or_colour_enlarged_and_one_number_an_image(monkeypatch):
    class Net(torch.nn.Module):
        def forward(self, a, b):
            assert a.shape[1:] == b.shape[1:] == (3, 224, 224)
            return (a - b).square().mean(dim=(1, 2, 3), keepdim=True)

    class Metric:
        def __init__(self, net_type):
            assert net_type == "vgg"
            self.net = Net()

    monkeypatch.setattr("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", Metric)
    a = torch.rand(4, 1, 28, 28, requires_grad=True)
    b = a.detach() + torch.tensor([0.0, 0.1, 0.2, 0.3]).view(-1, 1, 1, 1)
    found = create_lpips(1)(a, b)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.01, 0.04, 0.09]), rtol=1e-4, atol=1e-6)
    found.sum().backward()
    assert math.isfinite(float(a.grad.abs().sum()))
