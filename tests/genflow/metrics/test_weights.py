"""Where weights are looked for, and in which order."""

import hashlib
from pathlib import Path

import pytest

from genflow.errors import InputError
from genflow.files import cache_root
from genflow.metrics.weights import file_hash, find_weights

NAMES = ("first.pth", "second.pth")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch) -> dict[str, Path]:
    """Every place that is looked in, empty."""
    found = {"variable": tmp_path / "v", "cache": tmp_path / "c", "torch": tmp_path / "t" / "hub" / "checkpoints"}
    for place in found.values():
        place.mkdir(parents=True)
    monkeypatch.setenv("GENFLOW_CACHE", str(found["cache"]))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "t"))
    monkeypatch.delenv("GENFLOW_WEIGHTS", raising=False)
    return found


def make(folder: Path, name: str) -> Path:
    (folder / name).write_bytes(b"x")
    return folder / name


def test_nothing_is_found_in_nothing(places):
    assert find_weights(NAMES) is None
    assert find_weights(("model",), folder=True) is None


def test_places_come_one_after_the_other(places, monkeypatch, tmp_path):
    last = make(places["torch"], "second.pth")
    assert find_weights(NAMES) == last
    better = make(places["cache"], "second.pth")
    assert find_weights(NAMES) == better
    preferred = make(places["cache"], "first.pth")
    assert find_weights(NAMES) == preferred
    monkeypatch.setenv("GENFLOW_WEIGHTS", str(places["variable"]))
    assert find_weights(NAMES) == preferred
    mine = make(places["variable"], "second.pth")
    assert find_weights(NAMES) == mine
    monkeypatch.setenv("GENFLOW_WEIGHTS", str(make(tmp_path, "first.pth")))
    assert find_weights(NAMES) == tmp_path / "first.pth"
    monkeypatch.setenv("GENFLOW_WEIGHTS", str(make(tmp_path, "of-another-network.pth")))
    assert find_weights(NAMES) == preferred


def test_what_is_given_is_taken_and_nothing_else(places, tmp_path):
    make(places["cache"], "first.pth")
    given = make(tmp_path, "any-name.pth")
    assert find_weights(NAMES, given) == given
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(InputError, match=r"folder' holds no file named first\.pth or second\.pth"):
        find_weights(NAMES, folder)
    assert find_weights(NAMES, make(folder, "second.pth").parent) == folder / "second.pth"
    with pytest.raises(InputError, match="weights: .*none' does not exist"):
        find_weights(NAMES, tmp_path / "none")


def test_folders_are_found_by_name_or_taken_themselves(places, tmp_path):
    home = places["cache"] / "dinov2-large"
    home.mkdir()
    assert find_weights(("dinov2-large",), folder=True) == home
    assert find_weights(("dinov2-large",), home, folder=True) == home
    assert find_weights(("dinov2-large",), places["cache"], folder=True) == home
    with pytest.raises(InputError, match="holds no folder named dinov2-large"):
        find_weights(("dinov2-large",), make(tmp_path, "file"), folder=True)


def test_a_variable_that_leads_nowhere_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("GENFLOW_WEIGHTS", str(tmp_path / "gone"))
    with pytest.raises(InputError, match="GENFLOW_WEIGHTS: .*gone' does not exist"):
        find_weights(NAMES)


def test_the_cache_is_below_home_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("GENFLOW_CACHE")
    assert cache_root() == Path.home() / ".cache" / "genflow"


def test_the_hash_is_of_the_bytes(tmp_path):
    assert file_hash(make(tmp_path, "a")) == hashlib.sha256(b"x").hexdigest()
