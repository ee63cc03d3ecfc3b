import json

import pytest

from genflow.assets import path as asset
from genflow.errors import InputError
from genflow.evaluate import onestep


@pytest.fixture(scope="module")
def row():
    return onestep.measure("fashion-mnist", 20, euler=1)


def test_a_guided_step_costs_two_network_calls(row):
    assert row["network_calls"] == 2
    assert row["count"] == 20
    assert set(onestep.FIGURES) <= row.keys()
    assert onestep.measure("fashion-mnist", 20, euler=2)["network_calls"] == 4


def test_rows_are_kept_and_others_stay(row, tmp_path, monkeypatch):
    asked = []

    def measure(model, count, *, euler, device):
        asked.append((str(model), euler))
        return {**row, "euler": euler, "count": count}

    monkeypatch.setattr(onestep, "measure", measure)
    file, folder = tmp_path / "rows.json", str(asset("fashion-mnist"))
    onestep.main(student=[f"again={folder}"], count=20, device="cpu", json_file=file, plot=tmp_path / "plot.png")
    # the student is the teacher under another name: measured once
    assert asked == [("fashion-mnist", None), ("fashion-mnist", 2), ("fashion-mnist", 1)]
    onestep.main(student=[f"again={folder}"], count=30, device="cpu", json_file=file, plot=None)
    assert len(asked) == 6
    counts = [kept["count"] for kept in json.loads(file.read_text())["rows"]]
    assert sorted(counts) == [20] * 4 + [30] * 4
    onestep.main(student=[f"again={folder}"], count=20, device="cpu", json_file=file, plot=None)
    assert len(asked) == 6
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_the_table_has_a_line_a_row(row):
    lines = onestep.markdown([{**row, "name": "teacher"}]).splitlines()
    assert len(lines) == 3
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize("student", ["=folder", "name="])
def test_a_student_needs_a_name_and_a_folder(student, tmp_path):
    with pytest.raises(InputError, match="--student"):
        onestep.main(student=[student], count=20, device="cpu", json_file=tmp_path / "rows.json", plot=None)


def test_an_unknown_folder_is_named_before_any_work(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        onestep.main(student=["x=nowhere"], count=20, device="cpu", json_file=tmp_path / "rows.json", plot=None)
