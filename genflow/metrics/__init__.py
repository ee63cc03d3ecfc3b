"""Measures of generated images: features, Frechet distance, nearest-neighbour coverage, class accuracy."""

import importlib
from typing import Any

_WHERE = {
    "ClassifierConfig": "classifier",
    "FeatureExtractor": "features",
    "FeatureStatistics": "statistics",
    "Features": "features",
    "ImageClassifier": "classifier",
    "NeighbourMetrics": "neighbours",
    "class_accuracy": "accuracy",
    "content_hash": "features",
    "frechet_distance": "frechet",
    "frechet_distance_from_features": "frechet",
    "frechet_distance_from_statistics": "frechet",
    "load_classifier": "classifier",
    "neighbour_metrics": "neighbours",
    "neighbour_radii": "neighbours",
    "save_classifier": "classifier",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"genflow.metrics.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'genflow.metrics' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
