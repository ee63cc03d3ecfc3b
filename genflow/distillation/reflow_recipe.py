"""Recipes of reflow: the base recipe's sections, and how pairs are made and flows measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from genflow.errors import InputError
from genflow.training.recipe import DataSection, Recipe, Section, build_recipe, load_recipe

__all__ = ["MeasureSection", "PairsSection", "ReflowRecipe", "load_reflow_recipe"]

Count = Annotated[int, Field(ge=1)]

_DEFAULTS: dict[str, Any] = {
    # Lee et al. 2024: U-shaped times. Labels are not dropped: guidance is in the pairs, and the student needs none.
    "objective": {"times": "u-shaped", "label_dropout": 0.0},
    "optimizer": {"lr": 5e-4, "options": {"betas": [0.9, 0.99]}},
    "schedule": {"warmup_steps": 200},
    "ema": {"decay": 0.999},
    "budget": {"images": 2_000_000},
    "batch_size": 512,
    "sampling": {"scheduler": "euler", "steps": 1},
}


class PairsSection(Section):
    """How noise and images are paired; see :func:`genflow.distillation.make_pairs`, which has the defaults' reasons."""

    count: Count = 50_000
    real: Annotated[int, Field(ge=0)] = Field(0, description="further pairs: images of data, carried to their noise")
    solver: str | None = Field(None, description="a scheduler's name; by default the teacher's own")
    solver_options: dict[str, Any] = Field({})
    steps: Count | None = Field(None, description="by default the teacher's own")
    guidance_scale: float | None = Field(None, description="by default the teacher's own")
    shard_size: Count = 2048
    dtype: Literal["float32", "float16"] = "float32"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    batch_size: Count | None = None


class MeasureSection(Section):
    """How straightness is measured before and after; see :meth:`genflow.distillation.teacher.ODETeacher.measure`."""

    samples: Annotated[int, Field(ge=0)] = Field(256, description="0: not at all")
    steps: Count = 32


class ReflowRecipe(Recipe):
    """One run of reflow. Network and path are the teacher's; ``data`` is for pairs of real images alone."""

    data: DataSection | None = None  # type: ignore[assignment]
    pairs: PairsSection = PairsSection()
    measure: MeasureSection = MeasureSection()
    grid_steps: Count | None = Field(None, description="train at the times of a sampler of so many steps alone")

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        for key in ("network", "path", "interpolant", "coupling"):
            field = type(self).model_fields.get(key)
            if field is not None and getattr(self, key) != field.get_default(call_default_factory=True):
                raise InputError(f"{key}: cannot be set; reflow takes its network and path from the teacher")
        if (self.data is None) != (self.pairs.real == 0):
            given = "given" if self.data else "not given"
            raise InputError(f"pairs.real: {self.pairs.real} with data.source {given}; allowed: both, or neither")
        if self.objective.type != "velocity":
            raise InputError(f"objective.type: {self.objective.type!r}; allowed in reflow: velocity")


def load_reflow_recipe(recipe: str | Path | None = None, overrides: Sequence[str] = ()) -> ReflowRecipe:
    """Reflow's own recipe, or a YAML file of sections that differ from it, with ``overrides`` as in training.

    Raises:
        InputError: as :func:`genflow.training.load_recipe`.
    """
    if recipe is None:
        return build_recipe({}, overrides, ReflowRecipe, _DEFAULTS, "reflow")
    return load_recipe(recipe, overrides, ReflowRecipe, _DEFAULTS)
