"""Measures of generated images: features, Frechet distance, nearest-neighbour coverage, class accuracy."""

from genflow.lazy import lazy_exports

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

__getattr__, __dir__ = lazy_exports(__name__, _WHERE)
