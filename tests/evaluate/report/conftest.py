"""A small evaluation made of the real parts, for the tests of the report: pictures, features, what comes of them."""

import base64
import io
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genflow.errors import InputError
from genflow.evaluate.evaluation import Evaluation, Side
from genflow.evaluate.feature_set import FeatureSet
from genflow.evaluate.measures import MEASURES
from genflow.evaluate.pair import Pair, Settings
from genflow.evaluate.per_class import per_class_table
from genflow.evaluate.record import protocol_of, warnings_about
from genflow.evaluate.report.page import render
from genflow.metrics import FeatureStatistics

CLASSES = ("circle", "square")
COUNT = 60


class Pictures:
    """An image source in memory. ``broken`` cannot be read."""

    def __init__(self, name: str, images: np.ndarray, broken: int | None = None) -> None:
        self.name, self.images, self.broken = name, images, broken
        self.names = tuple(f"{name}/{i:03d}.png" for i in range(len(images)))
        self.labels, self.class_names = None, None

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> np.ndarray:
        if index == self.broken:
            raise InputError(f"{self.names[index]} cannot be read as an image")
        return self.images[index]


def draw(seed: int, labels: np.ndarray) -> np.ndarray:
    """Grey pictures of circles and squares in many places and sizes, uint8 ``(N, 24, 24, 1)``."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:24, :24]
    pictures = np.empty((len(labels), 24, 24, 1), np.uint8)
    for picture, label in zip(pictures, labels, strict=True):
        (row, column), radius = random.uniform(8, 16, 2), random.uniform(3, 8)
        near = np.hypot(y - row, x - column) if label == 0 else np.maximum(abs(y - row), abs(x - column))
        picture[:, :, 0] = np.where(near < radius, random.uniform(120, 255), 20)
    return pictures


def side(name: str, pictures: np.ndarray, labels: np.ndarray | None, class_names: tuple[str, ...] = CLASSES) -> Side:
    """Features are the means of blocks of pixels."""
    flat = torch.from_numpy(pictures.astype(np.float32)).mean(-1)
    values = torch.nn.functional.adaptive_avg_pool2d(flat[:, None], 4).flatten(1) / 255
    source = Pictures(name, pictures)
    features = FeatureSet(
        statistics=FeatureStatistics.from_features(values),
        protocol={"features": "pixels", "source": name, "skipped": []},
        features=values,
        labels=None if labels is None else torch.from_numpy(labels),
        class_names=class_names if labels is not None else None,
        names=source.names,
    )
    return Side(features, source)


KEYS = ("fd", "fd_infinity", "kid", "precision", "recall", "density", "coverage", "authenticity")


def judge(generated: Side, reference: Side) -> Evaluation:
    """What the report draws from, computed as an evaluation computes it; intervals and spread are made up."""
    pair = Pair(generated.features, reference.features, Settings())
    metrics = {key: MEASURES[key].value(pair) for key in KEYS}
    given = {
        "samples": generated.source.name,
        "reference": reference.source.name,
        "bootstrap": {"draws": 200, "level": 0.95, "seed": 0},
    }
    protocol = protocol_of(pair, KEYS, given)
    protocol |= {"notes": ["alpha left out"], "warnings": warnings_about(pair, KEYS), "nested": {"a": ["x", "y"]}}
    fd = metrics["fd"]
    result = {
        "metrics": metrics,
        "spreads": {"kid": 0.125},
        "intervals": {"fd": {"low": 0.9 * fd, "high": 1.1 * fd}},
        "per_class": None if generated.features.labels is None else per_class_table(pair),
        "protocol": protocol,
    }
    return Evaluation(
        result, generated, reference, neighbours=pair.neighbours, extrapolation=pair.extrapolation, pair=pair
    )


def make_one(
    name: str = "out",
    class_names: tuple[str, ...] = CLASSES,
    edit: Callable[[np.ndarray, np.ndarray], None] | None = None,
    labelled: bool = True,
) -> Evaluation:
    """60 pictures a side; ``edit`` changes those of the samples and of the reference."""
    labels = np.arange(COUNT) % 2
    made, real = draw(1, labels), draw(2, labels)
    if edit is not None:
        edit(made, real)
    kept = labels if labelled else None
    return judge(side(name, made, kept, class_names), side("shapes", real, kept, class_names))


@pytest.fixture(scope="session")
def make_evaluation() -> Callable[..., Evaluation]:
    """:func:`make_one`."""
    return make_one


@pytest.fixture(scope="session")
def whole() -> tuple[Evaluation, str, "Page"]:
    """An evaluation that tests only read, the report of it, and that parsed."""
    evaluation = make_one()
    text = render(evaluation)
    return evaluation, text, Page(text)


@pytest.fixture
def without_pictures() -> Callable[[Evaluation], Evaluation]:
    """The same evaluation from files of features."""
    return lambda evaluation: replace(
        evaluation,
        generated=Side(replace(evaluation.generated.features, names=None)),
        reference=Side(replace(evaluation.reference.features, names=None)),
    )


@pytest.fixture
def statistics_only() -> Callable[[Evaluation], Evaluation]:
    """The same where the reference is a file of statistics."""

    def make(evaluation: Evaluation) -> Evaluation:
        result = {**evaluation.result, "metrics": {"fd": 1.0}, "spreads": {}, "per_class": None}
        reference = Side(FeatureSet(evaluation.reference.features.statistics, {}))
        return Evaluation(result, evaluation.generated, reference)

    return make


class Page(HTMLParser):
    """A page as its elements in order: ``(tag, attributes)``; texts by the ``id`` of the section they are in."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self.titles: list[str] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self._open: list[str] = []
        self._section: str | None = None
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        assert len(given) == len(attributes), f"{tag}: an attribute twice"
        self.elements.append((tag, given))
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)
        if tag == "section":
            self._section = given["id"]
            self.sections[self._section] = ""

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))  # within drawings

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "section":
            self._section = None

    def handle_data(self, text: str) -> None:
        if self._section is not None:
            self.sections[self._section] += text + " "
        for tag, texts in (("script", self.scripts), ("style", self.styles), ("title", self.titles)):
            if self._open and self._open[-1] == tag:
                texts.append(text)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of every element of that name."""
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def parse() -> type[Page]:
    """``parse(text)`` is a :class:`Page`."""
    return Page


@pytest.fixture
def decode() -> Callable[[str], Any]:
    """The picture in a ``data:`` address, as an array."""

    def read(address: str) -> np.ndarray:
        kind, _, content = address.partition(";base64,")
        assert kind in ("data:image/png", "data:image/jpeg")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))

    return read
