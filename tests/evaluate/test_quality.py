"""Quality per evaluation, on a tiny untrained network: what is measured, kept, compared and drawn."""

import json
import shutil

import pytest
import torch
from PIL import Image

from genflow.errors import InputError
from genflow.evaluate import quality, quality_report
from genflow.models import LeanUNet2DModel
from genflow.options import parse_entries
from genflow.pipelines import ImagePipeline
from genflow.schedulers import RectifiedFlowScheduler

SCHEDULERS = "euler,heun,FlowMatchEulerDiscreteScheduler,FlowMatchHeunDiscreteScheduler,UniPCMultistepScheduler"
SMALL = {"samples": 3, "compared": 2, "solution_steps": 6, "progress": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A saved pipeline that the Fashion-MNIST reference can judge, with random weights."""
    torch.manual_seed(0)
    network = LeanUNet2DModel(
        num_classes=10, block_out_channels=(16,), layers_per_block=1, attention_levels=(), time_embed_dim=32
    )
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    ImagePipeline(network, RectifiedFlowScheduler(), class_names=list("abcdefghij")).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def measured(model, tmp_path_factory):
    """The JSONL file of a small run, and the rows it gave."""
    file = tmp_path_factory.mktemp("rows") / "quality.jsonl"
    return file, quality.measure(file, parse_entries("--x", SCHEDULERS), [3, 4], model=model, **SMALL)


def by_name(rows):
    return {(row["scheduler"], row["count"]): row for row in rows}


def test_rows_say_what_was_measured(measured):
    file, rows = measured
    assert [json.loads(line) for line in file.read_text().splitlines()] == rows
    assert [(row["scheduler"], row["count"]) for row in rows] == [
        (name, count) for name in SCHEDULERS.split(",") for count in (3, 4)
    ]
    found = by_name(rows)
    assert [found["heun", count]["steps"] for count in (3, 4)] == [2, 2]
    assert [found["heun", count]["evaluations"] for count in (3, 4)] == [3, 3]
    assert found["euler", 4]["evaluations"] == 4
    for row in rows:
        assert row["fd"] > 0
        assert 0 < row["distance"] <= row["distance_largest"]
        assert row["ours"] is (row["scheduler"] in ("euler", "heun"))
        assert row["protocol"]["samples"] == 3


@pytest.mark.parametrize(
    ("ours", "peer"), [("euler", "FlowMatchEulerDiscreteScheduler"), ("heun", "FlowMatchHeunDiscreteScheduler")]
)
def test_the_grid_is_the_same_for_ours_and_theirs(measured, ours, peer):
    """The same rule on the same grid is the same figure."""
    found = by_name(measured[1])
    for count in (3, 4):
        for measure in ("distance", "fd"):
            assert found[ours, count][measure] == pytest.approx(found[peer, count][measure], rel=1e-3)


def test_a_stopped_run_goes_on(measured, model, tmp_path, monkeypatch):
    file, rows = measured
    copy = tmp_path / file.name
    lines = file.read_text().splitlines(keepends=True)
    copy.write_text("".join(lines[:-2]) + lines[-2][:40])  # stopped while it wrote
    shutil.copy(file.with_name("quality-solution.safetensors"), tmp_path)
    runs = []
    sample = quality._sample
    monkeypatch.setattr(quality, "_sample", lambda *a: runs.append(a[2]) or sample(*a))
    again = quality.measure(copy, parse_entries("--x", SCHEDULERS), [3, 4], model=model, **SMALL)
    assert runs == [3, 4]  # UniPC's two rows; the solution is kept
    for old, new in zip(rows, again, strict=True):
        assert {**new, "seconds": 0} == {**old, "seconds": 0}
    assert len(copy.read_text().splitlines()) == len(rows) + 1  # with the cut one
    runs.clear()
    quality.measure(copy, parse_entries("--x", "euler"), [4], model=model, **{**SMALL, "samples": 2})
    assert runs == [4]  # another protocol is measured anew, to the same solution


def test_a_network_that_gives_nan_leaves_a_row(measured, model, tmp_path, monkeypatch):
    file = tmp_path / "quality.jsonl"
    shutil.copy(measured[0].with_name("quality-solution.safetensors"), tmp_path)

    def fail(*arguments):
        raise quality.NonFiniteError("the network gave NaN at step 1")

    monkeypatch.setattr(quality, "_sample", fail)
    (row,) = quality.measure(file, parse_entries("--x", "euler"), [4], model=model, **SMALL)
    assert row["error"] == "the network gave NaN at step 1"
    result = quality_report.summary([row])
    assert "| euler | failed |" in quality_report.markdown(result)


def test_refuses_before_any_work(model, tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "_sample", lambda *a: pytest.fail("sampled"))
    file = tmp_path / "rows.jsonl"
    for schedulers, options, says in (
        ("oiler", {}, "scheduler: 'oiler' is not known"),
        ("euler", {"solution": "oiler"}, "scheduler: 'oiler' is not known"),
        ("euler", {"samples": 1}, "--samples: got 1"),
        ("euler", {"compared": 4}, "--compared: got 4"),
    ):
        with pytest.raises(InputError, match=says):
            quality.measure(file, parse_entries("--x", schedulers), [4], model=model, **{**SMALL, **options})
    with pytest.raises(InputError, match="--counts: '4,x'"):
        quality.main(counts="4,x", model=model)
    assert not file.exists()


def row(scheduler, count, ours, **figures):
    return {"scheduler": scheduler, "count": count, "evaluations": count, "ours": ours, "protocol": {}, **figures}


def test_summary_finds_the_best_of_each_side():
    rows = [
        row("a", 4, True, fd=3.0, distance=0.2),
        row("b:order=2", 4, True, fd=1.0, distance=0.4),
        row("UniPCMultistepScheduler:solver_order=3", 4, False, fd=2.0, distance=0.1),
        row("DEISMultistepScheduler", 4, False, error="NaN"),
    ]
    result = quality_report.summary(rows)
    assert [(best["measure"], best["ours"]["scheduler"], best["ratio"]) for best in result["best"]] == [
        ("fd", "b:order=2", 0.5),
        ("distance", "a", 2.0),
    ]
    text = quality_report.markdown(result)
    for line in (
        "| b order=2 | **1** |",
        "| diffusers UniPC solver_order=3 | **2** |",
        "| best of ours / best of diffusers | 0.50 |",
        "| best of ours / best of diffusers | 2.00 |",
    ):
        assert line in text.splitlines()


def test_the_command_prints_writes_and_draws(measured, model, tmp_path, capsys):
    file, rows = measured
    quality.main(
        schedulers=SCHEDULERS, counts="3,4", samples=3, compared=2, solution_steps=6, model=model, file=file,
        json_file=tmp_path / "q.json", plot=tmp_path / "q.png",
    )  # fmt: skip
    assert "| best of ours / best of diffusers |" in capsys.readouterr().out
    result = json.loads((tmp_path / "q.json").read_text())
    assert len(result["rows"]) == len(rows)
    assert result["protocol"] == rows[0]["protocol"]
    with Image.open(tmp_path / "q.png") as picture:
        assert picture.size[0] > 500
    assert (tmp_path / "q.png").stat().st_size < 200_000
