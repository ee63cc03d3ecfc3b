"""Guidance rules in x0 space, the model that applies them, and ``guide`` for pipelines with a CFG of their own."""

from typing import TYPE_CHECKING

from genflow.guidance.apg import APG
from genflow.guidance.autoguidance import AutoGuidance
from genflow.guidance.base import Guidance
from genflow.guidance.cfg import CFG
from genflow.guidance.guided import GuidedModel
from genflow.guidance.registry import GUIDANCES, create_guidance
from genflow.lazy import lazy_exports

if TYPE_CHECKING:
    from genflow.guidance.attach import check_guidable, guide
    from genflow.guidance.guider import PathGuider

__all__ = [
    "APG",
    "CFG",
    "GUIDANCES",
    "AutoGuidance",
    "Guidance",
    "GuidedModel",
    "PathGuider",
    "check_guidable",
    "create_guidance",
    "guide",
]

_HOMES = {"PathGuider": "guider", "check_guidable": "attach", "guide": "attach"}

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
