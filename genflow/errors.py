"""Errors that a person can act on, and the checks that raise them.

Every check runs before any work starts. The message names the argument, what came and what is allowed;
the command line prints it as one line and exits with status 2.
"""

import difflib
import math
from collections.abc import Iterable

__all__ = [
    "DivergedError",
    "InputError",
    "NonFiniteError",
    "check_choice",
    "check_flag",
    "check_keys",
    "check_number",
    "nearest",
]


class InputError(ValueError):
    """The caller's input is at fault: an argument, a file, a configuration."""


class NonFiniteError(RuntimeError):
    """A network gave NaN or infinity; the message names the step."""


class DivergedError(RuntimeError):
    """Training has gone where it does not come back from, with finite numbers; the message names the cause."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the closest known name, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def check_choice(argument: str, value: str, allowed: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``allowed``; otherwise raise InputError naming the nearest."""
    allowed = list(allowed)
    if value not in allowed:
        hint = nearest(str(value), allowed)
        raise InputError(f"{argument}: {value!r} is not known{hint}; allowed: {', '.join(allowed)}")
    return value


def check_flag(argument: str, value: bool) -> bool:
    """Return ``value`` if it is True or False; otherwise raise InputError."""
    if not isinstance(value, bool):
        raise InputError(f"{argument}: got {value!r}; allowed: True, False")
    return value


def check_keys(section: str, keys: Iterable[str], known: Iterable[str]) -> None:
    """Raise InputError for the first of ``keys`` that is not ``known``, with the nearest that is."""
    known = list(known)
    for key in keys:
        if key not in known:
            raise InputError(f"{section}: unknown key {key!r}{nearest(key, known)}; known: {', '.join(known)}")


def check_number(
    argument: str,
    value: float,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
    integer: bool = False,
) -> float:
    """Return ``value`` if it is a finite number inside the bounds; otherwise raise InputError."""
    rules = []
    if math.isfinite(above):
        rules.append(f"> {above:g}")
    if math.isfinite(at_least):
        rules.append(f">= {at_least:g}")
    if math.isfinite(at_most):
        rules.append(f"<= {at_most:g}")
    if math.isfinite(below):
        rules.append(f"< {below:g}")
    allowed = ("an integer " if integer else "a finite number ") + " and ".join(rules)
    number = not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)
    if not number or (integer and int(value) != value):
        raise InputError(f"{argument}: got {value!r}; allowed: {allowed.strip()}")
    if not (value > above and value >= at_least and value <= at_most and value < below):
        raise InputError(f"{argument}: got {value!r}; allowed: {allowed.strip()}")
    return value
