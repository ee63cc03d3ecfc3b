"""The benchmarks run, say what they measured, and their peers compute the same thing."""

import json

import pytest
import torch

from genflow.errors import InputError
from genflow.evaluate import speed
from genflow.metrics import frechet_distance_from_features, neighbour_radii


@pytest.mark.parametrize("name", sorted(speed.BENCHMARKS))
def test_every_benchmark_gives_json_with_ratios(name):
    result = speed.run_benchmark(name, quick=True)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["rows"]
    for row in result["rows"]:
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
        assert row["ours"] > 0
        assert row["better"] in {"lower", "higher"}


def test_an_unknown_benchmark_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'network'"):
        speed.run_benchmark("netwrk")


def test_the_peers_compute_what_ours_compute():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(90, 12, generator=generator), 2 * torch.randn(80, 12, generator=generator)
    ours = frechet_distance_from_features(first, second)
    assert speed._frechet_by_scipy(first, second) == pytest.approx(ours, rel=1e-8)
    radii = neighbour_radii(first, (3,))[0].sqrt()
    assert torch.allclose(speed._radii_by_cdist(first, 3), radii, rtol=1e-4)


def test_compare_takes_turns_and_keeps_the_best():
    order = []
    ours, peer = speed.compare(lambda: order.append("ours"), lambda: order.append("peer"), repeats=2)
    assert order == ["ours", "peer", "ours", "peer"]
    assert 0 <= ours < 1
    assert 0 <= peer < 1
