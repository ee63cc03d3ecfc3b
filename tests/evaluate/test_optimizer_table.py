"""The default recipe by each optimizer: rows, their cache, the search of the step size, table and figure."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from genflow.errors import InputError, NonFiniteError
from genflow.evaluate import optimizer_report, optimizer_table, optimizers
from genflow.evaluate.optimizer_table import Protocol, measure
from genflow.options import parse_entries

SMALL = "network.options={patch_size: 4, block_out_channels: [8], layers_per_block: [1], attention_levels: []}"


@pytest.fixture
def protocol(tmp_path):
    """Ten classes of 28 x 28 noise, a network of a few thousand weights, nine updates."""
    generator = np.random.default_rng(0)
    path = tmp_path / "images.npz"
    labels = np.arange(40) % 10
    np.savez(path, images=generator.integers(0, 255, (40, 28, 28, 1), dtype=np.uint8), labels=labels)
    overrides = (SMALL, f"data.source={path}", "batch_size=8", "precision=fp32")
    return Protocol("fashion-mnist", overrides, 9, 3, str(path), 0, 1, "cpu")


def test_a_row_and_its_cache(protocol, tmp_path, monkeypatch):
    entries = parse_entries("--names", "adamw,frugal,mkor-h")
    rows = measure(entries, tmp_path / "out", protocol, progress=False)
    assert [row["optimizer"] for row in rows] == ["adamw", "frugal", "mkor-h"]
    for row in rows:
        assert json.loads(json.dumps(row, allow_nan=False)) == row
        assert len(row["losses"]) == 9
        assert row["train_loss"] == pytest.approx(row["losses"][-1][1])  # a tenth of nine updates is in the last
        assert 0 < row["held_out_loss"] < 10
        assert row["seconds_per_step"] > 0
        tried = {float(lr): loss for lr, loss in row["search"].items()}
        assert tried[row["lr"]] == min(tried.values())
        assert len(tried) == 5 or min(tried) < row["lr"] < max(tried)
    adamw, frugal, _ = rows
    count = adamw["parameter_bytes"]
    assert 2 * count < adamw["state_bytes"] < 2.1 * count
    assert frugal["state_bytes"] < 0.4 * adamw["state_bytes"]
    assert not list((tmp_path / "out").rglob("checkpoints"))

    def forbidden(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(optimizer_table, "train", forbidden)
    assert measure(entries, tmp_path / "out", protocol, progress=False) == rows
    longer = Protocol(**{**protocol.__dict__, "updates": 10})
    with pytest.raises(AssertionError, match="trained again"):
        measure(entries, tmp_path / "out", longer, progress=False)


def test_all_start_alike_and_see_the_same(protocol, tmp_path):
    """The first update's loss is that of the initial weights: equal for all, and another with another seed."""
    entries = parse_entries("--names", "adamw,lion")
    still = Protocol(**{**protocol.__dict__, "updates": 2, "search_updates": 0})
    rows = measure(entries, tmp_path / "out", still, seeds=2, progress=False)
    first = [row["losses"][0][1] for row in rows]
    assert first[0] == first[1] != first[2] == first[3]
    assert [row["lr"] for row in rows] == [2e-3, 2e-4, 2e-3, 2e-4]  # the middle ones


def test_held_out_loss_depends_on_the_network_alone(protocol):
    from genflow.training import create_task, load_recipe

    task = create_task(load_recipe(protocol.recipe, protocol.overrides))
    torch.manual_seed(0)
    network = task.create_network()
    first = optimizer_table.held_out_loss(network, protocol, batches=2, size=16)
    torch.manual_seed(9)
    assert optimizer_table.held_out_loss(network, protocol, batches=2, size=16) == first
    with torch.no_grad():
        for param in network.parameters():
            param.add_(0.1)
    assert optimizer_table.held_out_loss(network, protocol, batches=2, size=16) != first


def test_a_search_goes_beyond_its_ends_and_survives_divergence(protocol, tmp_path, monkeypatch):
    def loss(protocol, entry, lr, out, progress):
        return math.inf if lr > 0.01 else (math.log(lr) - math.log(0.006)) ** 2

    monkeypatch.setattr(optimizer_table, "_short_loss", loss)
    (entry,) = parse_entries("--names", "adamw")
    best, found = optimizer_table._search(protocol, entry, tmp_path, False)
    assert best == 0.008
    assert list(found) == ["0.001", "0.002", "0.004", "0.008", "0.016"]
    assert found["0.016"] is None


def test_a_run_that_diverges_is_a_row(protocol, tmp_path, monkeypatch):
    def diverge(*args, **kwargs):
        raise NonFiniteError("training: the loss is nan")

    monkeypatch.setattr(optimizer_table, "train", diverge)
    quick = Protocol(**{**protocol.__dict__, "search_updates": 0})
    (row,) = measure(parse_entries("--names", "lion"), tmp_path / "out", quick, progress=False)
    assert "nan" in row["error"]
    assert "diverged: 1" in optimizer_report.losses_table([row, {**row, "optimizer": "adamw", "train_loss": 1.0}])


def test_the_mean_over_the_last_tenth():
    """Loss at step s is s: steps 91 to 100 count, the entry at 95 for the five from 91."""
    losses = [[50, 1.0, 0.0], [95, 2.0, 0.0], [100, 4.0, 0.0]]
    assert optimizer_table._final(losses) == pytest.approx((5 * 2.0 + 5 * 4.0) / 10)
    assert optimizer_table._final([[7, 3.0, 0.0]]) == 3.0
    assert optimizer_table._seconds_per_step([[10, 0, 5.0], [60, 0, 15.0], [100, 0, 23.0]]) == pytest.approx(0.2)


def test_table_and_figure(tmp_path):
    def row(name, seed, loss, fd):
        return {
            "optimizer": name, "seed": seed, "lr": 0.002, "weight_decay": 0.01,
            "search": {"0.002": loss, "0.004": None},
            "losses": [[step, loss + 1 / step] for step in range(1, 60)], "train_loss": loss, "held_out_loss": loss,
            "fd": fd, "seconds_per_step": 0.01, "state_bytes": 2_000_000,
        }  # fmt: skip

    rows = [row("adamw", 0, 0.5, 3.0), row("adamw", 1, 0.7, 5.0), row("lion", 0, 0.25, 2.0)]
    table = optimizer_report.losses_table(rows)
    assert "| adamw | 0.002 | 0.002 (0.5000), 0.004 (diverged) | 0.01 | 0.6000 ± 0.1414 |" in table
    assert "| 10.0 | 2.00 |" in table.splitlines()[-1]
    optimizer_report.draw_losses(rows, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 800
    optimizer_report.draw_losses([{**rows[0], "losses": [[1, 1.0]]}], tmp_path / "b.png")


def test_bad_input(protocol, tmp_path):
    with pytest.raises(InputError, match="--names: 'sgd' has no setting here; allowed: adamw, adan"):
        measure(parse_entries("--names", "sgd"), tmp_path, protocol)
    with pytest.raises(InputError, match="--updates: got 0"):
        measure(parse_entries("--names", "lion"), tmp_path, Protocol(**{**protocol.__dict__, "updates": 0}))
    with pytest.raises(InputError, match="unknown key 'batchsize'"):
        optimizers.fashion_mnist(overrides=["batchsize=3"], out=tmp_path, names="lion")
    assert not list(tmp_path.glob("*.json"))


def test_command(protocol, tmp_path, capsys):
    for _ in range(2):  # the second goes on from the first's figures
        optimizers.fashion_mnist(
            updates=2, names="lion", search=0, seeds=1, samples=0, steps=1, device="cpu", out=tmp_path / "out",
            recipe="fashion-mnist", overrides=list(protocol.overrides), test=protocol.test,
            json_file=tmp_path / "rows.json", plot=tmp_path / "a.png",
        )  # fmt: skip
        out = capsys.readouterr().out
        assert "| lion | 0.0002 | none | 0.1 |" in out
        assert "2 updates each, 1 seed(s), on cpu. lr: as set, not searched." in out
        assert json.loads((tmp_path / "rows.json").read_text())["rows"][0]["optimizer"] == "lion"
    assert (tmp_path / "a.png").is_file()
