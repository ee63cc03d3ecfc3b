"""Pairs of images: each once an epoch, partners by chance, class or name, a function of (seed, step, slot)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genflow.data import ImageData
from genflow.errors import InputError
from genflow.training.pairing import PairStream, align_classes, match_images

CPU = torch.device("cpu")


def numbered(count: int, start: int = 0, labels=None, class_names=None, names=None) -> ImageData:
    """Images of one grey, which is their number; the left column is brighter by one, to tell mirrored ones."""
    images = (torch.arange(count) + start).to(torch.uint8)[:, None, None, None].repeat(1, 1, 2, 2)
    images[..., 0] += 1
    return ImageData(images, None if labels is None else torch.as_tensor(labels), class_names, names)


def numbers(images: torch.Tensor) -> list[int]:
    """The numbers of images, mirrored or not."""
    return ((images + 1) * 127.5).round().amin(dim=(1, 2, 3)).int().tolist()


def mirrored(images: torch.Tensor) -> list[bool]:
    return (images[..., 0] < images[..., 1]).all(dim=(1, 2)).tolist()


def epoch(stream: PairStream) -> list[tuple]:
    return [stream.draw(step, slot) for step in range(len(stream.first) // 6) for slot in range(2)]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from(["independent", "class_wise", "paired"]))
def test_a_function_of_seed_step_and_slot(seed: int, flip: bool, way: str) -> None:
    first, second = numbered(12, labels=[0, 1] * 6), numbered(12, 100, labels=[1, 0, 0] * 4)
    options = {"flip": flip, "paired": way == "paired", "class_wise": way == "class_wise"}
    streams = [PairStream(first, second, seed, 3, 2, CPU, **options) for _ in range(2)]
    ahead = streams[0].draw(5, 1)
    streams[1].draw(0, 0)
    for a, b in zip(ahead[:3], streams[1].draw(5, 1)[:3], strict=True):
        assert a is None or torch.equal(a, b)
    seen = [n for x0, *_ in epoch(streams[0]) for n in numbers(x0)]
    assert sorted(seen) == list(range(12))
    for x0, x1, labels, _ in epoch(streams[0]):
        assert x0.shape == x1.shape == (3, 1, 2, 2)
        if way == "paired":
            assert [n + 100 for n in numbers(x0)] == numbers(x1)
            assert mirrored(x0) == mirrored(x1)
        if way == "class_wise":
            assert labels.tolist() == first.labels[numbers(x0)].tolist()
            assert labels.tolist() == second.labels[[n - 100 for n in numbers(x1)]].tolist()
        else:
            assert labels is None
        assert flip or not any(mirrored(x0) + mirrored(x1))


def test_both_sides_come_once_an_epoch_and_by_chance() -> None:
    stream = PairStream(numbered(12), numbered(12, 100), 3, 3, 2, CPU)
    pairs = [(a, b) for x0, x1, *_ in epoch(stream) for a, b in zip(numbers(x0), numbers(x1), strict=True)]
    assert sorted(b for _, b in pairs) == list(range(100, 112))
    assert sum(b == a + 100 for a, b in pairs) < 6


def test_within_a_class_all_are_drawn_alike() -> None:
    stream = PairStream(
        numbered(4, labels=[0, 1, 0, 1]), numbered(6, 100, labels=[1, 0, 1, 1, 0, 1]), 0, 400, 1, CPU, class_wise=True
    )
    _, x1, labels, _ = stream.draw(0, 0)
    found = torch.tensor(numbers(x1))
    for label, members in ((0, [101, 104]), (1, [100, 102, 103, 105])):
        counts = torch.tensor([int((found == n).sum()) for n in members])
        assert counts.sum() == (labels == label).sum() == 200
        assert (counts / 200 - 1 / len(members)).abs().max() < 0.13  # 4 deviations


def test_flips_half_of_each_side_apart() -> None:
    x0, x1, *_ = PairStream(numbered(50), numbered(50, 100), 0, 400, 1, CPU, flip=True).draw(0, 0)
    a, b = torch.tensor(mirrored(x0)), torch.tensor(mirrored(x1))
    assert 160 < a.sum() < 240
    assert 160 < b.sum() < 240
    assert 60 < (a & b).sum() < 140


def test_a_mirror_has_no_second_side() -> None:
    x0, x1, labels, _ = PairStream(numbered(6, labels=[0, 1] * 3), None, 0, 6, 1, CPU, class_wise=True).draw(0, 0)
    assert x1 is None
    assert labels.tolist() == [n % 2 for n in numbers(x0)]


def test_partners_have_one_name() -> None:
    first = numbered(3, names=("b/1.png", "a/1.png", "a/2.x.png"))
    second = numbered(4, names=("a/2.x.jpg", "a/1.bmp", "c.png", "b/1.png"))
    assert match_images(first, second).tolist() == [3, 1, 0]
    assert match_images(numbered(3), numbered(3)).tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="1 images of data have no partner of their name, as c"):
        match_images(second, numbered(3, names=("a/2.x.png", "a/1.png", "b/1.png")))
    with pytest.raises(InputError, match="two images are called a"):
        match_images(numbered(2, names=("a.png", "a.jpg")), second)
    with pytest.raises(InputError, match="3 images at t = 0 and 4 at t = 1"):
        match_images(numbered(3), second)


def test_classes_correspond_by_name_or_as_chosen() -> None:
    first = numbered(2, labels=[0, 1], class_names=("a", "b"))
    second = numbered(3, labels=[0, 1, 1], class_names=("b", "a"))
    turned = align_classes(first, second, chosen=False)
    assert turned.class_names == ("a", "b")
    assert turned.labels.tolist() == [1, 0, 0]
    assert align_classes(first, second, chosen=True) is second
    other = numbered(2, labels=[0, 1], class_names=("c", "d"))
    assert align_classes(first, other, chosen=True) is other
    with pytest.raises(InputError, match="the same names, or data.classes and interpolant.classes"):
        align_classes(first, other, chosen=False)
    with pytest.raises(InputError, match="2 and 3 classes"):
        align_classes(first, numbered(3, labels=[0, 1, 2]), chosen=True)
    with pytest.raises(InputError, match="class 1 has no image at t = 1"):
        align_classes(first, numbered(2, labels=[0, 0], class_names=("a", "b")), chosen=False)
