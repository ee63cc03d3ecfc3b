"""The neighbours' benchmark: both sides find the same, each in a process of its own; without prdc a line says so."""

import importlib.util
import json

import pytest

from genflow.errors import InputError
from genflow.evaluate import speed_neighbours


def test_both_sides_find_the_same():
    ours, peer = (speed_neighbours.measure(side, 200, 32) for side in speed_neighbours.SIDES)
    assert ours["figures"] == pytest.approx(peer["figures"], abs=1e-9)
    assert 0 < ours["figures"]["recall"] < 1
    assert ours["seconds"] > 0
    assert ours["memory"] >= ours["working"] >= 0


@pytest.mark.slow
def test_rows_give_seconds_and_memory_of_processes_of_their_own():
    rows = speed_neighbours.compare_with_prdc(quick=True)
    assert [row["unit"] for row in rows][:2] == ["s", "MiB"]
    assert all(row["ours"] > 0 and row["peer"] > 0 for row in rows)
    assert rows[1]["peer"] != rows[1]["ours"]  # neither is the memory of the process that started both


def test_without_the_peer_a_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert speed_neighbours.compare_with_prdc(quick=True) == []
    assert "prdc is not installed: its rows are left out" in capsys.readouterr().err
    with pytest.raises(InputError, match="side: prdc is not installed"):
        speed_neighbours.measure("prdc", 100, 8)


def test_the_command_prints_figures_time_and_memory(capsys):
    speed_neighbours.main(count=60, dimensions=8, side="ours", as_json=False)
    out = capsys.readouterr().out
    assert "2 x 60 x 8 float32 features: precision" in out
    assert "MiB at most" in out
    speed_neighbours.main(count=60, dimensions=8, side="prdc", as_json=True)
    assert set(json.loads(capsys.readouterr().out)) == {"figures", "seconds", "memory", "working"}


def test_bad_input_is_one_line(start_python):
    done = start_python("-m", "genflow.evaluate.speed_neighbours", "--count", "3").wait()
    assert done.status == 2
    assert done.errors == "genflow: error: count: got 3; allowed: an integer >= 6\n"
