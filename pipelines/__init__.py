"""diffusers pipelines made of genflow's parts."""

from typing import TYPE_CHECKING

from genflow.lazy import lazy_exports

if TYPE_CHECKING:
    from genflow.pipelines.image import ImagePipeline
    from genflow.pipelines.loading import locate
    from genflow.pipelines.one_step import OneStepPipeline
    from genflow.pipelines.translation import TranslationPipeline

__all__ = ["ImagePipeline", "OneStepPipeline", "TranslationPipeline", "locate"]

_HOMES = {
    "ImagePipeline": "image",
    "OneStepPipeline": "one_step",
    "TranslationPipeline": "translation",
    "locate": "loading",
}

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
