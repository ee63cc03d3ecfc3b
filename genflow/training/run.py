"""From a recipe to a finished pipeline."""

from collections.abc import Sequence
from pathlib import Path

from genflow.data import load_images
from genflow.errors import InputError
from genflow.training.image_task import ImageTask
from genflow.training.recipe import Recipe, load_recipe
from genflow.training.records import check_trackers
from genflow.training.task import Task
from genflow.training.trainer import Trainer
from genflow.training.two_sided import load_two_sided

__all__ = ["create_task", "train"]


def train(
    recipe: str | Path | Recipe,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    *,
    restart: bool = False,
    skip_bad: bool = False,
    trackers: Sequence[str] = (),
    progress: bool = True,
) -> Path:
    """Train by a recipe, from the start or from the newest checkpoint in ``out``.

    Of several processes that a launcher started each calls this. They stay joined, for more of the kind; a script's
    last call is :func:`genflow.processes.leave_processes`.

    Args:
        recipe: a shipped recipe's name, a YAML file, or a :class:`Recipe`.
        overrides: ``"optimizer.lr=3e-4"`` and the like.
        out: folder of the run; ``runs/NAME`` by default.
        restart: throw away what ``out`` holds of an earlier run.
        skip_bad: leave unreadable images out instead of refusing them.
        trackers: accelerate's trackers, such as ``"tensorboard"``.
        progress: show a progress bar.

    Returns:
        The folder of the finished pipeline, in diffusers' layout.

    Raises:
        InputError: a recipe or data that cannot be used, or another recipe's run in ``out``.
        NonFiniteError: the loss became NaN or infinite; the last good checkpoint stays.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    if not isinstance(recipe, Recipe):
        name = Path(recipe).stem
        recipe = load_recipe(recipe, overrides)
    else:
        name = "recipe"
    check_trackers(trackers)
    folder = Path(out) if out is not None else Path("runs") / name
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out: {folder} is a file; allowed: a folder, or a name that is free")
    task = create_task(recipe, skip_bad=skip_bad)
    return Trainer(task, folder, restart=restart, trackers=trackers, progress=progress).run()


def create_task(recipe: Recipe, *, skip_bad: bool = False) -> Task:
    """What ``recipe`` trains, with its data loaded; InputError where that cannot be had."""
    if recipe.interpolant is not None:
        return load_two_sided(recipe, skip_bad=skip_bad)
    data = load_images(recipe.data.source, recipe.data.split, skip_bad=skip_bad, classes=recipe.data.classes)
    return ImageTask(recipe, data)
