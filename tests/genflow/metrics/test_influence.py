"""What each sample adds to a Frechet distance: the derivative it is, and the intervals that come of it."""

import pytest
import torch

from genflow.errors import InputError
from genflow.metrics import (
    FeatureStatistics,
    FrechetReference,
    bootstrap,
    frechet_bias,
    frechet_distance,
    frechet_distance_from_features,
    frechet_influence,
    interval_from_draws,
    paired_bootstrap,
    resamples,
)


def gaussian(seed: int, count: int, dimensions: int, scale: float = 1.0, offset: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, dimensions, generator=generator, dtype=torch.float64)
    return noise * torch.linspace(1, 0.3, dimensions, dtype=torch.float64) * scale + offset


def exact(dimensions: int) -> FeatureStatistics:
    """Of the law that :func:`gaussian` draws from."""
    scales = torch.linspace(1, 0.3, dimensions, dtype=torch.float64)
    return FeatureStatistics.from_moments(torch.zeros_like(scales), scales.square().diag())


def test_one_dimension_in_closed_form():
    """There the distance is ``(m1 - m2)^2 + (s1 - s2)^2``."""
    x = gaussian(1, 50, 1, 2.0, 0.7)
    mean, deviation = 0.2, 1.5
    reference = FeatureStatistics.from_moments(
        torch.tensor([mean], dtype=torch.float64), torch.tensor([[deviation**2]], dtype=torch.float64)
    )
    c = (x - x.mean())[:, 0]
    expected = 2 * (x.mean() - mean) * c + 50 / 49 * (1 - deviation / x.std()) * c.square()
    torch.testing.assert_close(frechet_influence(reference, x), expected - expected.mean())


@pytest.mark.parametrize(("n", "dimensions"), [(60, 8), (40, 20)])
def test_it_is_the_derivative_towards_each_sample(n, dimensions):
    """Weights moved a little from all samples to one: the distance moves by its influence."""
    reference, x = gaussian(1, 300, dimensions), gaussian(2, n, dimensions, 1.3, 0.2)
    influence = frechet_influence(reference, x)
    statistics = FeatureStatistics.from_features(reference)

    def moved(sample: int, by: float) -> float:
        weights = torch.full((n,), (1 - by) / n, dtype=torch.float64)
        weights[sample] += by
        mean = weights @ x
        covariance = (x - mean).T @ (weights[:, None] * (x - mean)) * n / (n - 1)
        return frechet_distance(statistics.mean, statistics.covariance, mean, covariance)

    for sample in (0, 7, n - 1):
        step = 1e-4
        slope = (moved(sample, step) - moved(sample, -step)) / (2 * step)
        assert float(influence[sample]) == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_it_is_the_same_in_parts_and_of_statistics(monkeypatch):
    reference, x = gaussian(1, 300, 6), gaussian(2, 9000, 6, 1.2)
    found = frechet_influence(reference, x)
    assert abs(float(found.mean())) < 1e-12
    torch.testing.assert_close(frechet_influence(FeatureStatistics.from_features(reference), x), found)
    order = torch.randperm(9000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(frechet_influence(reference, x[order]), found[order])


def test_singular_covariances_stay_finite():
    reference, x = gaussian(1, 10, 20), gaussian(2, 12, 20, 1.5)
    assert torch.isfinite(frechet_influence(reference, x)).all()
    assert torch.isfinite(frechet_influence(torch.ones(5, 20), x)).all()


@pytest.mark.parametrize(
    ("scale", "offset", "low", "high"), [(1.4, 0.0, 0.9, 1.3), (1.0, 0.3, 0.85, 1.25), (1.0, 0, 1, 2)]
)
def test_standard_errors_are_right_where_resampling_is_too_wide(scale, offset, low, high):
    """Ratios to the true standard deviation; near the reference, resamples exceed it by more than twice as much."""
    reference, n, dimensions = exact(30), 150, 30
    distances = torch.tensor(
        [FrechetReference(reference, gaussian(s, n, dimensions, scale, offset))() for s in range(200)]
    )
    true = float(distances.std())
    by_influence, by_resampling = [], []
    for seed in range(6):
        x = gaussian(1000 + seed, n, dimensions, scale, offset)
        by_influence.append(float(frechet_influence(reference, x).std()) / n**0.5)
        again = FrechetReference(reference, x)
        by_resampling.append(
            float(torch.tensor([again(rows) for part in resamples(n, 40, seed) for rows in part]).std())
        )
    ours, resampled = (sum(errors) / len(errors) / true for errors in (by_influence, by_resampling))
    assert low < ours < high
    if scale == 1.0 and offset == 0.0:
        assert resampled - 1 > 2 * (ours - 1)


def test_intervals_hold_the_mean_distance_of_such_samples():
    reference, n, dimensions, runs = exact(10), 200, 10, 200
    mean = sum(FrechetReference(reference, gaussian(10_000 + s, n, dimensions, 1.3))() for s in range(400)) / 400
    hits = 0
    for seed in range(runs):
        x = gaussian(seed, n, dimensions, 1.3)
        distance = FrechetReference(reference, x)()
        found = bootstrap(distance + frechet_influence(reference, x), draws=150, seed=seed)
        assert found.value == pytest.approx(distance, rel=1e-9)
        hits += found.low <= mean <= found.high
    assert 0.90 < hits / runs < 0.99


@pytest.mark.slow
def test_what_each_method_makes_of_resampled_distances():
    """Percentiles miss the mean distance at n; centred ones hold it, and basic ones that of the laws."""
    reference, n, dimensions, runs = exact(10), 100, 10, 80
    scale = 1.15
    law = FeatureStatistics.from_moments(reference.mean, reference.covariance * scale**2)
    truth = frechet_distance(reference.mean, reference.covariance, law.mean, law.covariance)
    mean = sum(FrechetReference(reference, gaussian(10_000 + s, n, dimensions, scale))() for s in range(500)) / 500
    assert mean > 1.5 * truth  # a bias worth correcting
    hits = dict.fromkeys(("percentile", "centred", "basic"), 0)
    for seed in range(runs):
        again = FrechetReference(reference, gaussian(seed, n, dimensions, scale))
        draws = torch.tensor([again(rows) for part in resamples(n, 80, seed) for rows in part])
        for method in hits:
            found = interval_from_draws(again(), draws, method=method)
            target = truth if method == "basic" else mean
            hits[method] += found.low <= target <= found.high
    assert hits["percentile"] < 0.6 * runs
    assert hits["centred"] > 0.93 * runs
    assert hits["basic"] > 0.88 * runs


def test_less_the_bias_it_is_the_distance_of_the_laws():
    reference, n, dimensions = exact(10), 300, 10
    truth = float((reference.covariance.diagonal() * (1.3 - 1) ** 2).sum())
    left = []
    for seed in range(200):
        x = gaussian(seed, n, dimensions, 1.3)
        left.append(FrechetReference(reference, x)() - frechet_bias(reference, x) - truth)
    spread = torch.tensor(left).std() / 200**0.5
    assert abs(torch.tensor(left).mean()) < 4 * spread + 0.03 * truth


def test_sets_of_one_model_do_not_differ_and_others_do():
    reference = gaussian(0, 2000, 8)
    sets = [gaussian(1, 400, 8, 1.2), gaussian(2, 400, 8, 1.2), gaussian(3, 400, 8, 1.6)]
    values = [frechet_distance_from_features(reference, x) + frechet_influence(reference, x) for x in sets]
    found = {(d.first, d.second): d for d in paired_bootstrap(values, paired=False, draws=400)}
    assert found[0, 1].p > 0.05
    assert found[0, 2].p_corrected < 0.02
    assert found[0, 2].high < 0


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(5, 3), "features: got shape"),
        (torch.zeros(1, 4), "features: got shape"),
        (torch.full((5, 4), torch.nan), "features: some are NaN"),
    ],
)
def test_bad_input_is_named(features, message):
    with pytest.raises(InputError, match=message):
        frechet_influence(gaussian(0, 20, 4), features)
