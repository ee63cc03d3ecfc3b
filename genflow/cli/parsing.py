"""Command-line words to values: seeds and classes (``key=value`` options: genflow.options). Every refusal is one clear
InputError."""

import re
from collections.abc import Iterable, Mapping

from genflow.errors import InputError, nearest
from genflow.options import parse_options

__all__ = ["MAX_SEED", "format_seeds", "parse_classes", "parse_options", "parse_seeds"]

MAX_SEED = 2**63 - 1
"""The largest seed that ``torch.Generator.manual_seed`` and a JSON reader both take as an integer."""

_MAX_COUNT = 10_000_000  # a slip of the keyboard such as 0-99999999999 must not fill the memory


def parse_seeds(text: str) -> list[int]:
    """``"0-63,100"`` to ``[0, 1, ..., 63, 100]``: numbers and inclusive ranges; a seed said twice counts once.

    Raises:
        InputError: an empty list, something that is neither a number nor a range, a range that runs backwards,
            a seed above ``MAX_SEED`` or more than ten million of them.
    """
    seeds: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]+)\s*(?:-\s*([0-9]+)\s*)?", part)
        if not match:
            raise InputError(
                f"--seeds: {part.strip()!r} in {text!r} is no seed; allowed: numbers and ranges, as 0-63,100"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise InputError(f"--seeds: the range {part.strip()} runs backwards; write {last}-{first}")
        if last > MAX_SEED:
            raise InputError(f"--seeds: {last} is too large; allowed: 0 to {MAX_SEED}")
        if last - first + len(seeds) >= _MAX_COUNT:
            raise InputError(f"--seeds: {text!r} names more than {_MAX_COUNT:,} seeds")
        seeds.update(dict.fromkeys(range(first, last + 1)))
    return list(seeds)


def format_seeds(seeds: Iterable[int]) -> str:
    """The shortest text that ``parse_seeds`` reads as these seeds, in rising order: ``"0-63,100"``."""
    runs: list[list[int]] = []
    for seed in sorted(set(seeds)):
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def parse_classes(text: str, num_classes: int, names: Mapping[str, int]) -> list[int]:
    """``"sneaker,8"`` to class numbers; ``"all"`` is every class in turn. Ranges of numbers work as in seeds.

    Args:
        text: names (case does not matter) and numbers, separated by commas.
        num_classes: how many classes the model knows; numbers run from 0 to ``num_classes - 1``.
        names: the number of each class that has a name.

    Raises:
        InputError: an unknown class; the message lists the known ones.
    """
    if text.strip().lower() == "all":
        return list(range(num_classes))
    known = {name.lower(): number for name, number in names.items()}
    classes: list[int] = []
    for part in text.split(","):
        word = part.strip().lower()
        span = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", word)
        if word in known:
            classes.append(known[word])
        elif span and int(span[1]) <= int(span[2] or span[1]) < num_classes:
            classes.extend(range(int(span[1]), int(span[2] or span[1]) + 1))
        else:
            shown = [*list(names)[:20], *(["..."] if len(names) > 20 else []), f"numbers 0 to {num_classes - 1}"]
            hint = nearest(word, known)
            raise InputError(f"--classes: {part.strip()!r} is not known{hint}; allowed: {', '.join(shown)}")
    return classes
