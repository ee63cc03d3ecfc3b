"""Distillation: from a model of many steps to one of few."""

from genflow.lazy import lazy_exports

_HOMES = {
    "Pairs": "pairs",
    "load_pairs": "pairs",
    "make_pairs": "pairs",
    "ReflowRecipe": "reflow_recipe",
    "ReflowTask": "reflow_task",
    "reflow": "reflow",
}

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
