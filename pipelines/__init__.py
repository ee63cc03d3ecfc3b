"""diffusers pipelines made of genflow's parts."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genflow.pipelines.image import ImagePipeline
    from genflow.pipelines.loading import locate

__all__ = ["ImagePipeline", "locate"]

_HOMES = {"ImagePipeline": "image", "locate": "loading"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:  # on first use, since diffusers takes a while to import
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
