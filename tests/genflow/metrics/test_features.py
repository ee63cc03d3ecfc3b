"""The classifier's files, the extractor's batches and the hash that ties features to a network."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from genflow.errors import InputError
from genflow.metrics import (
    ClassifierConfig,
    FeatureExtractor,
    ImageClassifier,
    class_accuracy,
    content_hash,
    load_classifier,
    save_classifier,
)

SMALL = ClassifierConfig(
    sample_size=8, in_channels=1, num_classes=3, stages=((8, 1), (12, 1)), class_names=("a", "b", "c")
)


@pytest.fixture
def network() -> ImageClassifier:
    torch.manual_seed(0)
    network = ImageClassifier(SMALL)
    network(torch.randn(50, 1, 8, 8))  # running statistics other than those of a new network
    return network.eval()


def images(count: int, size: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_save_and_load_keep_the_network_to_half_precision(network, tmp_path):
    folder = tmp_path / "classifier"
    save_classifier(network, folder)
    loaded = load_classifier(folder)
    x = torch.randn(4, 1, 8, 8)
    assert loaded.config == SMALL
    assert torch.allclose(loaded(x), network(x), atol=5e-3)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_saving_again_keeps_the_card_and_gives_the_same_hash(network, tmp_path):
    save_classifier(network, tmp_path / "c")
    (tmp_path / "c" / "card.md").write_text("a card")
    first = load_classifier(tmp_path / "c")
    save_classifier(first, tmp_path / "c")
    assert (tmp_path / "c" / "card.md").read_text() == "a card"
    assert content_hash(load_classifier(tmp_path / "c")) == content_hash(first)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_the_hash_sees_one_weight(network):
    before = content_hash(network)
    assert before == content_hash(network)
    with torch.no_grad():
        network.head.bias[0] += 1e-6
    assert content_hash(network) != before


def test_features_depend_on_neither_batch_nor_company(network):
    x = images(11)
    whole = FeatureExtractor(network, "n", batch_size=4)(x)
    assert whole.values.shape == (11, 12)
    assert whole.values.dtype == torch.float32
    alone = FeatureExtractor(network, "n", batch_size=4)(x[6:7])
    assert torch.allclose(alone.values[0], whole.values[6], atol=1e-6)
    wide = FeatureExtractor(network, "n", batch_size=32)(x)
    assert torch.allclose(wide.values, whole.values, atol=1e-5)
    assert torch.equal(wide.predicted, network(x.float() / 127.5 - 1).argmax(1))


def test_progress_counts_images(network):
    done = []
    FeatureExtractor(network, "n", batch_size=4)(images(11), done.append)
    assert done == [4, 4, 3]


def test_images_of_another_size_or_dtype_are_refused(network):
    extractor = FeatureExtractor(network, "net", batch_size=4)
    with pytest.raises(InputError, match="1x9x9; net takes"):
        extractor(images(3, 9))
    with pytest.raises(InputError, match="float32"):
        extractor(images(3).float())


def test_files_missing_or_damaged_are_named(network, tmp_path):
    with pytest.raises(InputError, match=r"config\.json does not exist"):
        load_classifier(tmp_path / "none")
    folder = tmp_path / "c"
    save_classifier(network, folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    good_weights, good_config = weights.read_bytes(), config.read_text()

    weights.write_bytes(good_weights[:200])
    with pytest.raises(InputError, match=r"cannot read .*model\.safetensors"):
        load_classifier(folder)
    weights.write_bytes(good_weights)

    for broken in ("{", json.dumps({"stages": 3}), json.dumps({**json.loads(good_config), "stagse": 1})):
        config.write_text(broken)
        with pytest.raises(InputError, match=r"config\.json is not"):
            load_classifier(folder)
    config.write_text(good_config)

    tensors = load_file(weights)
    save_file({name: t for name, t in tensors.items() if name != "head.bias"}, weights)
    with pytest.raises(InputError, match=r"head\.bias"):
        load_classifier(folder)


def test_accuracy_counts_known_classes_only():
    predicted, wanted = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, -1])
    assert class_accuracy(predicted, wanted) == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="no class"):
        class_accuracy(predicted, torch.full((4,), -1))
    with pytest.raises(InputError, match="shape"):
        class_accuracy(predicted, wanted[:2])
