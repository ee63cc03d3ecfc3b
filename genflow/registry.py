"""One way from a name and options to an object, for every family of classes that has names."""

from collections.abc import Mapping
from typing import Any, TypeVar

from genflow.errors import InputError, check_choice, nearest

__all__ = ["create_by_name"]

T = TypeVar("T")


def create_by_name(kind: str, name: Any, registry: Mapping[str, type[T]], options: Mapping[str, Any]) -> T:
    """``registry[name](**options)``, of classes that list their options in ``option_names``.

    Raises InputError for a name or an option that is not known, with the nearest that is; ``kind`` says what of.
    """
    cls: Any = registry[check_choice(kind, name, registry)]
    for option in options:
        if option not in cls.option_names:
            raise InputError(
                f"{kind} {name!r}: option {option!r} is not known{nearest(option, cls.option_names)}; "
                f"allowed: {', '.join(cls.option_names) or 'none'}"
            )
    return cls(**options)
