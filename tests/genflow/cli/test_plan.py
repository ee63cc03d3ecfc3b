"""What is to be made, what is there already, and in which batches: all before a model is loaded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from genflow.cli.plan import (
    Job,
    batches,
    differences,
    jobs,
    override,
    pending,
    request_like,
    share_of,
)
from genflow.errors import InputError
from genflow.images import save_png
from genflow.pipelines.request import Request, Settings

SETTINGS = Settings(
    model="m",
    model_hash="0123456789abcdef",
    scheduler="euler",
    scheduler_options={},
    steps=18,
    guidance="cfg",
    guidance_scale=2.0,
    guidance_options={"interval": (0.1, None)},
    pipeline_options={},
    dtype="float32",
    exact=False,
)


def plan(seeds: list[int], out: Path = Path("out"), **changes: Any) -> list[Job]:
    return jobs(replace(SETTINGS, **changes), seeds, out, [3, 5], {3: "three", 5: "five"})


def make(job: Job, record: dict[str, Any] | None = None) -> None:
    save_png(Image.new("L", (2, 2)), job.path, job.record if record is None else record)


def test_a_class_goes_with_the_seed_not_with_its_place() -> None:
    labels = {job.seed: job.label for job in plan([0, 1, 2, 7])}
    assert labels == {0: 3, 1: 5, 2: 3, 7: 5}
    assert {job.seed: job.label for job in plan([7, 2])} == {7: 5, 2: 3}


def test_record_is_what_a_reader_will_see() -> None:
    (job,) = plan([7])
    assert job.path == Path("out/000007.png")
    assert job.record["guidance_options"] == {"interval": [0.1, None]}
    assert (job.record["class"], job.record["class_name"], job.record["seed"]) == (5, "five", 7)
    assert "prompt" not in job.record
    (job,) = jobs(SETTINGS, [1], Path("out"), prompts=["a", "b"])
    assert (job.prompt, job.record["prompt"], job.record["class"]) == ("b", "b", None)


def test_what_is_there_with_the_same_settings_is_kept(tmp_path: Path) -> None:
    planned = plan([0, 1, 2], tmp_path)
    make(planned[1])
    state = pending(planned)
    assert (state.kept, state.todo) == ([planned[1]], [planned[0], planned[2]])
    assert not state.changed


def test_other_settings_are_made_again_and_named(tmp_path: Path) -> None:
    make(plan([0], tmp_path)[0])
    state = pending(plan([0], tmp_path, steps=9, model_hash="f" * 16))
    assert [job.seed for job in state.todo] == [0]
    assert dict(state.changed) == {"model_hash 0123456789abcdef -> ffffffffffffffff": 1, "steps 18 -> 9": 1}


def test_a_moved_model_and_a_newer_genflow_do_not_count() -> None:
    (job,) = plan([0])
    assert differences(job.record | {"model": "elsewhere", "version": "9"}, job.record) == []
    assert differences(job.record | {"exact": True}, job.record) == []
    assert differences(job.record, job.record | {"exact": True}) == ["exact False -> True"]
    assert differences({}, {"prompt": "a"}) == ["prompt None -> a"]


def test_a_picture_that_is_not_genflows_is_never_written_over(tmp_path: Path) -> None:
    planned = plan([0], tmp_path)
    Image.new("L", (2, 2)).save(planned[0].path)
    with pytest.raises(InputError, match=r"000000\.png exists and was not made by genflow"):
        pending(planned)


def test_an_unreadable_picture_is_made_again(tmp_path: Path) -> None:
    planned = plan([0], tmp_path)
    planned[0].path.write_bytes(b"\x89PNG")
    state = pending(planned)
    assert state.todo == planned
    assert dict(state.changed) == {"unreadable file": 1}


def test_like_gives_the_request_back(tmp_path: Path) -> None:
    (job,) = plan([7], tmp_path)
    make(job)
    request, record = request_like(job.path)
    assert record == job.record
    assert request == Request(
        model="m",
        scheduler="euler",
        steps=18,
        guidance="cfg",
        guidance_scale=2.0,
        guidance_options={"interval": [0.1, None]},
        dtype="float32",
    )


def test_like_refuses_what_has_no_record(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(InputError, match="no such file"):
        request_like(path)
    Image.new("L", (2, 2)).save(path)
    with pytest.raises(InputError, match="carries no genflow record"):
        request_like(path)
    save_png(Image.new("L", (2, 2)), path, {"kind": "grid"})
    with pytest.raises(InputError, match="lacks model, seed"):
        request_like(path)
    save_png(Image.new("L", (2, 2)), path, plan([0])[0].record | {"scheduler_options": 3})
    with pytest.raises(InputError, match="scheduler_options is 3"):
        request_like(path)


def test_override_puts_what_was_said_over_what_was_recorded() -> None:
    request = Request("m", scheduler="heun", scheduler_options={"shift": 2}, steps=18, guidance_scale=2.0)
    assert override(request, steps=None, exact=False, dtype="auto", scheduler_options={}) == request
    assert override(request, steps=0, guidance_scale=0.0) == replace(request, steps=0, guidance_scale=0.0)
    assert override(request, scheduler="euler").scheduler_options == {}
    assert override(request, scheduler="heun").scheduler_options == {"shift": 2}


@settings(deadline=None, max_examples=60)
@given(
    seeds=st.lists(st.integers(0, 99), unique=True, max_size=50),
    rows=st.integers(1, 16),
    exact=st.booleans(),
    count=st.integers(1, 4),
)
def test_every_job_is_in_one_batch_of_one_process(seeds: list[int], rows: int, exact: bool, count: int) -> None:
    planned = plan(seeds)
    shares = [share_of(planned, index, count) for index in range(count)]
    cut = [batch for share in shares for batch in batches(share, rows, exact)]
    assert sorted(job.seed for batch in cut for job, wanted in batch if wanted) == sorted(seeds)
    for batch in cut:
        assert 1 <= len(batch) <= rows
        assert any(wanted for _, wanted in batch)
        if exact:
            assert len(batch) == rows
            assert all(job.seed % rows == row for row, (job, wanted) in enumerate(batch) if wanted)
