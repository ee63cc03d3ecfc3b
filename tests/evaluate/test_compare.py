"""Sets side by side, and which differences are more than chance; intervals of the figures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from genflow.errors import InputError
from genflow.evaluate import compare_sets, evaluate, print_comparison
from genflow.evaluate.feature_set import FeatureSet
from genflow.evaluate.measures import MEASURES
from genflow.evaluate.pair import Pair, Settings
from genflow.evaluate.replicates import replicates
from genflow.evaluate.table import short_names
from genflow.metrics import FeatureStatistics, kernel_distance_full

METRICS = "fd,kid,precision,recall,density,coverage,contrast"


def features(seed: int, count: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)) + shift


def feature_set(values: torch.Tensor, **more: Any) -> FeatureSet:
    return FeatureSet(FeatureStatistics.from_features(values), {"features": "test"}, features=values, **more)


@pytest.fixture(scope="module")
def pair() -> Pair:
    labels = torch.arange(60) % 3
    made = feature_set(
        features(1, 60, 0.3),
        labels=labels,
        predicted=torch.where(torch.arange(60) % 5 == 0, (labels + 1) % 3, labels),
        logits=features(2, 60),
        images={
            name: torch.rand(60, generator=torch.Generator().manual_seed(3)) for name in ("contrast", "saturation")
        },
    )
    real = feature_set(features(4, 90), labels=torch.arange(90) % 3)
    return Pair(made, real, Settings(), train=feature_set(features(5, 50)))


RESAMPLED = sorted(set(MEASURES) - {"fid", "fid_infinity", "intra_fid", "colourfulness", "clipped_share"})


@pytest.mark.parametrize("key", RESAMPLED)
def test_resamples_scatter_about_the_figure(pair: Pair, key: str) -> None:
    found = replicates(pair, key, 40, seed=1)
    value = MEASURES[key].value(pair)
    assert found.shape == (40,)
    assert found.dtype == torch.float64
    assert found.std() > 0 or key == "memorization"
    assert torch.equal(replicates(pair, key, 40, seed=1), found)
    assert torch.allclose(replicates(pair, key, 7, seed=1), found[:7], rtol=1e-12)
    if MEASURES[key].each is not None:
        assert MEASURES[key].each(pair).double().mean().item() == pytest.approx(value, rel=1e-6)
        assert abs(float(found.mean()) - value) <= 4 * float(found.std()) / 40**0.5 + 1e-9


def test_recall_and_coverage_draw_the_reference_and_all_else_the_samples(pair: Pair) -> None:
    assert {key for key in RESAMPLED if MEASURES[key].over == "reference"} == {"recall", "coverage"}
    assert len(MEASURES["recall"].each(pair)) == len(MEASURES["coverage"].each(pair)) == 90
    for key in ("precision", "density", "authenticity", "memorization", "contrast", "accuracy"):
        assert len(MEASURES[key].each(pair)) == 60


@pytest.mark.parametrize(("key", "tolerance"), [("fd", 0.35), ("fd_infinity", 0.5), ("intra_fd", 0.35)])
def test_a_distance_s_scatter_is_that_between_sets_of_one_law(key: str, tolerance: float) -> None:
    """Forty sets of one law, away from the reference: their distances scatter as the resamples of any one of them."""
    labels = torch.arange(500) % 2
    real = feature_set(features(0, 500), labels=labels)
    found, scatter = [], []
    for seed in range(40):
        pair = Pair(feature_set(features(seed + 1, 200, 0.5), labels=labels[:200]), real, Settings(seed=seed))
        found.append(MEASURES[key].value(pair))
        scatter.append(float(replicates(pair, key, 100, seed=seed).std()))
    assert np.mean(scatter) == pytest.approx(np.std(found, ddof=1), rel=tolerance)


def test_resampled_kernel_distances_are_of_all_samples(pair: Pair) -> None:
    full = kernel_distance_full(pair.reference.features, pair.generated.features).value
    ones = MEASURES["kid"].together(pair, torch.ones(1, 60))
    assert ones.item() == pytest.approx(full, rel=1e-9)


class World:
    def __init__(self, home: Path, network: Path) -> None:
        self.home, self.network = home, network
        generator = np.random.default_rng(0)
        sets = {
            "real": generator.integers(0, 256, (120, 8, 8), np.uint8),
            "good": generator.integers(0, 256, (80, 8, 8), np.uint8),
            "dark": generator.integers(0, 120, (80, 8, 8), np.uint8),
            "few": generator.integers(0, 256, (30, 8, 8), np.uint8),
        }
        sets["near"] = np.clip(sets["good"].astype(int) + generator.integers(-6, 7, (80, 8, 8)), 0, 255).astype(
            np.uint8
        )
        for name, images in sets.items():
            np.save(home / f"{name}.npy", images)

    def __call__(self, *names: str, **options: Any) -> dict[str, Any]:
        sets = [self.home / f"{name}.npy" for name in names]
        options = {"features": self.network, "metrics": METRICS, "bootstrap": 60, **options}
        return compare_sets(sets, self.home / "real.npy", **options)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_network: Path) -> World:
    return World(tmp_path_factory.mktemp("sets"), tiny_network)


def test_a_plain_difference_is_found_and_the_better_set_named(world: World) -> None:
    result = world("good", "dark", "near")
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result["comparisons"]) == METRICS.split(",")
    found = result["comparisons"]["fd"]
    assert found["best"] in (0, 2)
    by_pair = {(pair["first"], pair["second"]): pair for pair in found["pairs"]}
    assert set(by_pair) == {(0, 1), (0, 2), (1, 2)}
    assert by_pair[0, 1]["p_corrected"] == pytest.approx(3 / 61)
    assert by_pair[0, 1]["high"] < 0 < by_pair[1, 2]["low"]
    assert by_pair[0, 2]["p_corrected"] > 0.05
    for pair in found["pairs"]:
        values = [one["metrics"]["fd"] for one in result["sets"]]
        assert pair["difference"] == values[pair["first"]] - values[pair["second"]]
        assert pair["p"] <= pair["p_corrected"]
    assert result["comparisons"]["contrast"]["best"] != 1  # the nearest to the reference's


def test_each_set_is_scored_as_by_itself(world: World) -> None:
    result = world("good", "dark")
    for name, one in zip(("good", "dark"), result["sets"], strict=True):
        alone = evaluate(world.home / f"{name}.npy", world.home / "real.npy", features=world.network, metrics=METRICS)
        assert one["metrics"] == alone["metrics"]
        assert set(one["intervals"]) == set(one["metrics"])


def test_pairing_finds_smaller_differences(world: World) -> None:
    apart, paired = (world("good", "near", paired=flag, metrics="contrast") for flag in (False, True))
    one, other = (result["comparisons"]["contrast"]["pairs"][0] for result in (apart, paired))
    assert one["difference"] == other["difference"]
    assert other["high"] - other["low"] < 0.2 * (one["high"] - one["low"])
    assert paired["protocol"]["paired"] is True


def test_a_set_does_not_differ_from_itself(world: World) -> None:
    for paired in (False, True):
        found = world("good", "good", paired=paired)["comparisons"]
        assert all(pair["p"] == 1 for one in found.values() for pair in one["pairs"])


def test_equal_laws_are_seldom_called_different() -> None:
    """Of 25 comparisons of two sets of one law at most a few are below 0.05: on average one would be."""
    from genflow.evaluate.intervals import difference

    generator = torch.Generator().manual_seed(0)
    below = 0
    real = feature_set(torch.randn(60, 3, generator=generator))
    for trial in range(25):
        drawn, values = [], []
        for side in range(2):
            pair = Pair(feature_set(torch.randn(50, 3, generator=generator)), real, Settings())
            values.append(MEASURES["precision"].value(pair))
            drawn.append(replicates(pair, "precision", 100, seed=2 * trial + side))
        below += difference(values[0] - values[1], drawn[0] - drawn[1], 0.95)["p"] < 0.05
    assert below <= 5


def test_different_numbers_are_said_and_cannot_be_paired(world: World) -> None:
    result = world("good", "few", metrics="fd,precision")
    assert "different numbers of samples" in result["protocol"]["warnings"][0]
    assert "80" in result["protocol"]["warnings"][0]
    with pytest.raises(InputError, match="paired: sets of different sizes"):
        world("good", "few", paired=True)
    assert not any("different numbers" in line for line in world("good", "few", count=30)["protocol"]["warnings"])


def test_without_resamples_there_are_figures_alone(world: World) -> None:
    result = world("good", "dark", bootstrap=0)
    assert result["protocol"]["bootstrap"] is None
    assert set(result["comparisons"]["fd"]["pairs"][0]) == {"first", "second", "difference"}
    assert not result["sets"][0]["intervals"]


def test_what_cannot_be_compared_is_refused(world: World) -> None:
    with pytest.raises(InputError, match="at least two are needed"):
        world("good")
    with pytest.raises(InputError, match="bootstrap"):
        world("good", "dark", bootstrap=1)
    with pytest.raises(InputError, match="paired"):
        world("good", "dark", paired="yes")
    with pytest.raises(InputError, match="nowhere"):
        world("good", "nowhere")


def test_the_table_marks_the_best_and_what_is_more_than_chance(world: World) -> None:
    result = world("good", "dark")
    console = Console(record=True, width=140, file=open("/dev/null", "w"))  # noqa: SIM115
    print_comparison(result, console)
    text = console.export_text()
    row = next(line for line in text.splitlines() if "FD ↓" in line)
    cells = [cell.strip() for cell in row.split("│")[2:4]]
    assert cells[0].startswith("* ")
    assert not cells[1].startswith("*")
    assert "0.016 *" in text  # one over 61, of one pair
    assert "95% of 60 resamples" in " ".join(text.split())
    assert "warning: " in text


def test_too_few_resamples_for_the_pairs_are_told(world: World) -> None:
    """p is at least 3 / 60 with 59 resamples of three sets, and 3 / 61 with 60."""
    for draws, told in ((59, True), (60, False)):
        warnings = world("good", "dark", "near", bootstrap=draws, metrics="fd")["protocol"]["warnings"]
        assert any("take at least 60" in line for line in warnings) is told


def test_names_are_as_short_as_tells_them_apart() -> None:
    assert short_names(["runs/a/out", "runs/b/out/"]) == ["a/out", "b/out"]
    assert short_names(["x/a.npz", "y/b.npz"]) == ["a.npz", "b.npz"]
    assert short_names(["same", "same"]) == ["same", "same"]
