"""Guidances by name, for configurations and the command line."""

from typing import Any

from genflow.guidance.apg import APG
from genflow.guidance.base import Guidance
from genflow.guidance.cfg import CFG
from genflow.registry import create_by_name

__all__ = ["GUIDANCES", "create_guidance"]

GUIDANCES: dict[str, type[Guidance]] = {cls.name: cls for cls in (CFG, APG)}
"""Every guidance that a name and options make, by its name."""


def create_guidance(name: str, **options: Any) -> Guidance:
    """The guidance called ``name``; raises InputError for a name or an option it does not know."""
    return create_by_name("guidance", name, GUIDANCES, options)
