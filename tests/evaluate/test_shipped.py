"""The shipped classifier and reference: small enough, right often enough, and made for each other."""

from pathlib import Path

import pytest
import torch

from genflow.data import FASHION_MNIST_CLASSES, load_images
from genflow.evaluate import evaluate, load_reference
from genflow.evaluate.classifier import accuracy, augment, train_classifier
from genflow.evaluate.reference import ASSETS
from genflow.metrics import ClassifierConfig, frechet_distance_from_features

SLICE = Path(__file__).parents[1] / "data" / "fashion-1k-images-idx3-ubyte.gz"
"""The first 1,000 training images: the classifier has seen them, so its accuracy on them is too kind."""


@pytest.fixture(scope="module")
def reference():
    return load_reference("fashion-mnist")


def test_the_assets_are_small_and_have_cards():
    for name in ("fashion-mnist-classifier", "fashion-mnist-reference"):
        card = (ASSETS / name / "card.md").read_text(encoding="utf-8")
        for word in ("MIT", "Zalando", "python -m genflow.evaluate"):
            assert word in card
    assert (ASSETS / "fashion-mnist-classifier" / "model.safetensors").stat().st_size <= 2 * 2**20
    assert (ASSETS / "fashion-mnist-reference" / "features.safetensors").stat().st_size <= 3 * 2**20


def test_the_reference_features_tell_the_test_images_apart(reference):
    """The last layer on the kept features of the 10,000 test images: at least 93 % are in their class."""
    predicted = reference.extractor.network.head(reference.features).argmax(1)
    assert len(reference.labels) == 10_000
    assert torch.equal(reference.labels.bincount(), torch.full((10,), 1000))
    assert float((predicted == reference.labels).double().mean()) >= 0.93
    assert reference.extractor.class_names == FASHION_MNIST_CLASSES


def test_the_statistics_are_those_of_the_features(reference):
    features = reference.features.double()
    # float16 keeps eleven bits: the distance it costs is nothing beside any between sets of images.
    assert torch.allclose(features.mean(0), reference.statistics.mean, rtol=1e-3, atol=1e-3)
    assert torch.allclose(features.T.cov(), reference.statistics.covariance, rtol=1e-2, atol=1e-3)


def test_the_classifier_knows_the_slice(reference):
    data = load_images(SLICE)
    assert accuracy(reference.extractor.network, data.images, data.labels) >= 0.93


def test_real_images_score_well_and_noise_badly(tmp_path):
    import numpy as np

    result = evaluate(SLICE)
    assert result["metrics"]["accuracy"] >= 0.93
    assert result["metrics"]["precision"] > 0.5
    assert "1000 samples" in result["protocol"]["warnings"][0]
    noise = np.random.default_rng(0).integers(0, 256, (200, 28, 28), dtype=np.uint8)
    np.save(tmp_path / "noise.npy", noise)
    bad = evaluate(tmp_path / "noise.npy")["metrics"]
    assert bad["fd"] > 20 * result["metrics"]["fd"]
    assert bad["recall"] == 0.0


def test_fd_sees_a_missing_class(reference):
    whole, kept = reference.features, reference.features[reference.labels != 8]
    halves = frechet_distance_from_features(whole[::2], whole[1::2])
    assert frechet_distance_from_features(kept, whole) > 10 * halves


def test_augmentation_moves_and_mirrors_whole_images():
    image = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    image[0, 0, 10, 5] = 200
    moved = augment(image.expand(400, 1, 28, 28), torch.Generator().manual_seed(0))
    assert moved.dtype == torch.uint8
    assert (moved.flatten(1).sum(1) == 200).all()
    _, _, rows, columns = moved.nonzero(as_tuple=True)
    assert set(rows.tolist()) == {8, 9, 10, 11, 12}
    assert set(columns.tolist()) == {3, 4, 5, 6, 7, 20, 21, 22, 23, 24}


def test_training_is_a_function_of_its_seed():
    data = load_images(SLICE)
    config = ClassifierConfig(stages=((8, 1), (16, 1)))
    options = {"epochs": 2, "batch_size": 50, "progress": False}
    one, two, other = (train_classifier(data.images, data.labels, config, seed=s, **options) for s in (0, 0, 1))
    states = [torch.cat([p.flatten() for p in net.parameters()]) for net in (one, two, other)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    assert accuracy(one, data.images, data.labels) > 0.5
