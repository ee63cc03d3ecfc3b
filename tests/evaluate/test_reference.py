"""References load through one door, in the format of today and in the first one, which the shipped one has."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from genflow.errors import InputError
from genflow.evaluate import load_reference, save_reference
from genflow.evaluate.extraction import extract
from genflow.evaluate.feature_set import check_comparable, save_feature_set
from genflow.evaluate.reference import ASSETS, is_reference
from genflow.evaluate.sources import open_source
from genflow.metrics import ClassifierConfig, FeatureExtractor, FeatureStatistics, ImageClassifier, save_classifier

SHIPPED = ASSETS / "fashion-mnist-reference"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a classifier, ``net``, and features by it, ``ref``."""
    home = tmp_path_factory.mktemp("home")
    torch.manual_seed(0)
    config = ClassifierConfig(sample_size=8, num_classes=2, stages=((4, 1), (6, 1)), class_names=("dark", "light"))
    save_classifier(ImageClassifier(config), home / "net")
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), np.uint8)
    np.savez(home / "data.npz", arr_0=images, labels=np.arange(30) % 2)
    extractor = FeatureExtractor.from_folder(home / "net", batch_size=10)
    save_reference(home / "ref", extract(open_source(home / "data.npz"), extractor, cache=False))
    return home


def test_what_was_saved_is_loaded_with_its_network(made) -> None:
    reference = load_reference(made / "ref", batch_size=10)
    found = extract(open_source(made / "data.npz"), reference.extractor, cache=False)
    assert reference.extractor.batch_size == 10
    assert (reference.name, reference.description) == ("ref", str(made / "data.npz"))
    assert torch.equal(reference.features, found.features.half().float())
    assert torch.equal(reference.labels, torch.arange(30) % 2)
    assert torch.equal(reference.statistics.covariance, found.statistics.covariance)
    assert reference.feature_set.class_names == ("dark", "light")
    assert check_comparable(reference.feature_set, found) == []
    assert is_reference(made / "ref")
    assert not is_reference(made / "net")
    assert [path.name for path in (made / "ref").iterdir()] == ["features.safetensors"]


def test_the_first_format_gives_the_same(made, tmp_path) -> None:
    reference = load_reference(made / "ref")
    shutil.copytree(made / "net", tmp_path / "net")
    (tmp_path / "old").mkdir()
    header = {"data": "numbers", "classifier": "net", "classifier_sha256": reference.extractor.sha256}
    tensors = {"features": reference.features.half(), "labels": reference.labels}
    save_file(tensors, tmp_path / "old" / "features.safetensors", header)
    reference.statistics.save(tmp_path / "old" / "statistics.safetensors", header)
    old = load_reference(tmp_path / "old")
    assert (old.name, old.description) == ("old", "numbers")
    assert torch.equal(old.features, reference.features)
    assert torch.equal(old.labels, reference.labels)
    assert torch.equal(old.statistics.covariance, reference.statistics.covariance)
    assert old.feature_set.class_names == reference.feature_set.class_names
    assert check_comparable(old.feature_set, reference.feature_set) == []
    save_file({"features": tensors["features"][:5], "labels": tensors["labels"]}, tmp_path / "short", header)
    (tmp_path / "short").replace(tmp_path / "old" / "features.safetensors")
    with pytest.raises(InputError, match=r"holds \(5, 6\), the statistics are of 30"):
        load_reference(tmp_path / "old")


def test_the_shipped_one_is_read_as_it_lies_there() -> None:
    reference = load_reference("fashion-mnist")
    with safe_open(SHIPPED / "features.safetensors", "pt") as file:
        assert torch.equal(reference.features, file.get_tensor("features").float())
        assert torch.equal(reference.labels, file.get_tensor("labels"))
    with safe_open(SHIPPED / "statistics.safetensors", "pt") as file:
        assert torch.equal(reference.statistics.covariance, file.get_tensor("covariance"))
        assert torch.equal(reference.statistics.mean, file.get_tensor("mean"))
    assert reference.statistics.count == 10_000
    assert reference.description == "fashion-mnist:test"
    assert reference.feature_set.class_names[9] == "ankle-boot"
    assert is_reference("fashion-mnist")
    other = FeatureExtractor.from_folder(ASSETS / "fashion-mnist-classifier", resize="clean")
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 28, 28), np.uint8)
    shape = torch.from_numpy(images)
    resized = reference.feature_set.__class__(
        FeatureStatistics.from_features(other(shape.float()).values), {**other.describe(), "source": "resized"}
    )
    with pytest.raises(InputError, match="fashion-mnist:test has resize mode none, resized has resize mode clean"):
        check_comparable(reference.feature_set, resized)


def test_what_is_wrong_is_named(made, tmp_path) -> None:
    with pytest.raises(InputError, match=r"fashion-mnits.*did you mean 'fashion-mnist'"):
        load_reference("fashion-mnits")
    with pytest.raises(InputError, match=r"features\.safetensors does not exist"):
        load_reference(tmp_path)
    shutil.copytree(made / "ref", tmp_path / "ref")
    with pytest.raises(InputError, match="names the classifier 'net', which is neither beside it nor shipped"):
        load_reference(tmp_path / "ref")
    torch.manual_seed(1)
    save_classifier(ImageClassifier(load_reference(made / "ref").extractor.network.config), tmp_path / "net")
    with pytest.raises(InputError, match="net is not the classifier that made"):
        load_reference(tmp_path / "ref")
    file = tmp_path / "ref" / "features.safetensors"
    save_feature_set(file, load_reference(made / "ref").feature_set.only_statistics())
    shutil.copytree(made / "net", tmp_path / "net", dirs_exist_ok=True)
    with pytest.raises(InputError, match="holds statistics alone"):
        load_reference(tmp_path / "ref")
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"cannot read .*features\.safetensors"):
        load_reference(tmp_path / "ref")
