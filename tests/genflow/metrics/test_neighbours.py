"""Precision, recall, density and coverage: exact counts against a plain numpy implementation, and what they mean."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genflow.errors import InputError
from genflow.metrics import NeighbourMetrics, neighbour_metrics, neighbour_radii


def cloud(seed: int, count: int, dimensions: int = 6, offset: float = 0.0) -> torch.Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed)) + offset


def plain(real: torch.Tensor, fake: torch.Tensor, k: int, density_k: int) -> NeighbourMetrics:
    """Straight from the definitions, with whole matrices of differences."""
    x, y = real.double().numpy(), fake.double().numpy()

    def squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return ((a[:, None] - b[None]) ** 2).sum(-1)

    def radii(a: np.ndarray, n: int) -> np.ndarray:
        return np.sort(squared(a, a), axis=1)[:, n]  # entry 0 is the sample itself

    between = squared(x, y)
    return NeighbourMetrics(
        precision=(between <= radii(x, k)[:, None]).any(0).mean(),
        recall=(between <= radii(y, k)[None]).any(1).mean(),
        density=(between <= radii(x, density_k)[:, None]).sum(0).mean() / density_k,
        coverage=(between <= radii(x, density_k)[:, None]).any(1).mean(),
    )


def close(found: NeighbourMetrics, expected: NeighbourMetrics) -> bool:
    names = ("precision", "recall", "density", "coverage")
    return all(getattr(found, n) == pytest.approx(getattr(expected, n), abs=1e-12) for n in names)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    real=st.integers(7, 60),
    fake=st.integers(7, 60),
    k=st.integers(1, 6),
    density_k=st.integers(1, 6),
    integers=st.booleans(),
    offset=st.sampled_from([0.0, 0.5, 1000.0]),
    max_bytes=st.sampled_from([1, 2000, 10**6]),
)
def test_exact_counts_against_numpy(seed, real, fake, k, density_k, integers, offset, max_bytes):
    x, y = cloud(seed, real, offset=offset), cloud(seed + 1, fake, offset=offset)
    if integers:  # many ties and duplicates
        x, y = x.round(), y.round()
    found = neighbour_metrics(x, y, k=k, density_k=density_k, max_bytes=max_bytes)
    assert close(found, plain(x, y, k, density_k))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), max_bytes=st.sampled_from([1, 5000, 10**7]))
def test_order_and_blocks_do_not_matter(seed, max_bytes):
    x, y = cloud(seed, 80), cloud(seed + 1, 70, offset=0.3)
    generator = torch.Generator().manual_seed(seed)
    shuffled = neighbour_metrics(
        x[torch.randperm(80, generator=generator)], y[torch.randperm(70, generator=generator)], max_bytes=max_bytes
    )
    assert close(shuffled, neighbour_metrics(x, y))


def test_identical_sets():
    x = cloud(0, 200)
    found = neighbour_metrics(x, x)
    assert found.precision == found.recall == found.coverage == 1.0
    assert found.density == pytest.approx(6 / 5)  # each sample is in its own ball and, on average, in five others


def test_disjoint_sets():
    assert neighbour_metrics(cloud(0, 200), cloud(1, 200, offset=100.0)) == NeighbourMetrics(0.0, 0.0, 0.0, 0.0)


def test_a_collapsed_set_is_precise_and_recalls_little():
    real = cloud(2, 400)
    collapsed = real[:1] + 1e-3 * cloud(3, 400)
    found = neighbour_metrics(real, collapsed)
    assert found.precision == 1.0
    assert found.recall < 0.05
    assert found.coverage < 0.1
    swapped = neighbour_metrics(collapsed, real)
    assert swapped.precision < 0.05
    assert swapped.recall == 1.0


def test_a_set_that_is_too_wide_recalls_all_and_is_not_precise():
    real = cloud(4, 400)
    found = neighbour_metrics(real, 6 * cloud(5, 400))
    assert found.recall > 0.9
    assert found.precision < 0.3


def test_equal_points_lie_in_balls_of_radius_zero():
    x = torch.full((10, 3), 0.1)
    assert neighbour_metrics(x, x.clone()) == NeighbourMetrics(1.0, 1.0, 2.0, 1.0)


def test_radii_against_cdist():
    x = cloud(6, 90).double()
    found = neighbour_radii(x, (1, 3, 5), max_bytes=9000)
    sorted_distances = torch.cdist(x, x).square().sort(dim=1).values
    assert torch.allclose(found, sorted_distances[:, [1, 3, 5]].T)


def test_float32_is_near_float64():
    x, y = cloud(7, 500, 32), cloud(8, 500, 32, offset=0.2)
    exact, quick = neighbour_metrics(x, y), neighbour_metrics(x, y, dtype=torch.float32)
    assert quick.precision == pytest.approx(exact.precision, abs=0.01)
    assert quick.recall == pytest.approx(exact.recall, abs=0.01)


def test_progress_counts_every_row():
    done = []
    neighbour_metrics(cloud(9, 50), cloud(10, 40), max_bytes=10_000, progress=done.append)
    assert sum(done) == 2 * 50 + 40
    assert len(done) > 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generated": torch.zeros(3, 6)}, "generated: 3 samples; at least 4"),
        ({"real": torch.zeros(5, 6)}, "real: 5 samples; at least 6"),
        ({"generated": torch.zeros(10, 7)}, "7 features"),
        ({"generated": torch.full((10, 6), torch.nan)}, "generated: some"),
        ({"real": torch.zeros(10)}, r"\(N, D\)"),
        ({"k": 0}, "k: got 0"),
        ({"density_k": 1.5}, "density_k"),
        ({"dtype": torch.float16}, "dtype"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        neighbour_metrics(**{"real": cloud(0, 10), "generated": cloud(1, 10), **arguments})
