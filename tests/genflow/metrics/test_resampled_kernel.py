"""Kernel distances of resamples: equal to the estimate of all samples, and to each resample summed pair by pair."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genflow.errors import InputError
from genflow.metrics import kernel_distance_full
from genflow.metrics.resampled_kernel import resampled_kernel_distances


def features(seed: int, count: int, dimensions: int = 5) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_each_sample_once_is_the_unbiased_estimate() -> None:
    real, generated = features(0, 40), features(1, 30) + 0.3
    found = resampled_kernel_distances(real, generated, torch.ones(1, 30))
    assert found[0].item() == pytest.approx(kernel_distance_full(real, generated).value, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 3))
def test_a_resample_is_the_sum_over_its_pairs_of_different_samples(seed: int, size: int, degree: int) -> None:
    real, generated = features(seed, 7), features(seed + 1, 6)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.cat([torch.randint(6, (size,), generator=generator), torch.tensor([0, 1])])
    counts = torch.bincount(rows, minlength=6)[None]

    def kernel(x: Tensor, y: Tensor) -> float:
        return float((x @ y / 5 + 1) ** degree)

    pairs = [(i, j) for i in rows.tolist() for j in rows.tolist() if i != j]
    within = sum(kernel(generated[i], generated[j]) for i, j in pairs) / len(pairs)
    across = sum(kernel(generated[i], y) for i in rows.tolist() for y in real) / (len(rows) * 7)
    own = sum(kernel(x, y) for i, x in enumerate(real) for j, y in enumerate(real) if i != j) / 42
    found = resampled_kernel_distances(real, generated, counts, degree=degree)
    assert found[0].item() == pytest.approx(within + own - 2 * across, rel=1e-9, abs=1e-9)


def test_neither_blocks_nor_the_other_resamples_change_anything() -> None:
    real, generated = features(0, 40), features(1, 30)
    counts = torch.randint(0, 4, (9, 30), generator=torch.Generator().manual_seed(2)).double()
    whole = resampled_kernel_distances(real, generated, counts)
    assert torch.allclose(resampled_kernel_distances(real, generated, counts, max_bytes=3000), whole, rtol=1e-12)
    assert torch.allclose(resampled_kernel_distances(real, generated, counts[4:5]), whole[4:5], rtol=1e-12)


def test_resamples_of_equal_laws_have_no_bias() -> None:
    """A pair of a sample with itself would add about (mean k(x, x) - mean k(x, y)) / N, some 0.06 here."""
    real, generated = features(0, 400), features(1, 100)
    counts = torch.stack(
        [torch.bincount(torch.randint(100, (100,), generator=torch.Generator().manual_seed(s)), minlength=100)
         for s in range(300)]
    )  # fmt: skip
    found = resampled_kernel_distances(real, generated, counts)
    estimate = kernel_distance_full(real, generated).value
    assert abs(float(found.mean()) - estimate) < 4 * float(found.std()) / 300**0.5


@pytest.mark.parametrize(
    ("real", "generated", "counts", "match"),
    [
        (features(0, 1), features(1, 5), torch.ones(1, 5), "real"),
        (features(0, 5), features(1, 5, 4), torch.ones(1, 5), "generated"),
        (features(0, 5), features(1, 5), torch.ones(1, 4), "counts"),
        (features(0, 5), features(1, 5), -torch.ones(1, 5), "counts"),
        (features(0, 5), features(1, 5), torch.tensor([[3.0, 0, 0, 0, 0]]), "single sample"),
        (features(0, 5), features(1, 5) * torch.nan, torch.ones(1, 5), "NaN"),
    ],
)
def test_what_does_not_fit_is_refused(real: Tensor, generated: Tensor, counts: Tensor, match: str) -> None:
    with pytest.raises(InputError, match=match):
        resampled_kernel_distances(real, generated, counts)
