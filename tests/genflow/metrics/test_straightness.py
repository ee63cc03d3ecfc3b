"""Straightness of trajectories written down by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genflow.errors import InputError
from genflow.metrics import measure_straightness

TIMES = np.linspace(0, 1, 401)


def curve(position, velocity, times=TIMES, count=3):
    t = torch.from_numpy(np.asarray(times)).view(-1, 1, 1)
    size = torch.arange(1.0, count + 1, dtype=torch.float64).view(1, count, 1)
    return size * position(t), size * velocity(t)


@given(seed=st.integers(0, 99), steps=st.integers(1, 12), dtype=st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=25, deadline=None)
def test_a_straight_coupling_gives_zero(seed, steps, dtype):
    generator = torch.Generator().manual_seed(seed)
    z0, z1 = torch.randn(2, 5, 2, 3, generator=generator, dtype=dtype)
    times = torch.rand(steps + 1, generator=generator, dtype=torch.float64).sort(descending=seed % 2 == 0).values
    if times.diff().abs().min() < 1e-3:
        return
    states = torch.stack([t * z1 + (1 - t) * z0 for t in times])
    found = measure_straightness(times, states.to(dtype), (z1 - z0).expand_as(states))
    tolerance = 1e-8 if dtype == torch.float32 else 1e-20
    assert found.straightness < tolerance / min(1, float(abs(times[-1] - times[0]))) ** 2
    assert found.curvature == 0
    assert found.detour == pytest.approx(1, abs=1e-5)
    assert found.profile.shape == times.shape


def test_a_parabola():
    """z = t^2 s: the chord is s, v = 2 t s, so S = s^2 int (1 - 2t)^2 = s^2 / 3 and the acceleration 2 s."""
    found = measure_straightness(TIMES, *curve(lambda t: t**2, lambda t: 2 * t))
    mean_square = (1 + 4 + 9) / 3
    assert found.straightness == pytest.approx(mean_square / 3, rel=1e-4)
    assert found.curvature == pytest.approx(4 * mean_square, rel=1e-6)
    assert found.detour == pytest.approx(1, abs=1e-12)  # in a line, though not at constant speed
    torch.testing.assert_close(found.profile, mean_square * (1 - 2 * torch.from_numpy(TIMES)) ** 2)


def test_a_half_circle():
    t = torch.from_numpy(TIMES) * math.pi
    states = torch.stack([t.cos(), t.sin()], dim=-1)[:, None]
    velocities = math.pi * torch.stack([-t.sin(), t.cos()], dim=-1)[:, None]
    found = measure_straightness(TIMES, states, velocities)
    assert found.detour == pytest.approx(math.pi / 2, rel=1e-4)
    assert found.curvature == pytest.approx(math.pi**4 / 2, rel=1e-3)  # per dimension
    assert found.straightness == pytest.approx((math.pi**2 - 4) / 2, rel=1e-3)  # |v|^2 - |chord|^2 in the mean


def test_direction_and_unit_of_time():
    forward = measure_straightness(TIMES, *curve(lambda t: t**3, lambda t: 3 * t**2))
    states, velocities = curve(lambda t: t**3, lambda t: 3 * t**2)
    backward = measure_straightness(TIMES[::-1].copy(), states.flip(0), velocities.flip(0))
    assert backward.straightness == pytest.approx(forward.straightness)
    assert backward.curvature == pytest.approx(forward.curvature)
    # a run over twice the time at half the speed: velocities count by the square
    slow = measure_straightness(2 * TIMES, states, velocities / 2)
    assert slow.straightness == pytest.approx(forward.straightness / 4)
    assert slow.curvature == pytest.approx(forward.curvature / 16)


def test_half_precision_does_not_overflow():
    states, velocities = (part.half() for part in curve(lambda t: 300 * t**2, lambda t: 600 * t))
    assert measure_straightness(TIMES, states, velocities).straightness == pytest.approx(14 / 9 * 90000, rel=0.01)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"times": [0.0]}, "times: got \\[0.0\\]; allowed: two or more"),
        ({"times": [0.0, 0.5, 0.5]}, "times: .*strictly rising or falling"),
        ({"times": [0.0, 0.5]}, "allowed: one shape \\(2, B, ...\\)"),
        ({"velocities": torch.zeros(3, 2)}, "shapes \\(3, 2, 2\\) and \\(3, 2\\)"),
        ({"states": torch.full((3, 2, 2), math.nan)}, "states: got NaN"),
        ({"velocities": torch.full((3, 2, 2), math.inf)}, "velocities: got NaN or infinity"),
    ],
)
def test_faults(change, says):
    values = {"times": [0.0, 0.5, 1.0], "states": torch.zeros(3, 2, 2), "velocities": torch.zeros(3, 2, 2), **change}
    with pytest.raises(InputError, match=says):
        measure_straightness(**values)
