"""Files of features find their pictures again, and never take others for them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genflow.evaluate.evaluation import Side
from genflow.evaluate.extraction import draw_indices
from genflow.evaluate.feature_set import FeatureSet
from genflow.evaluate.report.reopened import with_pictures
from genflow.evaluate.sources import open_source
from genflow.metrics import FeatureStatistics

COUNT = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(COUNT):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(np.full((6, 6), 20 * i, np.uint8)).save(tmp_path / "ab"[i % 2] / f"{i}.png")
    return tmp_path


def described(folder: Path, count: int | None = None, **changes) -> Side:
    """Features of the folder's images as extraction describes them, from a file that keeps no picture."""
    source = open_source(str(folder))
    rows = draw_indices(len(source), count, 3)
    values = torch.randn(len(rows), 2)
    protocol = {
        "source": str(folder),
        "seed": None if count is None else 3,
        "skipped": [],
        "content_sha256": source.content_hash(rows),
    }
    features = FeatureSet(FeatureStatistics.from_features(values), protocol | changes, values)
    return Side(replace(features, labels=source.labels[torch.tensor(rows)]))


@pytest.mark.parametrize("count", [None, 5])
def test_the_pictures_are_those_of_the_rows(folder: Path, count: int | None) -> None:
    side = with_pictures(described(folder, count))
    source = open_source(str(folder))
    rows = draw_indices(COUNT, count, 3)
    assert side.features.names == tuple(source.names[row] for row in rows)
    for place, row in enumerate(rows):
        assert np.array_equal(side.picture(place), source.read(row))


def test_names_that_are_there_stay(folder: Path) -> None:
    side = described(folder)
    names = tuple(reversed(open_source(str(folder)).names))
    assert with_pictures(Side(replace(side.features, names=names))).features.names == names


def test_other_pictures_in_the_same_place_are_not_taken(folder: Path) -> None:
    side = described(folder)
    assert with_pictures(side).source is not None
    Image.fromarray(np.full((6, 6), 255, np.uint8)).save(folder / "a" / "0.png")
    assert with_pictures(side) is side


def test_without_a_hash_classes_have_to_agree(folder: Path) -> None:
    side = described(folder, content_sha256=None)
    assert with_pictures(side).source is not None
    other = replace(side.features, labels=1 - side.features.labels)
    assert with_pictures(Side(other)).source is None
    assert with_pictures(Side(replace(side.features, labels=None))).source is None


def test_more_or_fewer_pictures_are_not_taken(folder: Path) -> None:
    side = described(folder, content_sha256=None)
    (folder / "a" / "0.png").unlink()
    assert with_pictures(side) is side


@pytest.mark.parametrize("source", ["/nowhere/at/all", "someone/some-data-set", None, "fashion-mnist:nosuch"])
def test_nothing_is_asked_of_the_network(folder: Path, source: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from genflow.evaluate.report import reopened

    monkeypatch.setattr(reopened, "open_source", lambda name: pytest.fail(f"opens {name}"))
    side = described(folder, source=source)
    assert with_pictures(side) is side


def test_what_is_no_source_is_let_be(folder: Path) -> None:
    (folder / "notes.txt").write_text("x")
    side = described(folder, source=str(folder / "notes.txt"))
    assert with_pictures(side) is side


def test_the_shipped_reference_finds_its_pictures() -> None:
    from genflow.data import fashion_mnist_file
    from genflow.evaluate.reference import load_reference

    if fashion_mnist_file("test") is None:
        pytest.skip("dataset-fashion-mnist is not installed")
    side = with_pictures(Side(load_reference("fashion-mnist").feature_set))
    assert side.picture(9_999).shape == (28, 28, 1)
    assert np.array_equal(side.picture(17), open_source("fashion-mnist:test").read(17))
