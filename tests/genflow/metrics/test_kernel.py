"""Kernel distances against double loops, closed forms, simulation and torchmetrics."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd

from genflow.errors import InputError
from genflow.metrics import cmmd, kernel_distance, kernel_distance_full, subset_indices


def features(seed: int, count: int, dimensions: int = 6, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, dimensions, generator=generator, dtype=torch.float64) + shift


def by_loops(real: torch.Tensor, generated: torch.Tensor, degree: int = 3, gamma=None, coef: float = 1.0) -> float:
    """The unbiased estimate as its definition reads."""
    gamma = 1 / real.shape[1] if gamma is None else gamma
    x, y = real.tolist(), generated.tolist()

    def k(a: list[float], b: list[float]) -> float:
        return (gamma * sum(p * q for p, q in zip(a, b, strict=True)) + coef) ** degree

    within = sum(
        sum(k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j) / (len(z) * (len(z) - 1))
        for z in (x, y)
    )
    return within - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))


@pytest.mark.parametrize(
    "options", [{}, {"degree": 1, "coef": 0.0}, {"degree": 2, "gamma": 0.3, "coef": 2.0}, {"degree": 4}]
)
def test_the_full_estimate_is_the_double_loop(options):
    x, y = features(0, 23), features(1, 31, scale=1.4, shift=0.2)
    found = kernel_distance_full(x, y, max_bytes=2000, **options).value
    assert found == pytest.approx(by_loops(x, y, **options), rel=1e-11)


@pytest.mark.parametrize(("subsets", "size"), [(3, 12), (40, 12), (7, 30)])
def test_subsets_are_double_loops_of_theirs(subsets, size):
    """Few subsets are computed one by one, many all at once."""
    x, y = features(2, 40, shift=0.1), features(3, 33)
    chosen = subset_indices(40, 33, subsets=subsets, subset_size=size, seed=5)
    each = torch.tensor([by_loops(x[a], y[b]) for a, b in zip(*chosen, strict=True)], dtype=torch.float64)
    found = kernel_distance(x, y, subsets=subsets, subset_size=size, seed=5)
    assert found.mean == pytest.approx(float(each.mean()), rel=1e-10)
    assert found.std == pytest.approx(float(each.std(correction=0)), rel=1e-10)
    assert (found.subsets, found.subset_size) == (subsets, size)


def test_subsets_are_drawn_without_replacement_by_their_seed():
    first, second = subset_indices(50, 20, subsets=9, subset_size=20, seed=1)
    assert first.shape == second.shape == (9, 20)
    assert all(len(row.unique()) == 20 for row in (*first, *second))
    assert int(first.max()) > 40
    again = subset_indices(50, 20, subsets=9, subset_size=20, seed=1)
    other = subset_indices(50, 20, subsets=9, subset_size=20, seed=2)
    assert torch.equal(first, again[0])
    assert not torch.equal(first, other[0])


def test_torchmetrics_finds_the_same_on_the_same_subsets():
    x, y = features(4, 300, 40).float(), features(5, 250, 40, scale=1.2).float()
    chosen = subset_indices(300, 250, subsets=20, subset_size=100)
    theirs = torch.stack([poly_mmd(x[a].double(), y[b].double()) for a, b in zip(*chosen, strict=True)])
    found = kernel_distance(x, y, subsets=20, subset_size=100)
    assert found.mean == pytest.approx(float(theirs.mean()), rel=1e-6)
    assert found.std == pytest.approx(float(theirs.std(correction=0)), rel=1e-6)
    single = kernel_distance(x, y, subsets=20, subset_size=100, dtype=torch.float32)
    assert single.mean == pytest.approx(found.mean, rel=1e-4)


def test_torchmetrics_metric_finds_the_same_where_a_subset_is_all():
    x, y = features(6, 80, 16), features(7, 80, 16, shift=0.3)
    metric = KernelInceptionDistance(nn.Flatten(), subsets=2, subset_size=80)
    metric.update(x, real=True)
    metric.update(y, real=False)
    mean, std = metric.compute()
    found = kernel_distance(x, y, subsets=2, subset_size=80)
    assert found.mean == pytest.approx(float(mean), rel=1e-6)
    assert found.std == pytest.approx(float(std), abs=1e-12)
    assert kernel_distance_full(x, y).value == pytest.approx(float(mean), rel=1e-6)


def test_a_linear_kernel_is_the_distance_of_the_means():
    """``degree 1, coef 0, gamma 1``: unbiased for ``|E x - E y|^2``; without noise it is just that."""
    x = features(8, 12)
    constant = torch.ones(12, 6, dtype=torch.float64)
    found = kernel_distance_full(2 * constant, -constant, degree=1, gamma=1.0, coef=0.0)
    assert found.value == pytest.approx(54.0)
    assert found.standard_error == pytest.approx(0.0, abs=1e-9)
    mean_distance = float((x.mean(0) - 1).square().sum()) - float(x.var(0).sum()) / 12
    found = kernel_distance_full(x, constant, degree=1, gamma=1.0, coef=0.0).value
    assert found == pytest.approx(mean_distance, rel=1e-9)


def test_without_bias_and_with_the_standard_error_that_it_says():
    """Over 200 draws: equal laws average to 0, different ones scatter as the jackknife says."""
    equal = [kernel_distance_full(features(2 * i, 40, 3), features(2 * i + 1, 60, 3)) for i in range(200)]
    values = torch.tensor([each.value for each in equal])
    assert abs(float(values.mean())) < 4 * float(values.std()) / 200**0.5
    assert float(values.min()) < 0 < float(values.max())
    said = torch.tensor([each.standard_error for each in equal]).mean()
    assert 0.9 < float(said / values.std()) < 1.9  # large where the laws are equal
    apart = [kernel_distance_full(features(2 * i, 40, 3), features(2 * i + 1, 60, 3, shift=1.0)) for i in range(200)]
    values = torch.tensor([each.value for each in apart])
    said = torch.tensor([each.standard_error for each in apart]).mean()
    assert float(said / values.std()) == pytest.approx(1.0, abs=0.2)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(3, 30), m=st.integers(3, 30), max_bytes=st.integers(1, 8000))
def test_neither_order_nor_blocks_nor_sides_matter(seed, n, m, max_bytes):
    x, y = features(seed, n), features(seed + 1, m, shift=0.5)
    found = kernel_distance_full(x, y)
    other = kernel_distance_full(y.flip(0), x.flip(0), max_bytes=max_bytes)
    assert other.value == pytest.approx(found.value, rel=1e-9, abs=1e-10)
    assert other.standard_error == pytest.approx(found.standard_error, rel=1e-7)
    size = min(n, m)
    spread = kernel_distance(x, y, subsets=5, subset_size=size)
    narrow = kernel_distance(x, y, subsets=5, subset_size=size, max_bytes=max_bytes)
    assert narrow.mean == pytest.approx(spread.mean, rel=1e-9, abs=1e-10)


def test_cmmd_has_its_closed_forms():
    east, north = torch.tensor([[2.0, 0.0]]).repeat(4, 1), torch.tensor([[0.0, 5.0]]).repeat(3, 1)
    assert cmmd(east, north) == pytest.approx(1000 * (2 - 2 * math.exp(-0.01)), rel=1e-10)
    x, y = features(9, 20), features(10, 30, shift=1.0)
    assert cmmd(x, 3 * x) == pytest.approx(0.0, abs=1e-9)
    ones, twos = x / x.norm(dim=1, keepdim=True), y / y.norm(dim=1, keepdim=True)
    k = [torch.exp(-torch.cdist(a, b).square() / 8).mean() for a, b in ((ones, ones), (twos, twos), (ones, twos))]
    expected = float(k[0] + k[1] - 2 * k[2])
    assert cmmd(x, y, sigma=2.0, scale=1.0, max_bytes=2000) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generated": torch.zeros(5, 3)}, "generated: got shape"),
        ({"real": torch.zeros(1, 6)}, "real: got shape"),
        ({"generated": torch.full((40, 6), torch.nan)}, "generated: some features are NaN"),
        ({"subset_size": 34}, "subset_size: got 34; generated has 33 samples"),
        ({"subset_size": 1}, "subset_size: got 1"),
        ({"subsets": 0}, "subsets: got 0"),
        ({"degree": 0}, "degree: got 0"),
        ({"degree": 2.5}, "degree: got 2.5"),
        ({"gamma": 0.0}, "gamma: got 0.0"),
        ({"coef": -1.0}, "coef: got -1.0"),
        ({"dtype": torch.float16}, "dtype: got torch.float16"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"real": features(0, 40), "generated": features(1, 33), "subset_size": 20, **change}
    with pytest.raises(InputError, match=message):
        kernel_distance(arguments.pop("real"), arguments.pop("generated"), **arguments)


def test_too_few_and_zero_embeddings_are_named():
    with pytest.raises(InputError, match="generated: 2 samples; at least 3"):
        kernel_distance_full(features(0, 4), features(1, 2))
    with pytest.raises(InputError, match="real: some embeddings are zero"):
        cmmd(torch.zeros(3, 2), torch.ones(3, 2))
    with pytest.raises(InputError, match="sigma: got 0"):
        cmmd(torch.ones(3, 2), torch.ones(3, 2), sigma=0)
