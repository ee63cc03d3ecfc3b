"""genflow: any model x any path x any solver x any guidance, for diffusion and flow models.

Subpackages load on first use, so that ``import genflow`` costs next to nothing.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

_SUBMODULES = (
    "assets",
    "data",
    "distillation",
    "evaluate",
    "guidance",
    "images",
    "interpolants",
    "metrics",
    "models",
    "optim",
    "paths",
    "pipelines",
    "precision",
    "prediction",
    "sampling",
    "schedulers",
    "solvers",
    "training",
    "transport",
)

__all__ = ["__version__", *_SUBMODULES]


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"genflow.{name}")
    raise AttributeError(f"module 'genflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
