"""Precision, recall, density, coverage, authenticity: exact counts against the definitions and against prdc, and what
the figures mean."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prdc import compute_prdc

from genflow.errors import InputError
from genflow.metrics import (
    NeighbourDetails,
    NeighbourMetrics,
    neighbour_details,
    neighbour_metrics,
    neighbour_radii,
    neighbours,
)

PRDC = ("precision", "recall", "density", "coverage")


def cloud(seed: int, count: int, dimensions: int = 6, offset: float = 0.0) -> torch.Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed)) + offset


def plain(real: torch.Tensor, fake: torch.Tensor, k: int, density_k: int, strict: bool = False) -> NeighbourMetrics:
    """Straight from the definitions, with whole matrices of differences."""
    x, y = real.double().numpy(), fake.double().numpy()

    def squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return ((a[:, None] - b[None]) ** 2).sum(-1)

    def radii(a: np.ndarray, n: int) -> np.ndarray:
        return np.sort(squared(a, a), axis=1)[:, n]  # entry 0 is the sample itself

    inside = np.less if strict else np.less_equal
    between = squared(x, y)
    dense = inside(between, radii(x, density_k)[:, None])
    return NeighbourMetrics(
        precision=inside(between, radii(x, k)[:, None]).any(0).mean(),
        recall=inside(between, radii(y, k)[None]).any(1).mean(),
        density=dense.sum() / len(y) / density_k,
        coverage=dense.any(1).mean(),
        authenticity=(between.min(0) > radii(x, 1)[between.argmin(0)]).mean(),
    )


def same(first: NeighbourDetails, second: NeighbourDetails) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in ((getattr(first, name), getattr(second, name)) for name in first.__dataclass_fields__)
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    real=st.integers(7, 60),
    fake=st.integers(7, 60),
    k=st.integers(1, 6),
    density_k=st.integers(1, 6),
    strict=st.booleans(),
    integers=st.booleans(),
    offset=st.sampled_from([0.0, 0.5, 1000.0]),
    max_bytes=st.sampled_from([1, 40_000, 10**6]),
)
def test_exact_counts_against_numpy(seed, real, fake, k, density_k, strict, integers, offset, max_bytes):
    x, y = cloud(seed, real, offset=offset), cloud(seed + 1, fake, offset=offset)
    if integers:  # many ties and duplicates
        x, y = x.round(), y.round()
    found = neighbour_metrics(x, y, k=k, density_k=density_k, strict=strict, max_bytes=max_bytes)
    assert found == plain(x, y, k, density_k, strict)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("kind", ["random", "integers", "copies", "shared", "one place"])
def test_counts_equal_prdc(kind, k):
    x, y = cloud(1, 120, 16).double(), cloud(2, 150, 16, offset=0.2).double()
    if kind == "integers":
        x, y = (0.7 * x).round(), (0.7 * y).round()
    elif kind == "copies":  # on a grid of eighths, where prdc's own arithmetic is exact and ties are ties
        x, y = ((8 * z).round() / 8 for z in (x, y))
        x[40:80] = x[:40]
        y[:30] = y[30:60]
        y[100:] = x[:50]
    elif kind == "shared":  # the same samples on both sides; radii lie elsewhere
        y[:60] = x[:60] + 1e-3 * cloud(3, 60, 16).double()
    elif kind == "one place":
        x, y = ((4 * z).round() / 4 for z in (x, y))
        y[:140] = y[0]
    found = neighbour_metrics(x, y, k=k, density_k=k, strict=True)
    expected = compute_prdc(x.numpy(), y.numpy(), nearest_k=k)
    counts = {name: getattr(found, name) for name in PRDC}
    total = {"precision": len(y), "recall": len(x), "density": len(y) * k, "coverage": len(x)}
    assert {n: round(v * total[n]) for n, v in counts.items()} == {n: round(expected[n] * total[n]) for n in PRDC}
    assert all(abs(v * total[n] - round(v * total[n])) < 1e-6 for n, v in counts.items())


def test_strict_and_closed_differ_only_on_the_surface():
    x, y = cloud(1, 300), cloud(2, 300)
    assert neighbour_metrics(x, y) == neighbour_metrics(x, y, strict=True)
    square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    centre_of_side = torch.tensor([[0.0, 2.0], [9.0, 9.0]])  # at distance 1 from (0, 1), whose nearest is at distance 1
    closed = neighbour_metrics(square, centre_of_side, k=1, density_k=1)
    assert closed.precision == 0.5
    assert neighbour_metrics(square, centre_of_side, k=1, density_k=1, strict=True).precision == 0.0


def test_ties_that_only_rounding_breaks_are_on_the_surface():
    # All off-diagonal distances are equal; summed in different places, some may come out an ulp apart.
    x = torch.eye(12, dtype=torch.float64) * 0.1
    y = x.flip(0) + 0.0
    assert neighbour_metrics(x, y, k=1, density_k=1).density == 12.0
    assert neighbour_metrics(x, y, k=1, density_k=1, strict=True).density == 1.0


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), max_bytes=st.sampled_from([1, 20_000, 10**7]), collapsed=st.booleans())
def test_order_and_blocks_do_not_matter(seed, max_bytes, collapsed):
    x, y = cloud(seed, 80), cloud(seed + 1, 70, offset=0.3)
    if collapsed:
        y[10:] = y[:1]
    generator = torch.Generator().manual_seed(seed)
    expected = neighbour_details(x, y)
    one, two = torch.randperm(80, generator=generator), torch.randperm(70, generator=generator)
    found = neighbour_details(x[one], y[two], max_bytes=max_bytes)
    assert found.metrics == expected.metrics
    for name in ("held", "precise", "authentic", "distance", "generated_radius"):
        assert torch.equal(getattr(found, name), getattr(expected, name)[two])
    for name in ("recalled", "covered", "radius", "density_radius"):
        assert torch.equal(getattr(found, name), getattr(expected, name)[one])
    assert torch.equal(one[found.nearest], expected.nearest[two])


def hard(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Sets whose float32 products alone would give wrong counts."""
    x, y = cloud(1, 150, 40), cloud(2, 130, 40)
    if kind == "far clusters":
        centres = 1e4 * cloud(3, 3, 40)
        return x + centres[torch.arange(150) % 3], y + centres[torch.arange(130) % 3]
    if kind == "tight clusters":
        centres = cloud(3, 3, 40).double()
        return centres[torch.arange(150) % 3] + 1e-6 * x, centres[torch.arange(130) % 3] + 1e-6 * y
    if kind == "nearly copies":  # below what float64 products resolve
        centres = cloud(3, 3, 40).double()
        return centres[torch.arange(150) % 3] + 1e-11 * x, centres[torch.arange(130) % 3] + 1e-11 * y
    if kind == "tiny":
        return x * 1e-30, y * 1e-30
    if kind == "huge":
        return x.double() * 1e100, y.double() * 1e100
    if kind == "in the middle":  # every generated sample in every ball
        return x, 1e-3 * y
    if kind == "one place":
        return x, y[:1].expand(130, -1).contiguous()
    return x.sign().double(), y.sign().double() * math.sqrt(2)


@pytest.mark.parametrize(
    "kind",
    ["far clusters", "tight clusters", "nearly copies", "tiny", "huge", "in the middle", "one place", "on a cube"],
)
@pytest.mark.parametrize("max_bytes", [20_000, 2**26])
def test_hard_sets_are_exact(kind, max_bytes):
    x, y = hard(kind)
    assert neighbour_metrics(x, y, max_bytes=max_bytes) == plain(x, y, 3, 5)


def test_many_pairs_in_doubt_are_decided_by_finer_products(monkeypatch):
    """Else a collapsed set would take an exact distance for each of its pairs."""
    pairs, exact_distances = [], neighbours.exact_distances
    monkeypatch.setattr(
        neighbours, "exact_distances", lambda a, b, i, j: (pairs.append(len(i)), exact_distances(a, b, i, j))[1]
    )
    x, y = hard("tight clusters")
    neighbour_metrics(x, y)
    assert sum(pairs) < 150 * 130 / 3 / 5  # float32 leaves all pairs within the three clusters in doubt
    pairs.clear()
    neighbour_metrics(*hard("nearly copies"))
    assert sum(pairs) > 150 * 130 / 4


def test_float32_products_alone_are_not_enough():
    """So that the sets above are a test: plain float32 gets one of them wrong."""
    x, y = hard("far clusters")
    x, y = x - x.mean(0), y - x.mean(0)
    quick = torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist").square()
    exact = (x.double()[:, None] - y.double()).square().sum(-1)
    radius = neighbour_radii(x, (3,))[0]
    assert ((quick <= radius[:, None]) != (exact <= radius[:, None])).any()


def test_details_against_the_definitions():
    x, y = cloud(7, 90).double(), cloud(8, 80, offset=0.4).double()
    found = neighbour_details(x, y, k=2, density_k=4)
    among, between = torch.cdist(x, x), torch.cdist(x, y)
    radius, density_radius, apart = (among.sort(dim=1).values[:, n] for n in (2, 4, 1))
    assert torch.equal(found.held, (between <= density_radius[:, None]).sum(0))
    assert torch.equal(found.precise, (between <= radius[:, None]).any(0))
    assert torch.equal(found.covered, (between <= density_radius[:, None]).any(1))
    own = torch.cdist(y, y).sort(dim=1).values[:, 2]
    assert torch.equal(found.recalled, (between <= own).any(1))
    assert torch.equal(found.nearest, between.argmin(0))
    assert torch.equal(found.authentic, between.amin(0) > apart[found.nearest])
    torch.testing.assert_close(found.distance, between.amin(0))
    torch.testing.assert_close(found.radius, radius)
    torch.testing.assert_close(found.density_radius, density_radius)
    torch.testing.assert_close(found.generated_radius, own)
    assert found.metrics == neighbour_metrics(x, y, k=2, density_k=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_features_are_left_alone(dtype):
    x, y = hard("tight clusters")
    x, y = x.to(dtype), y.to(dtype)
    before = x.clone(), y.clone()
    neighbour_details(x, y)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


def test_identical_sets():
    x = cloud(0, 200)
    found = neighbour_metrics(x, x)
    assert found.precision == found.recall == found.coverage == 1.0
    assert found.density == pytest.approx(6 / 5)  # each sample is in its own ball and, on average, in five others
    assert found.authenticity == 0.0


def test_disjoint_sets():
    found = neighbour_metrics(cloud(0, 200), cloud(1, 200, offset=100.0))
    assert found == NeighbourMetrics(0.0, 0.0, 0.0, 0.0, 1.0)


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


@pytest.mark.parametrize(("n", "m", "k"), [(40, 40, 3), (60, 30, 5), (25, 90, 2)])
def test_expected_density_and_coverage_of_one_law(n, m, k):
    """Whatever the law, for two sets drawn from it.

    Of the ``n - 1 + m`` other points around a real one, in random order of distance, the ball holds a generated one
    unless the k nearest are all real: coverage is ``1 - prod_i (n - i) / (n + m - i)``, i = 1..k (Naeem et al., eq. 9,
    whose ``n - 1`` others are these). Density: a generated point is equally likely to have any rank among a real
    one's others, so it is in the ball of the k-th with probability ``k / n``; times n balls, over k: one.
    """
    runs = 60
    found = [neighbour_metrics(cloud(2 * s, n, 3), cloud(2 * s + 1, m, 3), k=1, density_k=k) for s in range(runs)]
    coverage = torch.tensor([f.coverage for f in found], dtype=torch.float64)
    expected = 1 - math.prod((n - i) / (n + m - i) for i in range(1, k + 1))
    assert abs(coverage.mean() - expected) < 4 * coverage.std() / runs**0.5
    density = torch.tensor([f.density for f in found], dtype=torch.float64)
    assert abs(density.mean() - 1) < 4 * density.std() / runs**0.5


def test_equal_points_lie_in_balls_of_radius_zero():
    x = torch.full((10, 3), 0.1)
    assert neighbour_metrics(x, x.clone()) == NeighbourMetrics(1.0, 1.0, 2.0, 1.0, 0.0)
    assert neighbour_metrics(x, x.clone(), strict=True) == NeighbourMetrics(0.0, 0.0, 0.0, 0.0, 0.0)


def test_radii_against_cdist():
    x = cloud(6, 90).double()
    found = neighbour_radii(x, (1, 3, 5), max_bytes=9000)
    sorted_distances = torch.cdist(x, x).square().sort(dim=1).values
    assert torch.allclose(found, sorted_distances[:, [1, 3, 5]].T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.uint8])
def test_other_dtypes_are_taken_exactly(dtype):
    x, y = (40 + 10 * cloud(11, 50)).to(dtype), (40 + 10 * cloud(12, 40)).to(dtype)
    assert neighbour_metrics(x, y) == plain(x, y, 3, 5)


def test_lower_precision_elsewhere_changes_nothing():
    x, y = cloud(1, 300, 64), cloud(2, 300, 64)
    expected = neighbour_details(x, y)
    torch.set_float32_matmul_precision("medium")
    try:
        assert same(neighbour_details(x, y), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_progress_counts_every_row():
    done = []
    x = cloud(9, 50)
    x[30:] = x[:20]
    neighbour_metrics(x, cloud(10, 40), max_bytes=10_000, progress=done.append)
    assert sum(done) == 2 * 50 + 40
    assert len(done) > 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generated": torch.zeros(3, 6)}, "generated: 3 samples; at least 4"),
        ({"real": torch.zeros(5, 6)}, "real: 5 samples; at least 6"),
        ({"generated": torch.zeros(10, 7)}, "7 features"),
        ({"generated": torch.full((10, 6), torch.nan)}, "generated: some"),
        ({"generated": torch.full((10, 6), 1e200, dtype=torch.float64)}, "generated: some features are beyond"),
        ({"real": torch.zeros(10)}, r"\(N, D\)"),
        ({"real": torch.zeros(10, 0)}, r"\(N, D\)"),
        ({"k": 0}, "k: got 0"),
        ({"density_k": 1.5}, "density_k"),
        ({"strict": 1}, "strict"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        neighbour_metrics(**{"real": cloud(0, 10), "generated": cloud(1, 10), **arguments})
