"""mu and sigma as pytorch-fid, clean-fid, EDM and ADM keep them: read, written, and refused where they cannot be."""

from pathlib import Path

import numpy as np
import pytest
import torch
from genflow_tiny_extraction import TinyExtractor, tiny_source

from genflow.errors import InputError
from genflow.evaluate.extraction import extract
from genflow.evaluate.feature_set import check_comparable, save_feature_set
from genflow.evaluate.statistics_files import holds_only_statistics, load_statistics, save_statistics_npz
from genflow.metrics import FeatureStatistics, frechet_distance, frechet_distance_from_statistics


@pytest.fixture
def moments() -> tuple[np.ndarray, np.ndarray]:
    features = np.random.default_rng(0).normal(size=(40, 6))
    return features.mean(0), np.cov(features, rowvar=False)


@pytest.mark.parametrize("tool", ["pytorch-fid", "clean-fid", "edm", "adm"])
def test_files_of_other_tools(moments, tmp_path, tool) -> None:
    mu, sigma = moments
    path = tmp_path / "stats.npz"
    if tool == "clean-fid":
        np.savez_compressed(path, mu=mu, sigma=sigma)
    elif tool == "adm":
        images, spatial = np.zeros((3, 4, 4, 3), np.uint8), np.eye(9)
        np.savez(path, arr_0=images, mu=mu, sigma=sigma, mu_s=np.zeros(9), sigma_s=spatial)
    else:
        np.savez(path, mu=mu, sigma=sigma)
    found = load_statistics(path)
    assert found.statistics.count is None
    np.testing.assert_array_equal(found.statistics.mean, mu)
    np.testing.assert_allclose(found.statistics.covariance, sigma, rtol=1e-15)
    assert found.protocol == {"source": str(path)}
    assert found.features is None
    assert holds_only_statistics(path) == (tool != "adm")
    if tool == "adm":
        assert torch.equal(load_statistics(path, spatial=True).statistics.covariance, torch.eye(9, dtype=torch.float64))
    else:
        with pytest.raises(InputError, match="has no mu_s and no sigma_s; it holds mu, sigma"):
            load_statistics(path, spatial=True)
    generated = FeatureStatistics.from_features(torch.randn(30, 6))
    assert frechet_distance_from_statistics(generated, found.statistics) == pytest.approx(
        frechet_distance(generated.mean, generated.covariance, torch.tensor(mu), torch.tensor(sigma)), rel=1e-12
    )


def test_float32_is_read_and_made_symmetric(moments, tmp_path) -> None:
    mu, sigma = (array.astype(np.float32) for array in moments)
    sigma[0, 1] *= 1 + 3e-7
    np.savez(tmp_path / "s.npz", mu=mu, sigma=sigma)
    covariance = load_statistics(tmp_path / "s.npz").statistics.covariance
    assert covariance.dtype == torch.float64
    assert torch.equal(covariance, covariance.T)
    np.testing.assert_allclose(covariance, sigma, rtol=1e-6)


def test_what_is_written_is_what_pytorch_fid_reads(tmp_path) -> None:
    found = extract(tiny_source(20), TinyExtractor(), cache=False)
    path = tmp_path / "out.npz"
    save_statistics_npz(path, found)
    with np.load(path) as file:  # numpy's default refuses pickles
        mu, sigma = file["mu"][:], file["sigma"][:]
    assert (mu.dtype, sigma.dtype) == (np.float64, np.float64)
    np.testing.assert_allclose(mu, found.features.double().mean(0), rtol=1e-13)
    np.testing.assert_allclose(sigma, np.cov(found.features.double().numpy(), rowvar=False), rtol=1e-12)
    back = load_statistics(path)
    assert back.statistics.count == 20
    assert torch.equal(back.statistics.covariance, found.statistics.covariance)
    assert back.protocol == {**found.protocol, "source": str(path)}
    assert check_comparable(found, back) == []  # it says which network made it
    assert holds_only_statistics(path)
    first = path.read_bytes()
    save_statistics_npz(path, found)
    assert path.read_bytes() == first
    with pytest.raises(InputError, match=r"does not end in \.npz"):
        save_statistics_npz(tmp_path / "out", found)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.npz"]


def test_our_own_files_give_their_statistics(tmp_path) -> None:
    found = extract(tiny_source(20), TinyExtractor(), cache=False)
    save_feature_set(tmp_path / "f.safetensors", found)
    loaded = load_statistics(tmp_path / "f.safetensors")
    assert loaded.features is None
    assert loaded.protocol == found.protocol
    found.statistics.save(tmp_path / "s.safetensors")
    loaded = load_statistics(tmp_path / "s.safetensors")
    assert torch.equal(loaded.statistics.covariance, found.statistics.covariance)
    assert loaded.protocol == {"source": str(tmp_path / "s.safetensors")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mu": None}, "has no mu; it holds sigma"),
        ({"sigma": None}, "has no sigma; it holds mu"),
        ({"mu": np.zeros((1, 6))}, r"mu \(1, 6\) and sigma \(6, 6\); allowed: \(D,\) and \(D, D\)"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"mu \(0,\) and sigma"),
        ({"sigma": np.eye(5)}, r"sigma \(5, 5\)"),
        ({"sigma": np.ones((6, 5))}, r"sigma \(6, 5\)"),
        ({"sigma": np.triu(np.ones((6, 6)))}, "not symmetric"),
        ({"sigma": np.full((6, 6), np.nan)}, "NaN"),
        ({"mu": np.full(6, np.inf)}, "NaN or infinite"),
        ({"sigma": -np.eye(6)}, "a variance is -1"),
        ({"mu": np.zeros(6, np.int64)}, "mu of int64; allowed: floating point"),
        ({"mu": np.array(["a"] * 6)}, "allowed: floating point"),
        ({"mu": np.array([{}] * 6, dtype=object)}, "allow_pickle=False"),
    ],
)
def test_what_cannot_be_a_gaussian_is_refused_by_name(moments, tmp_path, change, message) -> None:
    arrays = {"mu": moments[0], "sigma": moments[1]} | change
    np.savez(tmp_path / "bad.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(InputError, match=rf"bad\.npz.*{message}"):
        load_statistics(tmp_path / "bad.npz")


def test_files_that_are_none_are_refused_by_name(moments, tmp_path) -> None:
    def refused(path: Path, message: str) -> None:
        with pytest.raises(InputError, match=message):
            load_statistics(path)
        assert not holds_only_statistics(path)

    refused(tmp_path / "a.npz", r"a\.npz does not exist")
    (tmp_path / "a.npz").write_bytes(b"no zip")
    refused(tmp_path / "a.npz", r"cannot read .*a\.npz")
    np.savez(tmp_path / "a.npz", mu=moments[0], sigma=moments[1])
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-40])
    refused(tmp_path / "a.npz", r"cannot read .*a\.npz")
    (tmp_path / "a.npz").write_bytes(b"")
    refused(tmp_path / "a.npz", r"cannot read .*a\.npz")
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    refused(tmp_path / "array.npz", r"cannot read .*array\.npz")
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04N.")
    refused(tmp_path / "a.pkl", "is a pickle, which genflow never opens")
    (tmp_path / "a.safetensors").write_bytes(b"{}")
    refused(tmp_path / "a.safetensors", r"cannot read .*a\.safetensors")
