"""diffusers pipelines made of genflow's parts."""

from typing import TYPE_CHECKING

from genflow.lazy import lazy_exports

if TYPE_CHECKING:
    from genflow.pipelines.image import ImagePipeline
    from genflow.pipelines.loading import locate
    from genflow.pipelines.one_step import OneStepPipeline

__all__ = ["ImagePipeline", "OneStepPipeline", "locate"]

_HOMES = {"ImagePipeline": "image", "OneStepPipeline": "one_step", "locate": "loading"}

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
