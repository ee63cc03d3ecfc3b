"""Going on with an interrupted run, if it is the same run."""

import shutil
from collections.abc import Collection
from pathlib import Path

from genflow.errors import InputError
from genflow.files import write_text
from genflow.training.checkpoints import latest_checkpoint
from genflow.training.recipe import Recipe, load_recipe

__all__ = ["CHECKPOINTS", "keep_recipe", "previous_checkpoint"]

CHECKPOINTS = "checkpoints"
"""The folder of a run's checkpoints, inside the run's own."""

_RECIPE_FILE = "recipe.yaml"


def keep_recipe(out: Path, recipe: Recipe) -> None:
    """Write down in the run's folder what it was begun with."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / _RECIPE_FILE, recipe.to_yaml())


def previous_checkpoint(out: Path, recipe: Recipe, free: Collection[str], restart: bool) -> Path | None:
    """The checkpoint in ``out`` to go on from, None to begin; with ``restart`` what there is goes away.

    Raises:
        InputError: the run in ``out`` has another recipe; the keys ``free`` may differ.
    """
    folder = out / CHECKPOINTS
    if restart:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:
        return None
    before, now = load_recipe(out / _RECIPE_FILE, kind=type(recipe)).model_dump(), recipe.model_dump()
    for key in now:
        if key not in free and before[key] != now[key]:
            raise InputError(
                f"out: {out} holds an interrupted run with another {key!r} ({before[key]}); "
                "allowed: the same recipe, another folder, or --restart"
            )
    return checkpoint
