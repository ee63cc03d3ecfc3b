"""Scores of samples and benchmarks. ``evaluate(samples)`` and ``print_table(result)`` are the library's face."""

import importlib
from typing import Any

_WHERE = {
    "Reference": "reference",
    "Samples": "samples",
    "evaluate": "run",
    "load_reference": "reference",
    "load_samples": "samples",
    "print_table": "run",
    "save_reference": "reference",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"genflow.evaluate.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'genflow.evaluate' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
