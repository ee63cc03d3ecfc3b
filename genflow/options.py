"""Names with options in one word, as ``ghvb:order=2.7:frame=denoised``: how a person names one of several variants."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from genflow.errors import InputError

__all__ = ["Entry", "parse_entries", "parse_entry", "parse_options"]


@dataclass(frozen=True)
class Entry:
    """A name, its options, and the words that a person wrote for them."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    text: str = ""


def parse_entries(argument: str, text: str) -> list[Entry]:
    """``"euler,ghvb:order=2.7"`` to entries. Commas inside brackets belong to a value, as in ``interval=[0.1, 2]``.

    Raises:
        InputError: an empty word, one said twice, or one that :func:`parse_entry` refuses.
    """
    words = [word.strip() for word in _split(text, ",")]
    for index, word in enumerate(words):
        if not word:
            raise InputError(
                f"{argument}: {text!r} has an empty name; allowed: name[:key=value...], separated by commas"
            )
        if word in words[:index]:
            raise InputError(f"{argument}: {word!r} is given twice")
    return [parse_entry(argument, word) for word in words]


def parse_entry(argument: str, word: str) -> Entry:
    """``"ghvb:order=2.7:frame=denoised"`` to a name and options; values are read as :func:`parse_options` does.

    Raises:
        InputError: no name, or an option that is not of the form key=value.
    """
    name, *options = (part.strip() for part in _split(word, ":"))
    if not name:
        raise InputError(f"{argument}: {word!r} has no name; allowed: name[:key=value...]")
    return Entry(name, parse_options(argument, options), word)


def _split(text: str, separator: str) -> list[str]:
    """Cut at the separators that stand outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def parse_options(argument: str, words: Sequence[str]) -> dict[str, Any]:
    """``["order=2", "interval=[0.1, 2]"]`` to a dict; values are read as YAML, so numbers and lists keep their type.

    Raises:
        InputError: a word without ``=``, a key said twice, a value that is no YAML.
    """
    options: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        key = key.strip()
        if not equals or not key:
            raise InputError(f"{argument}: {word!r} is not of the form key=value")
        if key in options:
            raise InputError(f"{argument}: {key!r} is given twice")
        try:
            options[key] = _scientific(yaml.safe_load(value))
        except yaml.YAMLError:
            raise InputError(f"{argument}: the value of {key!r} cannot be read: {value!r}") from None
    return options


def _scientific(value: Any) -> Any:
    """YAML 1.1 takes 1e-3 for text, since it has no point; a person means the number."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?[eE][+-]?[0-9]+", value):
        return float(value)
    return value
