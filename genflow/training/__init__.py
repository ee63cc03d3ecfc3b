"""Training: recipes, data, objectives and the loop."""

from genflow.lazy import lazy_exports

_HOMES = {
    "ImageTask": "image_task",
    "Objective": "objectives",
    "create_objective": "objectives",
    "OPTIMIZERS": "optimizers",
    "create_optimizer": "optimizers",
    "Recipe": "recipe",
    "load_recipe": "recipe",
    "Task": "task",
    "Trainer": "trainer",
    "TwoSidedTask": "two_sided",
    "create_task": "run",
    "train": "run",
}

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
