"""Scores of samples and benchmarks. ``evaluate(samples)`` and ``print_table(result)`` are the library's face."""

from genflow.lazy import lazy_exports

_WHERE = {
    "Evaluation": "evaluation",
    "FeatureSet": "feature_set",
    "PipelineSource": "sources",
    "Reference": "reference",
    "Side": "evaluation",
    "check_comparable": "feature_set",
    "compare_sets": "compare",
    "evaluate": "run",
    "evaluate_in_detail": "run",
    "extract": "extraction",
    "load_feature_set": "feature_set",
    "load_reference": "reference",
    "load_statistics": "statistics_files",
    "open_source": "sources",
    "print_comparison": "table",
    "print_table": "table",
    "save_feature_set": "feature_set",
    "save_reference": "reference",
    "save_statistics_npz": "statistics_files",
}

__all__ = sorted(_WHERE)

__getattr__, __dir__ = lazy_exports(__name__, _WHERE)
