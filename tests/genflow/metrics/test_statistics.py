"""Running statistics: numpy's figures, whatever the batches, and files that say what is wrong with them."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from genflow.errors import InputError
from genflow.metrics import FeatureStatistics
from genflow.metrics import statistics as statistics_module


def data(seed: int, count: int, dimensions: int = 5, offset: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dimensions, generator=generator, dtype=torch.float64) + offset


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 60), max_size=5))
def test_any_batches_and_merges_give_one_pass(seed, cuts):
    x = data(seed, 60)
    edges = [0, *sorted(cuts), 60]
    parts = [x[a:b] for a, b in itertools.pairwise(edges)]
    updated, merged = FeatureStatistics(5), FeatureStatistics(5)
    for part in parts:
        updated.update(part)
    for part in reversed(parts):
        merged.merge(FeatureStatistics(5).update(part))
    for statistics in (updated, merged):
        assert statistics.count == 60
        np.testing.assert_allclose(statistics.mean, x.numpy().mean(0), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(statistics.covariance, np.cov(x.numpy(), rowvar=False), rtol=1e-11, atol=1e-13)


def test_a_large_mean_costs_no_precision():
    x = data(0, 500, offset=1e7)
    statistics = FeatureStatistics(5)
    for batch in x.split(7):
        statistics.update(batch)
    np.testing.assert_allclose(statistics.covariance, np.cov(x.numpy(), rowvar=False), rtol=1e-7, atol=1e-8)


def test_save_and_load_round_trip(tmp_path):
    statistics = FeatureStatistics.from_features(data(1, 20))
    statistics.save(tmp_path / "s.safetensors", {"data": "test"})
    loaded = FeatureStatistics.load(tmp_path / "s.safetensors")
    assert loaded.count == 20
    assert torch.equal(loaded.mean, statistics.mean)
    assert torch.equal(loaded.covariance, statistics.covariance)
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "s.safetensors"
    FeatureStatistics.from_features(data(2, 20)).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"s\.safetensors"):
        FeatureStatistics.load(path)
    with pytest.raises(InputError, match="does not exist"):
        FeatureStatistics.load(tmp_path / "none.safetensors")


def test_bad_batches_are_refused():
    statistics = FeatureStatistics(5)
    with pytest.raises(InputError, match="0 samples"):
        _ = statistics.mean
    with pytest.raises(InputError, match=r"\(N, 5\)"):
        statistics.update(torch.zeros(3, 4))
    with pytest.raises(InputError, match="NaN"):
        statistics.update(torch.full((3, 5), torch.nan))
    with pytest.raises(InputError, match="dimensions"):
        statistics.merge(FeatureStatistics(4))
    with pytest.raises(InputError, match="dimensions"):
        FeatureStatistics(0)
    statistics.update(torch.zeros(1, 5))
    with pytest.raises(InputError, match="at least 2"):
        _ = statistics.covariance


def test_statistics_of_a_file_without_a_count(tmp_path):
    """As pytorch-fid, clean-fid and ADM write them: the moments are known, and that is all."""
    x = data(3, 40)
    known = FeatureStatistics.from_moments(x.mean(0), x.T.cov(), 40)
    unknown = FeatureStatistics.from_moments(x.numpy().mean(0), np.cov(x.numpy(), rowvar=False))
    assert (known.count, unknown.count) == (40, None)
    for statistics in (known, unknown):
        np.testing.assert_allclose(statistics.mean, x.mean(0), rtol=1e-15)
        np.testing.assert_allclose(statistics.covariance, x.T.cov(), rtol=1e-15)
    more = data(4, 10)
    both = FeatureStatistics.from_features(torch.cat([x, more])).covariance
    np.testing.assert_allclose(known.update(more).covariance, both, rtol=1e-11)
    for change in (
        lambda: unknown.update(more),
        lambda: unknown.merge(known),
        lambda: FeatureStatistics(5).merge(unknown),
        unknown.packed,
    ):
        with pytest.raises(InputError, match="unknown number of samples"):
            change()
    unknown.save(tmp_path / "s.safetensors")
    loaded = FeatureStatistics.load(tmp_path / "s.safetensors")
    assert loaded.count is None
    assert torch.equal(loaded.mean, unknown.mean)
    assert torch.equal(loaded.covariance, unknown.covariance)


@pytest.mark.parametrize(
    ("mean", "covariance", "count", "message"),
    [
        (torch.zeros(3, 1), torch.eye(3), None, "mean: got shape"),
        (torch.zeros(0), torch.zeros(0, 0), None, "mean: got shape"),
        (torch.zeros(3), torch.eye(4), None, r"covariance: got shape \(4, 4\)"),
        (torch.full((3,), torch.nan), torch.eye(3), None, "mean: some entries are NaN"),
        (torch.zeros(3), torch.full((3, 3), torch.inf), None, "covariance: some entries"),
        (torch.zeros(3), torch.arange(9.0).reshape(3, 3), None, "not symmetric"),
        (torch.zeros(3), torch.diag(torch.tensor([1.0, -1.0, 1.0])), None, "a variance is -1"),
        (torch.zeros(3), torch.eye(3), 1, "count: got 1"),
        (torch.zeros(3), torch.eye(3), 2.5, "count: got 2.5"),
    ],
)
def test_bad_moments_are_named(mean, covariance, count, message):
    with pytest.raises(InputError, match=message):
        FeatureStatistics.from_moments(mean, covariance, count)


def test_damaged_moments_in_a_file_are_named(tmp_path):
    save_file({"mean": torch.zeros(3), "covariance": torch.eye(4)}, tmp_path / "s.safetensors")
    with pytest.raises(InputError, match=r"s\.safetensors: covariance: got shape"):
        FeatureStatistics.load(tmp_path / "s.safetensors")


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    parts=st.integers(1, 6),
    offset=st.floats(-1e4, 1e4),
    order=st.randoms(use_true_random=False),
)
def test_packed_parts_merge_in_any_order(seed, parts, offset, order):
    """What processes send one another: any share each, some with nothing, merged in any order."""
    x = data(seed, 50, offset=offset)
    owner = torch.randint(parts, (50,), generator=torch.Generator().manual_seed(seed))
    packed = [FeatureStatistics(5).update(x[owner == part]).packed() for part in range(parts)]
    order.shuffle(packed)
    merged = FeatureStatistics(5)
    for part in packed:
        merged.merge(FeatureStatistics.from_packed(part))
    whole = FeatureStatistics.from_features(x)
    assert merged.count == 50
    scale = 1 + abs(offset)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-14, atol=1e-14 * scale)
    np.testing.assert_allclose(merged.covariance, whole.covariance, rtol=1e-9, atol=1e-12 * scale)


def test_many_samples_are_folded_in_parts(monkeypatch):
    x = data(7, 100, offset=3.0)
    whole = FeatureStatistics.from_features(x)
    monkeypatch.setattr(statistics_module, "ROWS", 9)
    parts = FeatureStatistics.from_features(x)
    assert parts.count == whole.count == 100
    np.testing.assert_allclose(parts.covariance, whole.covariance, rtol=1e-12)
    assert FeatureStatistics.from_features(x[:0]).count == 0


def test_packed_statistics_share_their_storage():
    statistics = FeatureStatistics(5).update(data(5, 8))
    again = FeatureStatistics.from_packed(statistics.packed())
    again.update(data(6, 4))
    assert int(statistics.packed()[1, 0]) == again.count == 12
    assert torch.equal(statistics.packed(), again.packed())
