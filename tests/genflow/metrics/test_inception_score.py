"""The Inception Score against its definition, closed forms and torchmetrics."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchmetrics.image.inception import InceptionScore as TorchmetricsInceptionScore

from genflow.errors import InputError
from genflow.metrics import inception_score


def logits(seed: int, count: int, classes: int = 7, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))


def test_sure_and_even_is_the_number_of_classes():
    sure = 1000 * torch.eye(6).repeat(10, 1)
    found = inception_score(sure, splits=1)
    assert found.mean == pytest.approx(6.0, rel=1e-12)
    assert found.std == 0.0
    assert inception_score(sure[::6], splits=2).mean == pytest.approx(1.0, rel=1e-12)  # all of one class
    assert inception_score(torch.zeros(20, 6), splits=2).mean == pytest.approx(1.0, rel=1e-12)  # of no class


def test_it_is_its_definition():
    """``exp(mean of sum p (log p - log q))`` in Python's floats, split by split."""
    x = logits(0, 23)
    scores = []
    for start, stop in ((0, 7), (7, 15), (15, 23)):
        p = [[math.exp(v) for v in row] for row in x[start:stop].tolist()]
        p = [[v / sum(row) for v in row] for row in p]
        q = [sum(column) / len(p) for column in zip(*p, strict=True)]
        kl = [sum(a * (math.log(a) - math.log(b)) for a, b in zip(row, q, strict=True)) for row in p]
        scores.append(math.exp(sum(kl) / len(kl)))
    mean = sum(scores) / 3
    found = inception_score(x, splits=3, shuffle=False)
    assert found.mean == pytest.approx(mean, rel=1e-9)
    assert found.std == pytest.approx(math.sqrt(sum((s - mean) ** 2 for s in scores) / 3), rel=1e-7)


def test_torchmetrics_finds_the_same(monkeypatch):
    """With its shuffle switched off: it has no seed; its deviation divides by splits - 1."""
    x = logits(1, 200, 12)
    metric = TorchmetricsInceptionScore(nn.Identity(), splits=5)
    metric.update(x.double())
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n))
    mean, std = metric.compute()
    found = inception_score(x, splits=5, shuffle=False)
    assert found.mean == pytest.approx(float(mean), rel=1e-6)
    assert found.std * math.sqrt(5 / 4) == pytest.approx(float(std), rel=1e-6)


def test_the_shuffle_is_seeded():
    x = logits(2, 100).sort(0).values
    found = inception_score(x, seed=1)
    assert found == inception_score(x, seed=1)
    assert found != inception_score(x, seed=2)
    assert found != inception_score(x, shuffle=False)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 40), classes=st.integers(1, 9), scale=st.floats(0, 300))
def test_between_one_and_the_classes_in_any_order(seed, count, classes, scale):
    x = logits(seed, count, classes, scale)
    found = inception_score(x, splits=1).mean
    assert 1 - 1e-9 <= found <= classes * (1 + 1e-9)
    assert inception_score(x.flip(1), splits=1).mean == pytest.approx(found, rel=1e-9)
    assert inception_score(x + 5, splits=1).mean == pytest.approx(found, rel=1e-4)  # float32 inputs round
    assert inception_score(x, splits=1, seed=3).mean == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(20)}, "logits: got shape"),
        ({"logits": torch.full((20, 3), torch.nan)}, "logits: some are NaN"),
        ({"logits": torch.zeros(9, 3)}, "splits: got 10; there are 9 samples"),
        ({"splits": 0}, "splits: got 0"),
        ({"shuffle": 1}, "shuffle: got 1"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"logits": torch.zeros(20, 3), **change}
    with pytest.raises(InputError, match=message):
        inception_score(arguments.pop("logits"), **arguments)
