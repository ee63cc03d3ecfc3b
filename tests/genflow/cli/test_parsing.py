"""Words of the command line to values and back; every refusal names what was wrong and what is allowed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genflow.cli.parsing import MAX_SEED, format_seeds, parse_classes, parse_options, parse_seeds
from genflow.errors import InputError
from genflow.pipelines.runners import scheduler_name
from genflow.schedulers import SCHEDULERS, create_scheduler

NAMES = {"t-shirt": 0, "Trouser": 1, "ankle-boot": 2}


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("0", [0]),
        ("0-3", [0, 1, 2, 3]),
        ("0-2,100", [0, 1, 2, 100]),
        (" 5 , 1 - 3 ", [5, 1, 2, 3]),
        ("3,1-3,3", [3, 1, 2]),
        (str(MAX_SEED), [MAX_SEED]),
    ],
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1,,2", "-1", "1-", "0-1-2", "1.5", "0 1", "٣"])
def test_bad_seeds(text: str) -> None:
    with pytest.raises(InputError, match="--seeds"):
        parse_seeds(text)


def test_backward_range_is_named_with_its_mend() -> None:
    with pytest.raises(InputError, match=r"5-1 runs backwards; write 1-5"):
        parse_seeds("0,5-1")


def test_too_many_or_too_large_seeds_are_refused_at_once() -> None:
    with pytest.raises(InputError, match="more than"):
        parse_seeds("0-99999999999")
    with pytest.raises(InputError, match="too large"):
        parse_seeds(str(MAX_SEED + 1))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=60))
def test_seeds_round_trip(seeds: list[int]) -> None:
    assert parse_seeds(format_seeds(seeds)) == sorted(set(seeds))


@pytest.mark.parametrize(
    ("text", "classes"),
    [("all", [0, 1, 2]), ("trouser", [1]), ("2,T-Shirt", [2, 0]), ("0-1,ankle-boot", [0, 1, 2]), ("1,1", [1, 1])],
)
def test_classes(text: str, classes: list[int]) -> None:
    assert parse_classes(text, 3, NAMES) == classes


@pytest.mark.parametrize("text", ["3", "0-3", "2-1", "", "shoe", "-1"])
def test_unknown_class_lists_the_known_ones(text: str) -> None:
    with pytest.raises(InputError, match=r"t-shirt, Trouser, ankle-boot, numbers 0 to 2"):
        parse_classes(text, 3, NAMES)


def test_misspelt_class_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'trouser'"):
        parse_classes("trowser", 3, NAMES)


def test_classes_without_names() -> None:
    assert parse_classes("all", 2, {}) == [0, 1]
    with pytest.raises(InputError, match="allowed: numbers 0 to 1"):
        parse_classes("cat", 2, {})


def test_options_keep_their_types() -> None:
    words = ["order=2", "shift=1.5", "karras=true", "interval=[0.1, 2]", "name=heun", "tiny=1e-3", "none=null", "t=a=b"]
    assert parse_options("--x", words) == {
        "order": 2,
        "shift": 1.5,
        "karras": True,
        "interval": [0.1, 2],
        "name": "heun",
        "tiny": 1e-3,
        "none": None,
        "t": "a=b",
    }


@pytest.mark.parametrize("words", [["order"], ["=2"], ["a=1", "a=2"], ["a=[1"]])
def test_bad_options(words: list[str]) -> None:
    with pytest.raises(InputError, match="--x"):
        parse_options("--x", words)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_is_known_by_the_short_name_that_made_it(name: str) -> None:
    assert scheduler_name(create_scheduler(name)) == name
