"""Training: recipes, data, objectives and the loop."""

from genflow.lazy import lazy_exports

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

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
