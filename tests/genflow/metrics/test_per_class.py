"""Frechet distances of classes: each is that of its samples, and nothing is dropped in silence."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genflow.errors import InputError
from genflow.metrics import class_frechet_distances, frechet_bias, frechet_distance_from_features


def draw(seed: int, count: int, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    return torch.randn(count, 5, generator=generator) + labels[:, None], labels


def test_each_class_by_itself_and_their_mean():
    (real, real_labels), (generated, labels) = draw(0, 90), draw(1, 60)
    found = class_frechet_distances(real, real_labels, generated, labels)
    assert sorted(found.distances) == [0, 1, 2]
    for label, distance in found.distances.items():
        one, two = real[real_labels == label], generated[labels == label]
        assert distance == pytest.approx(frechet_distance_from_features(one, two), rel=1e-12)
        assert found.biases[label] == pytest.approx(frechet_bias(one, two), rel=1e-12)
        assert found.counts[label] == (len(one), len(two))
    assert found.intra == found.partial == pytest.approx(sum(found.distances.values()) / 3)
    assert found.left_out == {}
    assert found.unlabelled == (0, 0)


def test_swapped_labels_show_where_the_whole_sets_do_not():
    """The same samples under other names: the sets are at distance 0, the classes far apart."""
    x, labels = draw(2, 120, classes=2)
    found = class_frechet_distances(x, labels, x, 1 - labels)
    assert found.intra == pytest.approx(5.0, rel=0.3)
    assert frechet_distance_from_features(x, x) < 1e-6


def test_classes_without_samples_enough_are_named():
    (real, real_labels), (generated, labels) = draw(3, 60), draw(4, 40)
    labels = torch.where(labels == 2, -1, labels)  # of no known class
    real_labels = torch.where(real_labels == 0, torch.tensor(7), real_labels)
    found = class_frechet_distances(real, real_labels, generated, labels)
    assert sorted(found.distances) == [1]
    assert found.intra is None
    assert found.partial == found.distances[1]
    zeros, twos, sevens = int((labels == 0).sum()), int((real_labels == 2).sum()), int((real_labels == 7).sum())
    assert found.left_out == {
        0: f"0 real and {zeros} generated samples; at least 2 are needed",
        2: f"{twos} real and 0 generated samples; at least 2 are needed",
        7: f"{sevens} real and 0 generated samples; at least 2 are needed",
    }
    assert found.unlabelled == (0, int((labels < 0).sum()))
    with pytest.raises(
        InputError, match=r"labels: no class has 60 samples on both sides; classes found: \[0, 1, 2, 7\]"
    ):
        class_frechet_distances(real, real_labels, generated, labels, minimum=60)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_order_does_not_matter(seed):
    (real, real_labels), (generated, labels) = draw(seed, 40), draw(seed + 1, 40)
    found = class_frechet_distances(real, real_labels, generated, labels)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    again = class_frechet_distances(real[order], real_labels[order], generated.flip(0), labels.flip(0))
    assert again.counts == found.counts
    assert again.distances == pytest.approx(found.distances, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"real_labels": None}, "real_labels: missing"),
        ({"generated_labels": None}, "generated_labels: missing"),
        ({"real_labels": torch.zeros(3, dtype=torch.int64)}, r"real_labels: got torch.int64 \(3,\)"),
        ({"generated_labels": torch.zeros(20)}, "generated_labels: got torch.float32"),
        ({"generated": torch.zeros(20, 4)}, "generated: got shape"),
        ({"minimum": 1}, "minimum: got 1"),
    ],
)
def test_bad_input_is_named(change, message):
    (real, real_labels), (generated, labels) = draw(5, 30), draw(6, 20)
    arguments = {"real": real, "real_labels": real_labels, "generated": generated, "generated_labels": labels, **change}
    minimum = arguments.pop("minimum", 2)
    with pytest.raises(InputError, match=message):
        class_frechet_distances(*arguments.values(), minimum=minimum)
