"""The transport measurements: problems as said, timings that say what was reached, table, JSON and figure."""

import json

import pytest
import torch

from genflow.errors import InputError
from genflow.evaluate import transport
from genflow.evaluate.speed_transport import compare_with_pot


@pytest.mark.parametrize("kind", transport.KINDS)
def test_problems_are_probabilities_and_costs_up_to_one(kind):
    a, b, cost = transport.make_problem(kind, 100)
    assert cost.shape == (100, 100)
    assert 0.99 < float(cost.max()) <= 1
    assert float(cost.min()) >= 0
    for mass in (a, b):
        assert float(mass.sum()) == pytest.approx(1)
        assert (mass == 0).any() == kind.startswith("histograms")
    again, other = transport.make_problem(kind, 100), transport.make_problem(kind, 100, seed=1)
    assert all(map(torch.equal, again, (a, b, cost)))
    assert not all(map(torch.equal, other, (a, b, cost)))


@pytest.mark.parametrize("method", transport.PEERS)
def test_pot_is_timed_on_the_problem_that_ours_solves(method):
    problem = transport.make_problem("histograms-l2", 64)
    ours = transport.time_ours(problem, 1 / 50, 1e-9)
    pot = transport.time_pot(problem, 1 / 50, 1e-9, method, 5.0)
    for timing in (ours, pot):
        assert timing.reached
        assert timing.error < 1e-7
        assert timing.seconds > 0
        assert [second for second, _ in timing.curve]
    assert ours.error < 2e-9
    assert ours.curve[0][1] > ours.curve[-1][1]


def test_what_is_not_reached_is_said():
    problem = transport.make_problem("random", 64)
    assert not transport.time_pot(problem, 1 / 20_000, 1e-9, "sinkhorn_log", 0.01).reached
    row = compare_with_pot(quick=True)[0]
    assert "Newton steps" in row["ours_name"]
    assert row["peer"] > 0


def test_the_command_writes_json_and_figure(tmp_path, capsys):
    transport.main(["points"], [36], 100.0, 1e-6, 0.3, tmp_path / "t.json", tmp_path / "t.png")
    assert "sinkhorn" in capsys.readouterr().out
    results = json.loads((tmp_path / "t.json").read_text())["results"]
    assert [result["size"] for result in results] == [36]
    assert {timing["name"] for timing in results[0]["timings"]} >= {"sinkhorn_newton", "sinkhorn", "ot.sinkhorn_log"}
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_unknown_kinds_are_refused():
    with pytest.raises(InputError, match="did you mean 'points'"):
        transport.make_problem("point", 10)
    with pytest.raises(InputError, match="size: got 1"):
        transport.make_problem("points", 1)


def test_outputs_are_checked_before_any_work(tmp_path):
    with pytest.raises(InputError, match=r"--plot: .* is a folder"):
        transport.main(plot=tmp_path)


def test_epsilon_scaling_is_stopped_after_its_time(monkeypatch):
    monkeypatch.setattr(transport, "STOPPED_AFTER", 1)
    problem = transport.make_problem("random", 400)
    timing = transport.time_pot(problem, 1 / 20_000, 1e-12, "sinkhorn_epsilon_scaling", 0.01)
    assert timing.stopped
    assert not timing.reached
    assert timing.seconds == 0.01
    assert transport.error_text(timing.error, timing.stopped) == "unknown"
