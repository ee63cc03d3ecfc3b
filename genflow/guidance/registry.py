"""Guidances by name, for configurations and the command line."""

from typing import Any

from genflow.errors import InputError, check_choice, nearest
from genflow.guidance.apg import APG
from genflow.guidance.base import Guidance
from genflow.guidance.cfg import CFG

__all__ = ["GUIDANCES", "create_guidance"]

GUIDANCES: dict[str, type[Guidance]] = {cls.name: cls for cls in (CFG, APG)}
"""Every guidance that a name and options make, by its name."""


def create_guidance(name: str, **options: Any) -> Guidance:
    """The guidance called ``name``; raises InputError for a name or an option it does not know."""
    cls = GUIDANCES[check_choice("guidance", name, GUIDANCES)]
    for option in options:
        if option not in cls.option_names:
            raise InputError(
                f"guidance {name!r}: option {option!r} is not known{nearest(option, cls.option_names)}; "
                f"allowed: {', '.join(cls.option_names)}"
            )
    return cls(**options)
