"""FD-infinity: nearer to a true distance than the distance of the samples, and the line that it says."""

import numpy as np
import pytest
import torch

from genflow.errors import InputError
from genflow.metrics import FeatureStatistics, fd_infinity, frechet_bias, frechet_distance_from_features

DEVIATIONS = torch.linspace(0.5, 1.5, 24, dtype=torch.float64)
REFERENCE = FeatureStatistics.from_moments(torch.zeros(24), torch.eye(24))
TRUE = float((DEVIATIONS - 1).square().sum())


def draw(seed: int, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 24, generator=generator, dtype=torch.float64) * DEVIATIONS


def test_it_is_nearer_to_the_true_distance():
    """Over 20 draws of 1,000: what is left of the bias is a fraction, and the standard error is of the right size."""
    found = [fd_infinity(REFERENCE, draw(seed, 1000), smallest=200) for seed in range(20)]
    plain = sum(float(each.distances[-1]) for each in found) / 20 - TRUE
    values = torch.tensor([each.value for each in found], dtype=torch.float64) - TRUE
    assert plain > 0.1
    assert abs(float(values.mean())) < plain / 5
    assert float(values.square().mean()) < plain**2
    said = sum(each.standard_error for each in found) / 20
    assert 0.2 < said / float(values.std()) < 1.5


def test_its_slope_is_the_bias_of_the_formula():
    x = draw(100, 4000)
    slope = sum(fd_infinity(REFERENCE, x, seed=seed).slope for seed in range(4)) / 4
    assert slope / 4000 == pytest.approx(frechet_bias(REFERENCE, x), rel=0.2)


def test_the_line_is_numpys():
    """Points, value, slope and standard error against numpy.polyfit; the last point is the distance of all."""
    real, x = draw(1, 300), draw(2, 500) + 0.1
    steps = []
    found = fd_infinity(real, x, points=6, smallest=100, progress=steps.append)
    assert found.sizes.tolist() == [100, 180, 260, 340, 420, 500]
    assert steps == [1] * 6
    assert float(found.distances[-1]) == pytest.approx(frechet_distance_from_features(real, x), rel=1e-9)
    inverse = 1 / found.sizes.double().numpy()
    (slope, value), covariance = np.polyfit(inverse, found.distances.numpy(), 1, cov=True)
    assert found.value == pytest.approx(value, rel=1e-9)
    assert found.slope == pytest.approx(slope, rel=1e-9)
    assert found.standard_error == pytest.approx(covariance[1, 1] ** 0.5, rel=1e-6)


@pytest.mark.parametrize(("count", "smallest"), [(40, 20), (200, 48), (1000, 100), (60_000, 5000)])
def test_the_sizes_are_the_papers_where_the_line_holds(count, smallest):
    """Here with D = 24: a tenth of the samples, 2 D at least, half of them or 5,000 at most."""
    found = fd_infinity(REFERENCE, draw(3, count), points=3)
    assert found.sizes.tolist() == [smallest, (smallest + count) // 2, count]


def test_the_value_holds_at_five_times_as_many_samples_as_dimensions():
    """From a tenth of them on, below D, the line is bent: its value falls far below zero."""
    found = [fd_infinity(REFERENCE, draw(seed, 120)) for seed in range(20)]
    bent = [fd_infinity(REFERENCE, draw(seed, 120), smallest=12) for seed in range(20)]
    miss = abs(sum(each.value for each in found) / 20 - TRUE)
    assert miss < abs(sum(each.value for each in bent) / 20 - TRUE) / 3
    assert miss < (sum(float(each.distances[-1]) for each in found) / 20 - TRUE) / 4


def test_the_draws_are_seeded():
    x = draw(3, 200)
    found = fd_infinity(REFERENCE, x)
    assert len(found.sizes) == 15
    assert torch.equal(found.distances, fd_infinity(REFERENCE, x).distances)
    assert not torch.equal(found.distances[:-1], fd_infinity(REFERENCE, x, seed=1).distances[:-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": 2}, "points: got 2"),
        ({"smallest": 1}, "smallest: got 1"),
        ({"generated": draw(0, 15)}, "generated: 15 samples; 15 points from 7 on need 21"),
        ({"smallest": 95}, "generated: 100 samples; 15 points from 95 on need 109"),
        ({"generated": torch.zeros(100, 3)}, "features: got shape"),
        ({"generated": torch.full((100, 24), torch.nan)}, "features: some are NaN"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"generated": draw(0, 100), **change}
    with pytest.raises(InputError, match=message):
        fd_infinity(REFERENCE, arguments.pop("generated"), **arguments)
