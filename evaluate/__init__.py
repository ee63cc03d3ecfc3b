"""Scores of samples and benchmarks. ``evaluate(samples)`` and ``print_table(result)`` are the library's face."""

from genflow.lazy import lazy_exports

_WHERE = {
    "Evaluation": "evaluation",
    "Reference": "reference",
    "Samples": "samples",
    "Side": "evaluation",
    "compare_sets": "compare",
    "evaluate": "run",
    "evaluate_in_detail": "run",
    "load_reference": "reference",
    "load_samples": "samples",
    "print_comparison": "table",
    "print_table": "table",
    "save_reference": "reference",
}

__all__ = sorted(_WHERE)

__getattr__, __dir__ = lazy_exports(__name__, _WHERE)
