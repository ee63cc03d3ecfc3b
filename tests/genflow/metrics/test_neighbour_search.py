"""The exact nearest neighbours: against whole matrices, with ties, copies and points that float32 cannot tell apart."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genflow.errors import InputError
from genflow.metrics import nearest, neighbour_blocks, neighbour_search


def cloud(seed: int, count: int, dimensions: int = 5) -> torch.Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def plain(reference: torch.Tensor, queries: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    squares = (queries.double()[:, None] - reference.double()).square().sum(-1)
    ordered = squares.sort(dim=1, stable=True)
    return ordered.values[:, :count].sqrt(), ordered.indices[:, :count]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    known=st.integers(6, 70),
    asked=st.integers(1, 50),
    count=st.integers(1, 6),
    grid=st.sampled_from([0, 1, 2]),
    max_bytes=st.sampled_from([1, 40_000, 10**7]),
)
def test_against_whole_matrices(seed, known, asked, count, grid, max_bytes):
    reference, queries = cloud(seed, known, 3), cloud(seed + 1, asked, 3)
    if grid:  # ties and copies, exact in every arithmetic
        reference, queries = (grid * reference).round() / 2, (grid * queries).round() / 2
    distances, indices = nearest(reference, queries, count=count, max_bytes=max_bytes)
    expected = plain(reference, queries, count)
    assert torch.equal(indices, expected[1])
    torch.testing.assert_close(distances, expected[0], rtol=1e-14, atol=0)


@pytest.mark.parametrize("spread", [1e-3, 1e-6, 1e-9, 0.0])
@pytest.mark.parametrize("max_bytes", [20_000, 10**7])
def test_clusters_that_products_cannot_resolve(spread, max_bytes):
    centres = 10 * cloud(1, 3, 20).double()
    reference = centres[torch.arange(120) % 3] + spread * cloud(2, 120, 20)
    queries = centres[torch.arange(40) % 3] + spread * cloud(3, 40, 20)
    distances, indices = nearest(reference, queries, count=4, max_bytes=max_bytes)
    expected = plain(reference, queries, 4)
    assert torch.equal(indices, expected[1])
    torch.testing.assert_close(distances, expected[0], rtol=1e-13, atol=0)


def test_each_precision_is_used_only_where_the_one_before_leaves_doubt(monkeypatch):
    asked = {"products": 0, "all": 0}
    again, from_all = neighbour_search._again, neighbour_search._from_all
    monkeypatch.setattr(
        neighbour_search, "_again", lambda a, *r: (asked.update(products=asked["products"] + len(a)), again(a, *r))[1]
    )
    monkeypatch.setattr(
        neighbour_search, "_from_all", lambda a, *r: (asked.update(all=asked["all"] + len(a)), from_all(a, *r))[1]
    )
    nearest(cloud(1, 400, 64), cloud(2, 300, 64), count=3)
    assert asked == {"products": 0, "all": 0}
    centres = cloud(3, 2, 64).double()
    clusters = centres[torch.arange(300) % 2] + 1e-6 * cloud(1, 300, 64)
    nearest(clusters, clusters[:50] + 1e-6 * cloud(2, 50, 64), count=3)
    assert asked == {"products": 50, "all": 0}
    clusters = centres[torch.arange(300) % 2] + 1e-11 * cloud(1, 300, 64)
    nearest(clusters, clusters[:50] + 1e-11 * cloud(2, 50, 64), count=3)
    assert asked["all"] == 50


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    dimensions=st.integers(1, 300),
    scale=st.sampled_from([1e-18, 1e-3, 1.0, 1e18]),
    offset=st.sampled_from([0.0, 1.0, 1e3]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    of=st.sampled_from([torch.float32, torch.float64]),
)
def test_quick_distances_are_within_their_bound(seed, dimensions, scale, offset, dtype, of):
    """The proof that counts are exact rests on this."""
    first = scale * (cloud(seed, 30, dimensions).double() + offset * cloud(seed + 1, 30, 1).double().sign())
    second = scale * cloud(seed + 2, 20, dimensions).double()
    first, second = first.to(of), second.to(of)
    points = [neighbour_blocks.Points.of("x", part, 1) for part in (first, second)]
    frame = neighbour_blocks.Frame.around(*points)
    block = neighbour_blocks.Tiles(first, second, frame, dtype)
    quick = block.tile(slice(0, 30), slice(0, 20)).double()
    i, j = torch.cartesian_prod(torch.arange(30), torch.arange(20)).T
    exact = neighbour_blocks.exact_distances(first, second, i, j).view(30, 20) * frame.scale**2
    bound = block.bounds.row_slack[:, None] + block.bounds.column_slack
    assert ((quick - exact).abs() <= bound).all()
    assert (bound <= 8 * (dimensions + 40) * torch.finfo(dtype).eps).all()  # and it is a bound worth having


def test_exact_distances_depend_on_the_pair_alone():
    x, y = cloud(1, 50, 700), cloud(2, 40, 700)
    i, j = torch.randint(50, (5000,)), torch.randint(40, (5000,))
    found = neighbour_blocks.exact_distances(x, y, i, j)
    assert torch.equal(neighbour_blocks.exact_distances(y, x, j, i), found)
    for one in (0, 17, 4999):
        assert neighbour_blocks.exact_distances(x, y, i[one : one + 1], j[one : one + 1]) == found[one]
    assert neighbour_blocks.exact_distances(x, y, i[:0], j[:0]).shape == (0,)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 9),
    columns=st.integers(1, 40),
    share=st.floats(0, 1),
    kind=st.integers(0, 2),
)
def test_places_of_true_entries(seed, rows, columns, share, kind):
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < share
    if kind == 1:
        mask = mask.T.contiguous().T  # lies in memory column by column
    elif kind == 2:
        mask = torch.cat([mask, mask], dim=1)[:, :columns]  # with gaps
    i, j = neighbour_blocks.true_places(mask)
    expected = mask.nonzero()
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == set(map(tuple, expected.tolist()))
    assert len(i) == len(expected)


def test_distinct_rows():
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0], [-0.0, 1.0], [2.0, 3.0], [5.0, 5.0]])
    points = neighbour_blocks.Points.of("x", x, 1)
    assert points.first.tolist() == [0, 1, 4]
    assert points.weights.tolist() == [2, 2, 1]
    assert points.inverse.tolist() == [0, 1, 0, 1, 2]
    assert torch.equal(points.values[points.inverse], x)


def test_rows_whose_hashes_agree_are_compared(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda size, generator, dtype: torch.zeros(size, dtype=dtype))
    x = torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]])  # with equal factors these have one hash
    assert neighbour_blocks.Points.of("x", x, 1).inverse.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count: got 0"),
        ({"count": 11}, "reference: 10 samples; at least 11"),
        ({"queries": torch.zeros(3, 4)}, "queries: 4 features a sample; reference has 5"),
        ({"queries": torch.zeros(0, 5)}, "queries: 0 samples"),
        ({"reference": torch.full((10, 5), torch.inf)}, "reference: some features are NaN"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        nearest(**{"reference": cloud(0, 10), "queries": cloud(1, 10), **arguments})
