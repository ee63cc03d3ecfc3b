"""Files of features: what goes in comes out, damage and foreign files are named; what can be compared with what."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from genflow_tiny_extraction import TinyExtractor, tiny_source
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from genflow.errors import InputError
from genflow.evaluate.extraction import extract
from genflow.evaluate.feature_set import (
    FeatureSet,
    check_comparable,
    is_feature_set,
    load_feature_set,
    save_feature_set,
)
from genflow.metrics import FeatureStatistics


@pytest.fixture(scope="module")
def features() -> FeatureSet:
    labels = torch.arange(12).numpy() % 2
    return extract(tiny_source(12, labels=labels, own_names=("even", "odd")), TinyExtractor(), cache=False)


def check_same(first: FeatureSet, second: FeatureSet) -> None:
    assert first.protocol == second.protocol
    assert first.statistics.count == second.statistics.count
    assert torch.equal(first.statistics.mean, second.statistics.mean)
    assert torch.equal(first.statistics.covariance, second.statistics.covariance)
    for name in ("features", "labels", "predicted", "logits"):
        one, two = getattr(first, name), getattr(second, name)
        assert (one is None) == (two is None), name
        assert one is None or (one.dtype == two.dtype and torch.equal(one, two)), name
    assert (first.names, first.class_names) == (second.names, second.class_names)
    assert first.images.keys() == second.images.keys()
    assert all(torch.equal(first.images[name], second.images[name]) for name in first.images)


def test_what_goes_in_comes_out(features, tmp_path) -> None:
    names = ("a/\u00e9.png", "b\udc80.png", *features.names[2:])  # a name that is no UTF-8 too
    features = replace(features, names=names)
    assert features.class_names == ("even", "odd")
    save_feature_set(tmp_path / "f.safetensors", features)
    check_same(features, load_feature_set(tmp_path / "f.safetensors"))
    save_feature_set(tmp_path / "g.safetensors", load_feature_set(tmp_path / "f.safetensors"))
    assert (tmp_path / "f.safetensors").read_bytes() == (tmp_path / "g.safetensors").read_bytes()
    with safe_open(tmp_path / "f.safetensors", "pt") as file:
        assert json.loads(file.metadata()["genflow"])["protocol"] == features.protocol
    assert is_feature_set(tmp_path / "f.safetensors")


def test_what_is_not_known_stays_so(features, tmp_path) -> None:
    path = tmp_path / "f.safetensors"
    save_feature_set(path, features.only_statistics())
    found = load_feature_set(path)
    check_same(found, features.only_statistics())
    assert found.features is None
    unknown = FeatureStatistics.from_moments(features.statistics.mean, features.statistics.covariance)
    save_feature_set(path, FeatureSet(unknown, {}))
    assert load_feature_set(path).statistics.count is None


def test_statistics_alone_are_read(features, tmp_path) -> None:
    save_feature_set(tmp_path / "f.safetensors", features)
    check_same(load_feature_set(tmp_path / "f.safetensors", only_statistics=True), features.only_statistics())


def test_half_keeps_the_statistics_of_the_whole(features, tmp_path) -> None:
    third = replace(features, features=features.features / 3)
    save_feature_set(tmp_path / "f.safetensors", third)
    save_feature_set(tmp_path / "h.safetensors", third, half=True)
    found = load_feature_set(tmp_path / "h.safetensors")
    assert found.features.dtype == torch.float32
    assert torch.equal(found.features, third.features.half().float())
    assert torch.equal(found.statistics.covariance, features.statistics.covariance)
    with safe_open(tmp_path / "h.safetensors", "pt") as file:
        assert file.get_tensor("features").dtype == torch.float16
    large = replace(features, features=features.features * 1e6)
    with pytest.raises(InputError, match="half: features reach .*float16 ends at 65504"):
        save_feature_set(tmp_path / "l.safetensors", large, half=True)
    assert not (tmp_path / "l.safetensors").exists()


@settings(deadline=None, max_examples=20)
@given(count=st.integers(2, 9), dimensions=st.integers(1, 5), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_statistics_survive_any_number_of_trips(tmp_path_factory, count, dimensions, scale, seed) -> None:
    path = tmp_path_factory.mktemp("f") / "f.safetensors"
    values = scale * torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))
    first = FeatureSet(FeatureStatistics.from_features(values), {"x": scale}, features=values)
    found = first
    for _ in range(3):
        save_feature_set(path, found)
        found = load_feature_set(path)
    check_same(first, found)


def test_damaged_and_foreign_files_are_named(features, tmp_path) -> None:
    path = tmp_path / "f.safetensors"
    with pytest.raises(InputError, match=r"f\.safetensors does not exist"):
        load_feature_set(path)
    save_feature_set(path, features)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(InputError, match=r"cannot read .*f\.safetensors"):
        load_feature_set(path)
    path.write_bytes(b"{}")
    with pytest.raises(InputError, match=r"cannot read .*f\.safetensors"):
        load_feature_set(path)
    assert not is_feature_set(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(InputError, match="is no file of features; `genflow evaluate features` writes them"):
        load_feature_set(path)
    assert not is_feature_set(path)


def test_a_later_version_and_contradictions_are_refused(features, tmp_path) -> None:
    def rewritten(drop: str = "", **changes: object) -> Path:
        save_feature_set(tmp_path / "f.safetensors", features)
        with safe_open(tmp_path / "f.safetensors", "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys() if name != drop}  # noqa: SIM118
            header = json.loads(file.metadata()["genflow"])
        tensors |= {name: value for name, value in changes.items() if isinstance(value, torch.Tensor)}
        header |= {name: value for name, value in changes.items() if not isinstance(value, torch.Tensor)}
        save_file(tensors, tmp_path / "g.safetensors", {"genflow": json.dumps(header)})
        return tmp_path / "g.safetensors"

    check_same(features, load_feature_set(rewritten()))
    with pytest.raises(InputError, match="has version 2; this genflow reads 1"):
        load_feature_set(rewritten(version=2))
    with pytest.raises(InputError, match="is no file of features"):
        load_feature_set(rewritten(kind="something else"))
    for changes, message in (
        ({"drop": "mean"}, "is damaged"),
        ({"mean": torch.zeros(3, dtype=torch.float64)}, "is damaged"),
        ({"features": torch.zeros(11, 5)}, r"is damaged \(features of \(11, 5\), statistics of 12x5\)"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"is damaged \(3 labels for 12 samples\)"),
        ({"names": torch.zeros(4, dtype=torch.uint8)}, "is damaged"),
    ):
        with pytest.raises(InputError, match=message):
            load_feature_set(rewritten(**changes))


def with_protocol(given_set: FeatureSet, **changes: object) -> FeatureSet:
    return replace(given_set, protocol={**given_set.protocol, **changes})


def test_the_same_processing_can_be_compared(features) -> None:
    other = with_protocol(
        features,
        source="b",
        count=3,
        seed=4,
        skipped=["x"],
        notes={"y": 1},
        content_sha256="z",
        sampling={"model": "m"},
    )
    assert check_comparable(features, other) == []
    assert check_comparable(features, with_protocol(features, features="the same weights by another name")) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"features": "clip", "features_sha256": "1" * 64},
            r"tiny has features by tiny \(000000000000\), other has features by clip \(111111111111\)",
        ),
        ({"resize": "clean"}, "tiny has resize mode none, other has resize mode clean"),
        ({"resize": "clean", "features_sha256": "1" * 64}, "features by"),
        ({"scaling": "x / 255"}, None),  # not recorded in the first
    ],
)
def test_other_networks_and_resize_modes_are_refused(features, changes, message) -> None:
    other = with_protocol(features, source="other", **changes)
    if message is None:
        assert check_comparable(features, other) == []
        return
    with pytest.raises(InputError, match=message):
        check_comparable(features, other)
    with pytest.raises(InputError, match="allowed: the same for both"):
        check_comparable(other, features)


def test_anything_else_that_both_record_and_that_differs_is_refused(features) -> None:
    first, second = (with_protocol(features, layer=layer) for layer in (64, 2048))
    with pytest.raises(InputError, match="tiny has layer 64, tiny has layer 2048"):
        check_comparable(first, second)


def test_other_dimensions_are_refused_even_without_a_protocol(features) -> None:
    narrow = FeatureSet(FeatureStatistics.from_features(torch.randn(9, 3)), {"source": "stats.npz"})
    with pytest.raises(InputError, match=r"tiny has dimensions 5, stats\.npz has dimensions 3"):
        check_comparable(features, narrow)


def test_number_formats_and_unknown_networks_give_remarks(features) -> None:
    (remark,) = check_comparable(features, with_protocol(features, source="b", dtype="bfloat16"))
    assert "tiny were computed in float32, those of b in bfloat16" in remark
    foreign = FeatureSet(features.statistics, {"source": "stats.npz"})
    for pair in ((features, foreign), (foreign, features)):
        (remark,) = check_comparable(*pair)
        assert remark == "stats.npz does not say which network its features are of; tiny, resize none is taken on trust"
    assert len(check_comparable(foreign, foreign)) == 2
