"""Trajectories of exact models, and the straightness of a Gaussian's flow in closed form."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate

from genflow.errors import InputError
from genflow.guidance import CFG
from genflow.models import from_function
from genflow.paths import EDMPath, LinearPath, TrigonometricPath, VPPath
from genflow.sampling import sample, time_grid
from genflow.solvers import FRAMES, Heun
from genflow.trajectory import sample_trajectory

MEAN, STD = 0.7, 0.5  # of the fixture's Gaussian data
PATHS = [LinearPath(), LinearPath(3.0), TrigonometricPath(), EDMPath(), VPPath.linear(), VPPath.cosine()]


def start(path, count=64):
    """States at t = 1 of Gaussian data, antithetic and of exactly their variance."""
    normal = torch.randn(count, 2, dtype=torch.float64)
    normal = torch.cat([normal, -normal])
    std = math.hypot(path.alpha(1.0) * STD, path.sigma(1.0))
    return path.alpha(1.0) * MEAN + std * normal / normal.square().mean().sqrt()


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_gaussian_closed_form(path, gaussian_model):
    """Data normal(m, s^2): z_u = (1 - u) m + g(u) w, g^2 = (1 - u)^2 s^2 + u^2, w fixed along a trajectory.

    The chord is -m + (1 - s) w and the velocity -m + g' w, so S = int g'^2 - (1 - s)^2. With
    g'^2 = 1 + s^2 - s^2 / g^2 and int 1 / g^2 = pi / (2 s) this is S = (2 - pi / 2) s. The acceleration is g'' w with
    g'' = s^2 / g^3. In the velocity frame all of it holds on every path.
    """
    top = float(FRAMES["velocity"].clock(path, 1.0))
    clocks = np.linspace(top, 0, 301)
    times = [1.0, *(path.time(FRAMES["velocity"].level(u)) for u in clocks[1:])]
    found = sample_trajectory(gaussian_model(path), start(path), times).straightness()

    def g(u):
        return np.sqrt((1 - u) ** 2 * STD**2 + u**2)

    def profile(u):
        return ((g(top) - STD) / top - (u - (1 - u) * STD**2) / g(u)) ** 2

    assert found.straightness == pytest.approx(integrate.quad(profile, 0, top)[0] / top, abs=1e-3)
    if top == 1:
        assert found.straightness == pytest.approx((2 - math.pi / 2) * STD, abs=1e-3)
    bend = integrate.quad(lambda u: STD**4 / g(u) ** 6, 0, top)[0] / top
    assert found.curvature == pytest.approx(bend, rel=0.02)
    assert 1 < found.detour < 1.2
    np.testing.assert_allclose(found.profile[:-1].numpy(), profile(clocks[:-1]), atol=1e-3)


def test_one_point_is_reached_in_straight_lines():
    path = LinearPath()
    model = from_function(lambda x, t: torch.full_like(x, 0.3), path, "sample")
    found = sample_trajectory(model, torch.randn(4, 2, 3, dtype=torch.float64), time_grid(path, 9), "euler")
    measured = found.straightness()
    assert measured.straightness < 1e-25
    assert measured.detour == pytest.approx(1)


@pytest.mark.parametrize(("solver", "evaluations"), [("euler", 6), ("heun", 11), ("ab", 6)])
def test_it_is_the_ordinary_sampler(gaussian_model, solver, evaluations):
    path = TrigonometricPath()
    model, x, times = gaussian_model(path), torch.randn(3, 1, 2, 2), time_grid(path, 6, "karras")
    seen = []
    found = sample_trajectory(model, x, times, solver, callback=lambda n, t, x, x0: seen.append(x))
    assert torch.equal(found.x, sample(model, x, times, solver))
    assert found.evaluations == evaluations
    assert found.states.shape == found.velocities.shape == (7, 3, 1, 2, 2)
    scales = FRAMES["velocity"].scale(path, found.times)
    for n in range(6):
        torch.testing.assert_close(found.states[n + 1] * float(scales[n + 1]), seen[n])
        expected = model.predict(([x, *seen])[n], float(times[n])).flow_prediction
        torch.testing.assert_close(found.velocities[n], expected)
    assert torch.equal(found.velocities[-1], found.velocities[-2])


def test_guidance_and_a_solver_object():
    path = LinearPath()

    def velocity(x, t, class_labels):
        return x * t + class_labels.view(-1, 1).to(x.dtype)

    model = from_function(velocity, path, "flow_prediction", num_classes=3)
    x, labels = torch.randn(2, 4), torch.tensor([0, 2])
    options = {"guidance": CFG(scale=2.0), "class_labels": labels}
    found = sample_trajectory(model, x, time_grid(path, 4), Heun(), **options)
    assert torch.equal(found.x, sample(model, x, time_grid(path, 4), Heun(), **options))
    expected = 2 * velocity(x, 1.0, labels) - velocity(x, 1.0, torch.full((2,), 3))
    torch.testing.assert_close(found.velocities[0], expected)


def test_noise_on_the_way_is_refused(gaussian_model):
    with pytest.raises(InputError, match="solver: 'sde-euler' adds noise"):
        sample_trajectory(gaussian_model(LinearPath()), torch.zeros(1, 1), [1.0, 0.0], "sde-euler")
