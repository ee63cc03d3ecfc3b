"""Training: recipes, data, objectives and the loop."""

import importlib
from typing import Any

_HOMES = {
    "Objective": "objectives",
    "create_objective": "objectives",
    "OPTIMIZERS": "optimizers",
    "create_optimizer": "optimizers",
    "Recipe": "recipe",
    "load_recipe": "recipe",
    "Trainer": "trainer",
    "train": "trainer",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:  # on first use: accelerate and diffusers take seconds to import
        return getattr(importlib.import_module(f"genflow.training.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'genflow.training' has no attribute {name!r}")
