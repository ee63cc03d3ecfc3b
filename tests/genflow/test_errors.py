"""The checks name the argument, the value and what is allowed."""

import math

import pytest

from genflow.errors import InputError, check_choice, check_number, nearest


def test_nearest() -> None:
    assert nearest("hoin", ["heun", "euler"]) == " (did you mean 'heun'?)"
    assert nearest("xyzzy", ["heun", "euler"]) == ""


def test_check_choice() -> None:
    assert check_choice("--solver", "heun", ["heun", "euler"]) == "heun"
    with pytest.raises(
        InputError, match=r"--solver: 'hein' is not known \(did you mean 'heun'\?\); allowed: heun, euler"
    ):
        check_choice("--solver", "hein", ["heun", "euler"])


def test_check_number_accepts_the_ends_it_should() -> None:
    assert check_number("x", 1, at_least=1, at_most=1, integer=True) == 1
    assert check_number("x", 0.5, above=0, below=1) == 0.5


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "1", None, True, 1.5])
def test_check_number_refuses(value: object) -> None:
    with pytest.raises(InputError, match=r"steps: got .*allowed: an integer >= 1"):
        check_number("steps", value, at_least=1, integer=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("bounds", [{"above": 1}, {"below": 1}, {"at_least": 1.1}, {"at_most": 0.9}])
def test_check_number_bounds(bounds: dict[str, float]) -> None:
    with pytest.raises(InputError, match="got 1"):
        check_number("x", 1, **bounds)
