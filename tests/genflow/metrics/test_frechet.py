"""The Frechet distance against closed forms, scipy's matrix square root and torchmetrics."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from genflow.errors import InputError
from genflow.metrics import (
    FeatureStatistics,
    FrechetReference,
    frechet_distance,
    frechet_distance_from_features,
    frechet_distance_from_statistics,
    frechet_report,
)
from genflow.metrics import frechet as frechet_module


def features(seed: int, count: int, dimensions: int, rank: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(count, rank or dimensions, generator=generator, dtype=torch.float64)
    mixing = torch.randn(rank or dimensions, dimensions, generator=generator, dtype=torch.float64)
    return latent @ mixing + torch.randn(dimensions, generator=generator, dtype=torch.float64)


def by_scipy(first: torch.Tensor, second: torch.Tensor) -> float:
    mean1, mean2 = first.numpy().mean(0), second.numpy().mean(0)
    covariance1, covariance2 = np.cov(first.numpy(), rowvar=False), np.cov(second.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(covariance1 @ covariance2)
    return float(np.sum((mean1 - mean2) ** 2) + np.trace(covariance1 + covariance2 - 2 * root.real))


class Flatten(nn.Module):
    num_features = 16

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.reshape(len(images), -1)


def test_diagonal_gaussians_have_the_closed_form():
    deviations1, deviations2 = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([3.0, 0.1, 0.5])
    mean1, mean2 = torch.tensor([0.0, 1.0, -1.0]), torch.tensor([2.0, 1.0, 0.0])
    expected = float((mean1 - mean2).square().sum() + (deviations1 - deviations2).square().sum())
    found = frechet_distance(mean1, deviations1.square().diag(), mean2, deviations2.square().diag())
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_shift_alone_is_its_squared_length():
    x = features(0, 300, 12)
    shift = torch.linspace(-1, 1, 12, dtype=torch.float64)
    assert frechet_distance_from_features(x, x + shift) == pytest.approx(float(shift.square().sum()), rel=1e-9)


def test_a_scale_alone():
    x = features(1, 300, 12)
    x = x - x.mean(0)
    expected = float(x.square().sum()) / 299  # (2 - 1)^2 tr S
    assert frechet_distance_from_features(x, 2 * x) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("count", "rank"), [(500, None), (500, 3), (10, None), (2, None)])
def test_identical_sets_are_at_distance_zero(count, rank):
    x = features(2, count, 24, rank)
    scale = float(x.var(0).sum())
    assert frechet_distance_from_features(x, x) <= 1e-6 * scale
    if count > 24:
        mean, covariance = x.mean(0), x.T.cov()
        assert frechet_distance(mean, covariance, mean, covariance) <= 1e-6 * scale


def test_singular_covariances_with_different_null_spaces():
    covariance1, covariance2 = torch.diag(torch.tensor([4.0, 0.0])), torch.diag(torch.tensor([0.0, 9.0]))
    mean = torch.zeros(2)
    assert frechet_distance(mean, covariance1, mean, covariance2) == pytest.approx(13.0)
    assert frechet_distance(mean, torch.zeros(2, 2), mean, covariance2) == pytest.approx(9.0)
    assert frechet_distance(mean, torch.zeros(2, 2), mean, torch.zeros(2, 2)) == 0.0


@pytest.mark.parametrize(("count1", "count2"), [(400, 300), (20, 300), (300, 20), (20, 15), (2, 2)])
def test_against_scipy_in_every_form(count1, count2):
    x, y = features(3, count1, 32), features(4, count2, 32)
    expected = by_scipy(x, y)
    tolerance = 1e-9 if min(count1, count2) > 32 else 1e-5  # scipy's root of a singular matrix is the rough one
    assert frechet_distance_from_features(x, y) == pytest.approx(expected, rel=tolerance)
    by_statistics = frechet_distance_from_statistics(
        FeatureStatistics.from_features(x), FeatureStatistics.from_features(y)
    )
    assert by_statistics == pytest.approx(frechet_distance_from_features(x, y), rel=1e-6)


def test_against_torchmetrics():
    generator = torch.Generator().manual_seed(5)
    real, fake = torch.rand(200, 1, 4, 4, generator=generator), torch.rand(150, 1, 4, 4, generator=generator) ** 2
    metric = FrechetInceptionDistance(feature=Flatten(), input_img_size=(1, 4, 4), normalize=True)
    metric.set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    found = frechet_distance_from_features(real.reshape(200, -1), fake.reshape(150, -1))
    assert found == pytest.approx(float(metric.compute()), rel=1e-6)


def test_the_low_rank_form_is_the_full_one():
    x, y = features(6, 30, 64), features(7, 40, 64)
    full = frechet_distance(x.mean(0), x.T.cov(), y.mean(0), y.T.cov())
    assert frechet_distance_from_features(x, y) == pytest.approx(full, rel=1e-7)


def rotation(dimensions: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(features(seed, dimensions, dimensions)).Q


def rotated(values: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """A covariance with these eigenvalues, symmetric to the last digit."""
    covariance = (turn * values) @ turn.T
    return (covariance + covariance.T) / 2


SPECTRA = {
    "well-conditioned": torch.linspace(1, 3, 48, dtype=torch.float64),
    "condition 1e16": torch.logspace(0, -16, 48, dtype=torch.float64),
    "half zero": torch.linspace(2, 1, 48, dtype=torch.float64) * (torch.arange(48) % 2),
    "rank one": torch.eye(48, dtype=torch.float64)[0],
    "zero": torch.zeros(48, dtype=torch.float64),
}


@pytest.mark.parametrize("second", SPECTRA)
@pytest.mark.parametrize("first", SPECTRA)
def test_commuting_covariances_have_the_closed_form(first, second):
    """``sum (a_i - b_i)^2`` of the deviations, in rotated coordinates, whatever is singular, equal or nearly so."""
    turn, mean = rotation(48), torch.zeros(48, dtype=torch.float64)
    values1, values2 = SPECTRA[first], SPECTRA[second].flip(0)
    expected = float((values1.sqrt() - values2.sqrt()).square().sum())
    found = frechet_distance(mean, rotated(values1, turn), mean, rotated(values2, turn))
    # a covariance in float64 knows eigenvalues to 1e-16 of the largest, and deviations to the root of that
    assert found == pytest.approx(expected, rel=1e-7, abs=1e-13)
    same = frechet_distance(mean, rotated(values1, turn), mean, rotated(values1, turn))
    assert same <= 1e-12 * max(1.0, float(values1.sum()))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    dimensions=st.integers(1, 40),
    decades=st.floats(0, 16),
    change=st.sampled_from([0.0, 1e-6, 1e-3, 1.0]),
    zeros=st.integers(0, 10),
)
def test_any_commuting_covariances(seed, dimensions, decades, change, zeros):
    """Up to what their entries, rounded to float64, still say of them."""
    generator = torch.Generator().manual_seed(seed)
    first, second = 10 ** (-decades * torch.rand(2, dimensions, generator=generator, dtype=torch.float64))
    second = first + change * (second - first)
    second[:zeros] = 0
    turn, mean = rotation(dimensions, seed), torch.zeros(dimensions, dtype=torch.float64)
    expected = float((first.sqrt() - second.sqrt()).square().sum())
    found = frechet_distance(mean, rotated(first, turn), mean, rotated(second, turn))
    noise = 1e-15 * max(1.0, dimensions**0.5) * float(torch.maximum(first, second).max())
    known = [noise / a.sqrt().clamp_min(noise**0.5) for a in (first, second)]  # of each deviation
    unsure = float((known[0] * second.sqrt() + known[1] * first.sqrt()).sum()) + dimensions * noise
    assert abs(found - expected) <= 1e-7 * expected + 4 * unsure


def test_low_rank_orthogonal_supports_add_their_traces():
    turn = rotation(40)
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ turn[:3]
    y = torch.randn(100, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) @ turn[3:8]
    report = frechet_report(x, y)
    shift = float((x.mean(0) - y.mean(0)).square().sum())
    assert report.distance == pytest.approx(shift + float(x.var(0).sum() + y.var(0).sum()), rel=1e-7)
    assert report.ranks == (3, 5)
    assert report.mean_part == pytest.approx(shift, rel=1e-12)


@pytest.mark.parametrize("count", [12, 500])
def test_nearly_equal_samples_keep_their_digits(count):
    """The distance of x and (1 + e) x is e^2 tr S: twelve digits below the traces that it is the difference of."""
    x = features(20, count, 30)
    x = x - x.mean(0)
    expected = 1e-10 * float(x.square().sum()) / (count - 1)
    assert frechet_distance_from_features(x, (1 + 1e-5) * x) == pytest.approx(expected, rel=1e-3)


def test_covariances_that_float32_rounded():
    """Their smallest eigenvalues are noise of both signs, in some tools' files."""
    x, y = features(21, 400, 60, rank=20), features(22, 300, 60)
    exact = frechet_distance_from_features(x, y)
    found = frechet_distance(x.mean(0), x.T.cov().float(), y.mean(0), y.T.cov().float())
    assert found == pytest.approx(exact, rel=1e-4)


def test_a_matrix_with_negative_eigenvalues_is_no_covariance():
    indefinite = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(InputError, match="covariance2: not a covariance: its eigenvalues go from -1"):
        frechet_distance(torch.zeros(2), torch.eye(2), torch.zeros(2), indefinite)


@pytest.mark.parametrize(("count", "dimensions"), [(300, 12), (60, 80), (25, 80)])
def test_subsets_against_one_reference_are_what_each_gives_alone(count, dimensions, monkeypatch):
    monkeypatch.setattr(frechet_module, "ROWS", 50)
    real, generated = features(23, 200, dimensions), features(24, count, dimensions)
    generator = torch.Generator().manual_seed(0)
    for reference in (real, FeatureStatistics.from_features(real)):
        distances = FrechetReference(reference, generated)
        assert distances() == pytest.approx(frechet_distance_from_features(real, generated), rel=1e-9)
        for size in (2, 20, count):
            drawn = torch.randint(count, (size,), generator=generator)
            alone = frechet_distance_from_features(real, generated[drawn])
            assert distances(drawn) == pytest.approx(alone, rel=1e-7)  # repeats are null directions


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 40), other=st.integers(2, 40), dimensions=st.integers(1, 30))
def test_symmetric_order_free_and_not_negative(seed, count, other, dimensions):
    x, y = features(seed, count, dimensions), features(seed + 1, other, dimensions)
    there = frechet_distance_from_features(x, y)
    back = frechet_distance_from_features(y, x.flip(0))
    assert there >= 0
    assert there == pytest.approx(back, rel=1e-6)


def test_rotating_both_changes_nothing():
    x, y = features(8, 100, 10), features(9, 90, 10)
    turn = rotation(10, 10)
    found = frechet_distance_from_features(x @ turn, y @ turn)
    assert found == pytest.approx(frechet_distance_from_features(x, y), rel=1e-9)


def test_float16_features_are_computed_in_float64():
    x, y = features(11, 200, 8).half(), features(12, 200, 8).half()
    assert frechet_distance_from_features(x, y) == pytest.approx(by_scipy(x.double(), y.double()), rel=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean2": torch.zeros(4)}, "mean2"),
        ({"covariance1": torch.zeros(3, 2)}, "covariance1"),
        ({"covariance2": torch.full((3, 3), torch.nan)}, "NaN"),
        ({"covariance1": torch.arange(9.0).reshape(3, 3)}, "not symmetric"),
        ({"mean1": torch.zeros(3, 1)}, "mean1"),
    ],
)
def test_bad_gaussians_are_named(change, message):
    good = {"mean1": torch.zeros(3), "covariance1": torch.eye(3), "mean2": torch.zeros(3), "covariance2": torch.eye(3)}
    with pytest.raises(InputError, match=message):
        frechet_distance(**{**good, **change})


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (torch.zeros(1, 3), torch.zeros(5, 3), "features1"),
        (torch.zeros(5, 3), torch.zeros(5, 4), "features2"),
        (torch.zeros(5, 3), torch.full((5, 3), torch.inf), "features2"),
        (torch.zeros(5), torch.zeros(5, 3), "features1"),
    ],
)
def test_bad_features_are_named(first, second, message):
    with pytest.raises(InputError, match=message):
        frechet_distance_from_features(first, second)
