"""Decoding ahead: what comes out does not depend on how it is done; what goes wrong is named and leaves nothing."""

import gc
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from genflow.errors import InputError
from genflow.evaluate.sources import decode, open_source
from genflow.evaluate.sources.arrays import ArraySource
from genflow.evaluate.sources.figures import FIGURES, figures_of
from genflow.evaluate.sources.pixels import ALPHA_DROPPED, Picture
from genflow.evaluate.sources.source import Source
from genflow.images import UnreadableImageError
from genflow.metrics.image_statistics import clipped_share, colourfulness, contrast, saturation


def prepare(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)


def shrunk(array: np.ndarray) -> torch.Tensor:
    """Any size and number of channels to one shape."""
    return torch.from_numpy(array).float().mean((0, 1)).mean().reshape(1, 1, 1)


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("genflow-decode")]


def all_ended() -> bool:
    """Workers of a generator that was closed end by themselves, after the image at hand."""
    for thread in decoding_threads():
        thread.join(10)
    return not decoding_threads()


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    gc.collect()
    assert all_ended()


@pytest.fixture
def source() -> ArraySource:
    return ArraySource(np.random.default_rng(0).integers(0, 256, (23, 5, 4, 3), dtype=np.uint8), "made")


class Faulty(Source):
    """Images of which some cannot be read; counts how many were asked for."""

    def __init__(self, count: int, bad: set[int]) -> None:
        self.name, self.names, self.bad, self.asked = "faulty", tuple(map(str, range(count))), bad, 0

    def picture(self, index: int) -> Picture:
        self.asked += 1
        if index in self.bad:
            raise UnreadableImageError(f"place {index}", "broken")
        return Picture(np.full((2, 2, 1), index % 256, np.uint8), (ALPHA_DROPPED,) if index % 2 else ())

    def content_hash(self, indices=None) -> str:
        return ""


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(0, 40),
    bad=st.sets(st.integers(0, 39), max_size=10),
    batch_size=st.integers(1, 17),
    workers=st.integers(0, 4),
    seed=st.integers(0, 1000),
)
def test_order_batches_and_workers_change_nothing(count, bad, batch_size, workers, seed) -> None:
    order = np.random.default_rng(seed).permutation(count).tolist()
    good = [place for place, index in enumerate(order) if index not in bad]
    options = {"batch_size": batch_size, "workers": workers, "skip_bad": True}
    if count and not good:
        with pytest.raises(InputError, match="none of"):
            list(decode(Faulty(count, bad), order, prepare, **options))
        return
    batches = list(decode(Faulty(count, bad), order, prepare, **options))
    assert [place for batch in batches for place in batch.positions] == good
    images = [image for batch in batches for image in batch.images]
    assert [int(image[0, 0, 0]) for image in images] == [order[place] for place in good]
    wrong = [(f"place {index}", "broken") for index in order if index in bad]
    assert [entry for batch in batches for entry in batch.bad] == wrong
    assert sum(batch.notes.get(ALPHA_DROPPED, 0) for batch in batches) == sum(order[place] % 2 for place in good)
    assert len(batches) == -(-count // batch_size)
    for batch in batches:
        assert len(batch.images) == len(batch.positions)
        assert {len(values) for values in batch.statistics.values()} == {len(batch.positions)}


def test_figures_are_those_of_the_unresized_pictures(source) -> None:
    batches = list(decode(source, [4, 2, 9], shrunk, batch_size=2))
    images = torch.from_numpy(source.array[[4, 2, 9]]).permute(0, 3, 1, 2).float() / 127.5 - 1
    for name, figure in (
        ("saturation", saturation),
        ("contrast", contrast),
        ("colourfulness", colourfulness),
        ("clipped_share", clipped_share),
    ):
        found = torch.cat([batch.statistics[name] for batch in batches])
        torch.testing.assert_close(found, figure(images), rtol=1e-5, atol=1e-6)
    assert set(FIGURES) == set(batches[0].statistics)


def test_figures_of_many_sizes_keep_their_order(monkeypatch) -> None:
    monkeypatch.setattr("genflow.evaluate.sources.figures._VALUES", 40)
    generator = np.random.default_rng(1)
    shapes = [(2, 3, 1), (2, 3, 1), (4, 4, 3), (2, 3, 1), (5, 2, 3), (5, 2, 3), (5, 2, 3), (1, 1, 1)]
    arrays = [generator.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    found = figures_of(arrays)
    for index, array in enumerate(arrays):
        alone = figures_of([array])
        for name in FIGURES:
            torch.testing.assert_close(found[name][index : index + 1], alone[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_first_bad_image_is_named_and_the_rest_is_not_read(workers) -> None:
    faulty = Faulty(4_000, {777, 778, 3_000})
    with pytest.raises(UnreadableImageError, match=r"^place 777: unreadable image \(broken\).*--skip-bad$"):
        for _ in decode(faulty, range(4_000), prepare, batch_size=50, workers=workers):
            pass
    assert all_ended()
    assert faulty.asked < 1_000
    skipped = [b for batch in decode(faulty, range(4_000), prepare, workers=workers, skip_bad=True) for b in batch.bad]
    assert skipped == [(f"place {index}", "broken") for index in (777, 778, 3_000)]


def test_no_more_than_two_batches_are_made_ahead() -> None:
    faulty = Faulty(1_000, set())
    batches = decode(faulty, range(1_000), prepare, batch_size=10, workers=4)
    for taken in range(1, 20):
        next(batches)
        time.sleep(0.005)
        assert faulty.asked <= 10 * (taken + 2)
    batches.close()


def test_a_batch_taken_in_part_or_left_ends_the_threads(source) -> None:
    batches = decode(source, range(23), prepare, batch_size=4, workers=2)
    next(batches)
    assert decoding_threads()
    batches.close()
    assert all_ended()
    next(decode(source, range(23), prepare, batch_size=4, workers=2))
    gc.collect()
    assert all_ended()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_whatever_interrupts_ends_the_threads(source, error) -> None:
    def interrupted(array: np.ndarray) -> torch.Tensor:
        if np.array_equal(array, source.array[9]):
            raise error("stop")
        return prepare(array)

    with pytest.raises(error):
        list(decode(source, range(23), interrupted, batch_size=4, workers=2))
    assert all_ended()

    def taken() -> None:
        for _ in decode(source, range(23), prepare, batch_size=4, workers=2):
            raise error("by whoever takes them")

    with pytest.raises(error):
        taken()
    gc.collect()
    assert all_ended()


def test_a_size_that_prepare_does_not_take_names_the_image() -> None:
    def fixed(array: np.ndarray) -> torch.Tensor:
        if array.shape != (2, 2, 1) or array[0, 0, 0] == 7:
            raise InputError("images: got 7x7; the network takes 2x2")
        return prepare(array)

    with pytest.raises(InputError, match=r"^7: images: got 7x7; the network takes 2x2$"):
        list(decode(Faulty(9, set()), range(9), fixed, skip_bad=True))


def test_the_first_odd_size_is_named_with_both_sizes(tmp_path) -> None:
    for index, size in enumerate([(3, 4), (3, 4), (5, 2), (9, 9)]):
        Image.new("L", size).save(tmp_path / f"{index}.png")
    folder = open_source(tmp_path)
    message = r"2\.png: 5x2 pixels, where .*0\.png has 3x4 pixels; allowed: one size, or features that resize"
    for batch_size in (1, 2, 9):
        with pytest.raises(InputError, match=message):
            list(decode(folder, range(4), prepare, batch_size=batch_size, skip_bad=True))
    assert len(next(decode(folder, range(4), shrunk)).positions) == 4
    Image.new("RGB", (3, 4)).save(tmp_path / "1.png")
    with pytest.raises(InputError, match=r"1\.png: \(3, 4, 3\) as prepared, where .*0\.png has \(1, 4, 3\)"):
        list(decode(open_source(tmp_path), range(4), prepare))


def test_workers_use_one_thread_of_torch_and_leave_the_others_alone(source) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    seen = set()

    def watched(array: np.ndarray) -> torch.Tensor:
        seen.add(torch.get_num_threads())
        return prepare(array)

    try:
        for _ in decode(source, range(23), watched, batch_size=4, workers=2):
            assert torch.get_num_threads() == 3
        assert seen == {1}
        fresh = []
        thread = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert fresh == [3]
    finally:
        torch.set_num_threads(before)


def test_a_machine_without_more_threads_is_not_waited_for(source, monkeypatch) -> None:
    start, started = threading.Thread.start, []

    def scarce(thread: threading.Thread) -> None:
        started.append(thread)
        if len(started) > 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", scarce)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        list(decode(source, range(23), prepare, workers=4))
    assert all_ended()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"batch_size": 1.5}, "batch_size: got 1.5"),
        ({"workers": -1}, "workers: got -1"),
        ({"indices": [0, 23]}, "indices: 0 to 23; allowed: 0 to 22"),
        ({"indices": [-1]}, "indices: -1"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(source, options, message) -> None:
    with pytest.raises(InputError, match=message):
        decode(source, **{"indices": [0], "prepare": prepare, **options})


def test_none_readable_is_an_error() -> None:
    with pytest.raises(InputError, match="none of 3 images could be read; the first: place 0: broken"):
        list(decode(Faulty(3, {0, 1, 2}), range(3), prepare, batch_size=2, skip_bad=True))


def test_closing_waits_for_no_worker() -> None:
    """The garbage collector may close it under locks that a worker's end needs."""
    let_go = threading.Event()

    class Slow(Faulty):
        def picture(self, index: int) -> Picture:
            if index >= 4:
                let_go.wait(60)
            return Picture(np.zeros((2, 2, 1), np.uint8), ())

    batches = decode(Slow(20, set()), range(20), prepare, batch_size=4, workers=1)
    next(batches)
    closing = threading.Thread(target=batches.close)
    closing.start()
    closing.join(30)
    closed, busy = not closing.is_alive(), bool(decoding_threads())
    let_go.set()
    assert closed
    assert busy
