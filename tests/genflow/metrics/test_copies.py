"""Memorization: every planted copy is found, nothing else is, and the ratios are those of the definitions."""

import pytest
import torch

from genflow.errors import InputError
from genflow.metrics import memorization


def cloud(seed: int, count: int, dimensions: int = 16) -> torch.Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def by_definition(train: torch.Tensor, generated: torch.Tensor, scale: str) -> torch.Tensor:
    distances = torch.cdist(generated.double(), train.double(), compute_mode="donot_use_mm_for_euclid_dist")
    ordered = distances.sort(dim=1).values
    if scale == "second":
        return ordered[:, 0] / ordered[:, 1]
    if scale == "mean":
        return ordered[:, 0] / (0.5 * ordered[:, :50].mean(1))
    among = torch.cdist(train.double(), train.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return ordered[:, 0] / among.sort(dim=1).values[distances.argmin(1), 1]


@pytest.mark.parametrize("scale", ["second", "mean", "own"])
def test_ratios_are_those_of_the_definitions(scale):
    train, generated = cloud(1, 200), cloud(2, 90)
    found = memorization(train, generated, scale=scale, max_bytes=50_000)
    torch.testing.assert_close(found.ratios, by_definition(train, generated, scale), rtol=1e-12, atol=0)
    distances = torch.cdist(generated, train)
    assert torch.equal(found.nearest, distances.argmin(1))
    torch.testing.assert_close(found.distance, distances.amin(1).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", ["second", "mean", "own"])
def test_planted_copies_are_found_and_nothing_else(scale):
    train, generated = cloud(1, 500), cloud(2, 300)
    places, sources = torch.arange(0, 300, 7), torch.arange(0, 500, 11)[: len(torch.arange(0, 300, 7))]
    generated[places] = train[sources]
    found = memorization(train, generated, scale=scale)
    assert torch.equal(found.copied.nonzero()[:, 0], places)
    assert torch.equal(found.nearest[places], sources)
    assert found.share == len(places) / 300
    assert found.exact == len(places)
    assert (found.ratios[places] == 0).all()


def test_near_copies_of_training_samples_that_came_twice_are_found():
    train = torch.cat([cloud(1, 100), cloud(1, 100)])
    generated = train[150:160] + 1e-3 * cloud(2, 10)
    found = memorization(train, generated)
    assert found.share == 1.0
    assert torch.equal(found.nearest, torch.arange(50, 60))  # the first of the two
    assert found.exact == 0


def test_samples_of_the_same_law_are_no_copies():
    assert memorization(cloud(1, 1000), cloud(2, 500)).share == 0.0


def test_authentic_is_a_ratio_above_one():
    from genflow.metrics import neighbour_details

    train, generated = cloud(1, 300, 4), cloud(2, 200, 4)
    found = memorization(train, generated, scale="own", ratio=1.0)
    assert torch.equal(~found.copied, neighbour_details(train, generated).authentic)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": 0}, "ratio: got 0"),
        ({"scale": "third"}, "scale: 'third' is not known"),
        ({"train": torch.ones(9, 16)}, "train: 1 different samples; at least 2"),
        ({"train": cloud(1, 49), "scale": "mean"}, "train: 49 different samples; at least 50"),
        ({"generated": torch.zeros(4, 15)}, "generated: 15 features"),
        ({"generated": torch.full((4, 16), torch.nan)}, "generated: some"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        memorization(**{"train": cloud(1, 60), "generated": cloud(2, 4), **arguments})
