"""The claims of genflow.optim.dynamics on small networks, and the command that prints them."""

import json
import math

import pytest
from PIL import Image

from genflow.errors import InputError
from genflow.evaluate import dynamics


@pytest.mark.slow
def test_training_at_the_edge():
    """The sharpness rises to what the optimizer bears and stays there, while the loss goes on falling."""
    found = dynamics.edge()
    assert found["holds"]
    for name, curve in found["curves"].items():
        assert curve["loss"][-1] < curve["loss"][-8], name
    sgd, adam = found["curves"]["SGD, lr 0.1"], found["curves"]["Adam, lr 0.005"]
    assert sgd["threshold"][0] == pytest.approx(20)
    assert adam["threshold"][0] == pytest.approx(38 / 0.005)
    assert adam["ratio"][0] < 0.5
    assert max(adam["sharpness"]) < 0.1 * 2 / 0.005  # the plain sharpness knows nothing of it
    slower = found["curves"]["SGD, lr 0.2"]["sharpness"]
    assert sgd["sharpness"][4] / slower[4] == pytest.approx(2, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spectrum", "batches", "rules"])
def test_claims(name):
    assert dynamics.measure([name])[name]["holds"]


@pytest.mark.slow
def test_gradsign_ranks_networks():
    """Positive over sizes, though counting parameters ranks them better; both numbers are reported."""
    found = dynamics.gradsign()
    for space in ("many sizes", "one size"):
        assert found[space]["networks"] >= 20
        assert -1 <= found[space]["rank correlation"] <= 1
    assert found["many sizes"]["rank correlation"] > 0.4
    assert found["many sizes"]["p"] < 0.05
    counts = [point[3] for point in found["one size"]["points"]]
    assert max(counts) < 1.15 * min(counts)


def test_command(monkeypatch, capsys, tmp_path):
    points = [[str(i), float(i + 1), 1 / (i + 1), 10] for i in range(3)]
    fakes = {
        "edge": {"curves": {"SGD": {"step": [1, 2], "ratio": [0.5, 1.0]}}, "holds": True},
        "spectrum": {"density": [[0.0, 1.0], [1.0, 2.0], [1.0, 2.1]], "products": 3, "holds": True},
        "batches": {"measured": {4: [2.0, 0.1]}, "predicted": {4: 2.1}, "holds": False},
        "rules": {"SGD": {"linear": {"lr": 0.1, "loss": 1.0}}, "holds": True},
        "gradsign": {key: {"points": points, "rank correlation": 0.5} for key in ("many sizes", "one size")}
        | {"holds": True},
    }
    monkeypatch.setattr(dynamics, "EXPERIMENTS", {name: lambda value=value: value for name, value in fakes.items()})
    dynamics.main(None, tmp_path / "a.json", tmp_path / "a.png")
    out = capsys.readouterr().out
    assert "batches: does NOT hold" in out
    assert "edge: holds" in out
    written = json.loads((tmp_path / "a.json").read_text())
    assert list(written) == list(fakes)
    assert math.isfinite(written["edge"]["cpu_seconds"])
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 4 * 400
    dynamics.main(["rules"], None, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    with pytest.raises(InputError, match="experiment: 'edges' is not known .did you mean 'edge'"):
        dynamics.measure(["edges"])
