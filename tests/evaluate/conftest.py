"""Features that tests make are kept away from the user's cache; the tiny network and images that they share."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

if "genflow_tiny_extraction" not in sys.modules:  # tests/evaluate/tiny_extraction.py, by the name that tests import
    spec = importlib.util.spec_from_file_location(
        "genflow_tiny_extraction", Path(__file__).parent / "tiny_extraction.py"
    )
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENFLOW_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def tiny_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a classifier of 8x8 grey images, with random weights: 8 features, classes dark and light."""
    from genflow.metrics import ClassifierConfig, ImageClassifier, save_classifier

    torch.manual_seed(0)
    config = ClassifierConfig(sample_size=8, num_classes=2, stages=((6, 1), (8, 1)), class_names=("dark", "light"))
    folder = tmp_path_factory.mktemp("networks") / "net"
    save_classifier(ImageClassifier(config), folder)
    return folder
