"""From a trained network to pictures and to a pipeline in diffusers' layout."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from genflow.data import ImageData
from genflow.errors import check_keys
from genflow.files import atomic_folder
from genflow.images import to_pil
from genflow.schedulers import (
    BetaFamily,
    EDMFamily,
    Family,
    FlowFamily,
    InterpolantFamily,
    PFGMPlusPlusScheduler,
    RectifiedFlowScheduler,
)
from genflow.training.recipe import Recipe
from genflow.training.records import save_grid

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from genflow.pipelines import ImagePipeline

__all__ = ["build_pipeline", "sample_grid", "save_pipeline", "training_family"]

# the family of each path, and the keys that make it this path
_FAMILIES: dict[str, tuple[type[Family], dict[str, Any]]] = {
    "linear": (FlowFamily, {"D": None}),
    "trigonometric": (
        InterpolantFamily,
        {"interpolant": "trigonometric", "timestep_scale": 1000.0, "reversed_time": False, "D": None},
    ),
    "vp": (BetaFamily, {"D": None}),
    "edm": (EDMFamily, {"D": None}),
    "pfgm++": (EDMFamily, {}),
}
_GRID_ROWS = 8


def training_family(recipe: Recipe) -> Family:
    """The recipe's path and network as diffusers' scheduler configs describe them.

    Training goes along its path, and the finished scheduler is made from its config.
    """
    kind = recipe.path.type
    cls, fixed = _FAMILIES[kind]
    fixed = {**fixed, "prediction_type": _prediction_type(kind, recipe.objective.type)}
    check_keys("path.options", recipe.path.options, [key for key in cls.defaults if key not in fixed])
    given = {key: value for key, value in recipe.path.options.items() if value is not None}
    defaults = PFGMPlusPlusScheduler.family_defaults if kind == "pfgm++" else {}
    return cls({**defaults, **given, **fixed})


def _prediction_type(path: str, objective: str) -> str:
    """What a network trained by ``objective`` gives, in diffusers' words."""
    if objective == "velocity":
        return "v_prediction" if path == "trigonometric" else "flow_prediction"
    # the network inside EDM's preconditioning is diffusers' "epsilon"
    return "epsilon" if objective in ("edm", "pfgm++") else objective


def build_pipeline(network: nn.Module, recipe: Recipe, data: ImageData) -> "ImagePipeline":
    """The pipeline that samples ``network`` with the recipe's defaults."""
    from genflow.pipelines import ImagePipeline

    sampling = recipe.sampling
    cls = PFGMPlusPlusScheduler if recipe.path.type == "pfgm++" else RectifiedFlowScheduler
    scheduler = cls.from_config(training_family(recipe).config, solver=sampling.scheduler)
    return ImagePipeline(
        unet=network,
        scheduler=scheduler,
        class_names=list(data.class_names) if data.class_names else None,
        default_steps=sampling.steps,
        default_guidance_scale=sampling.guidance_scale,
        default_guidance_interval=list(sampling.guidance_interval) if sampling.guidance_interval else None,
    )


def sample_grid(pipeline: "ImagePipeline", path: Path) -> None:
    """A sheet of samples, one class a column, from seeds that never change, so that sheets compare."""
    classes = pipeline.num_classes
    columns = min(classes, 16) if classes else _GRID_ROWS
    count = _GRID_ROWS * columns
    pipeline.set_progress_bar_config(disable=True)
    labels = [index % columns for index in range(count)] if classes else None
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    images = pipeline(class_labels=labels, batch_size=count, generator=generators, output_type="pt").images
    save_grid(to_pil(images * 2 - 1), path, columns)


def save_pipeline(pipeline: "DiffusionPipeline", folder: Path) -> None:
    """Write the pipeline to ``folder``, whole or not at all."""
    with atomic_folder(folder) as temporary:
        pipeline.save_pretrained(temporary, safe_serialization=True)
