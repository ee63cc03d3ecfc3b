"""Guidance rules in x0 space, the model that applies them, and ``guide`` for pipelines with a CFG of their own."""

from typing import TYPE_CHECKING, Any

from genflow.errors import InputError, check_choice, nearest
from genflow.guidance.apg import APG
from genflow.guidance.autoguidance import AutoGuidance
from genflow.guidance.base import Guidance
from genflow.guidance.cfg import CFG
from genflow.guidance.guided import GuidedModel
from genflow.lazy import lazy_exports

if TYPE_CHECKING:
    from genflow.guidance.attach import check_guidable, guide

__all__ = [
    "APG",
    "CFG",
    "GUIDANCES",
    "AutoGuidance",
    "Guidance",
    "GuidedModel",
    "check_guidable",
    "create_guidance",
    "guide",
]

_HOMES = {"check_guidable": "attach", "guide": "attach"}

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)

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
