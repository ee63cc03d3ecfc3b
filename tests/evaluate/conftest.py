"""Features that tests make are kept away from the user's cache; the tiny network and images that they share."""

import importlib.util
import sys
from pathlib import Path

import pytest

if "genflow_tiny_extraction" not in sys.modules:  # tests/evaluate/tiny_extraction.py, by the name that tests import
    spec = importlib.util.spec_from_file_location(
        "genflow_tiny_extraction", Path(__file__).parent / "tiny_extraction.py"
    )
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENFLOW_CACHE", str(tmp_path_factory.mktemp("cache")))
