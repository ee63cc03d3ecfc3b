"""What finite samples add to the Frechet distance: the formula against simulation, and what is said about it."""

import pytest
import torch

from genflow.metrics import FeatureStatistics, frechet_bias, frechet_report

FLAT = torch.ones(32, dtype=torch.float64)
DECAYING = torch.arange(1, 33, dtype=torch.float64) ** -0.7


def draw(count: int, deviations: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(count, len(deviations), generator=generator, dtype=torch.float64) * deviations


def test_the_formula_of_isotropic_gaussians():
    """``s D (D + 5) / 4 (1/n + 1/m)`` to the first order: from covariances that are known, with counts made up."""
    mean, covariance = torch.zeros(32), 3 * torch.eye(32)
    n, m = 10**6, 10**7
    first, second = (FeatureStatistics.from_moments(mean, covariance, count) for count in (n, m))
    expected = 3 * 32 * 37 / 4 * (1 / n + 1 / m)
    assert frechet_bias(first, second) == pytest.approx(expected, rel=1e-4)
    exact = FeatureStatistics.from_moments(mean, covariance)
    assert frechet_bias(exact, second) == pytest.approx(3 * 32 * 37 / 4 / m, rel=1e-4)
    assert frechet_bias(exact, exact) == 0.0


@pytest.mark.parametrize("deviations", [FLAT, DECAYING], ids=["flat", "decaying"])
@pytest.mark.parametrize(("factor", "low", "high"), [(20, 0.93, 1.07), (2, 0.85, 1.1), (1, 0.65, 1.0), (0.5, 0.3, 0.9)])
def test_it_is_what_samples_of_one_law_show(deviations, factor, low, high):
    """Their true distance is 0: all that is found is bias."""
    generator = torch.Generator().manual_seed(0)
    count = int(factor * 32)
    reports = [
        frechet_report(draw(count, deviations, generator), draw(3 * count, deviations, generator)) for _ in range(60)
    ]
    found = sum(report.distance for report in reports) / 60
    said = sum(report.bias for report in reports) / 60
    assert low < said / found < high


def test_it_is_what_samples_of_two_laws_show():
    generator = torch.Generator().manual_seed(1)
    other = DECAYING * torch.linspace(0.9, 1.2, 32, dtype=torch.float64)
    true = float((DECAYING - other).square().sum())
    reports = [frechet_report(draw(200, DECAYING, generator), draw(100, other, generator)) for _ in range(100)]
    excess = torch.tensor([report.distance - true for report in reports], dtype=torch.float64)
    said = sum(report.bias for report in reports) / 100
    assert said == pytest.approx(float(excess.mean()), abs=3 * float(excess.std()) / 10, rel=0.1)
    assert said > 5 * float(excess.std()) / 10  # a difference that the test can see


def test_the_traps_are_said_in_a_line_each():
    generator = torch.Generator().manual_seed(2)
    few, many = draw(20, FLAT, generator), FeatureStatistics.from_moments(torch.zeros(32), torch.eye(32), 20_000)
    report = frechet_report(many, few)
    assert report.ranks == (32, 19)
    assert report.counts == (20_000, 20)
    rank, samples = report.warnings(("reference", "samples"))
    assert rank.startswith("samples: its covariance has rank 19 of 32")
    assert samples.startswith("samples: samples 20, fewer than 10000: at least ")
    enough = FeatureStatistics.from_moments(torch.zeros(32), torch.eye(32), 10_000)
    assert frechet_report(many, enough).warnings() == []
    (line,) = frechet_report(many, draw(400, FLAT, generator)).warnings()
    assert "second 400, fewer than 10000: about" in line
    unknown = FeatureStatistics.from_moments(torch.zeros(32), torch.eye(32))
    assert frechet_report(unknown, enough).warnings() == []
    assert frechet_report(unknown, unknown).warnings() == []
