"""Running statistics: numpy's figures, whatever the batches, and files that say what is wrong with them."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genflow.errors import InputError
from genflow.metrics import FeatureStatistics


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
    assert torch.allclose(loaded.covariance, statistics.covariance, rtol=1e-15)
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
