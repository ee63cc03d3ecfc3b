"""The benchmarks run, say what they measured, and their peers compute the same thing."""

import json
import sys

import pytest
import torch

from genflow.errors import InputError
from genflow.evaluate import speed, speed_metrics, speed_optimizers
from genflow.metrics import frechet_distance_from_features, neighbour_radii
from genflow.optim.registry import optimizer_class


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
    assert speed_metrics.frechet_by_scipy(first, second) == pytest.approx(ours, rel=1e-8)
    radii = neighbour_radii(first, (3,))[0].sqrt()
    assert torch.allclose(speed_metrics.radii_by_cdist(first, 3).double(), radii, rtol=1e-4)


def test_compare_takes_turns_and_keeps_the_best():
    order = []
    ours, peer = speed.compare(lambda: order.append("ours"), lambda: order.append("peer"), repeats=2)
    assert order == ["ours", "peer", "peer", "ours"]
    assert 0 <= ours < 1
    assert 0 <= peer < 1


def test_a_device_that_is_not_there_or_not_measured_is_named():
    with pytest.raises(InputError, match="device: 'cuda:99' is not there"):
        speed.run_benchmark("optimizers", quick=True, device="cuda:99")
    with pytest.raises(InputError, match="device: metrics measures the CPU; allowed elsewhere: .*optimizers"):
        speed.run_benchmark("metrics", quick=True, device="meta")


def test_every_rule_makes_the_steps_of_its_peer():
    """What is compared in time is one rule: after some steps the weights are the same."""
    peers = pytest.importorskip("pytorch_optimizer")
    for rule in speed_optimizers.RULES:
        ours, theirs = (speed_optimizers._ready(speed_optimizers._equal(3, 8), torch.device("cpu")) for _ in range(2))
        before = [param.detach().clone() for param in ours]
        first = optimizer_class(rule.name)(ours, weight_decay=0.01, **rule.options)
        second = getattr(peers, rule.peer)(theirs, weight_decay=0.01, **rule.peer_options)
        kept = [param.grad.clone() for param in theirs]
        for _ in range(4):
            first.step()
            second.step()
            for param, grad in zip(theirs, kept, strict=True):
                param.grad.copy_(grad)  # some peers write into it
        for a, b, old in zip(ours, theirs, before, strict=True):
            assert (a - old).abs().max() > 1e-5, rule.name
            # eps and decay stand elsewhere with some of the peers
            torch.testing.assert_close(a - old, b - old, rtol=2e-2, atol=2e-6, msg=lambda m, r=rule: f"{r.name}: {m}")


def test_without_the_peer_a_line_says_so_and_the_rest_is_measured(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    rows = speed_optimizers.compare_optimizers(quick=True)
    assert "pytorch-optimizer is not installed: its rows are left out" in capsys.readouterr().err
    assert {row["peer_name"] for row in rows} == {"AdamW fused", "fused"}
