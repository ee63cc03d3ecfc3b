"""Measures of generated images: features, Frechet distance, nearest-neighbour coverage, class accuracy, statistics."""

from genflow.lazy import lazy_exports

_WHERE = {
    "ClassifierConfig": "classifier",
    "Extractor": "features",
    "FeatureExtractor": "features",
    "FeatureStatistics": "statistics",
    "FrechetReference": "frechet",
    "FrechetReport": "frechet",
    "Features": "features",
    "ImageClassifier": "classifier",
    "NeighbourDetails": "neighbours",
    "KernelEstimate": "kernel",
    "KernelSpread": "kernel",
    "NeighbourMetrics": "neighbours",
    "Straightness": "straightness",
    "SD_LATENT_MEAN": "image_statistics",
    "SD_LATENT_STD": "image_statistics",
    "channel_statistics": "image_statistics",
    "cmmd": "kernel",
    "class_accuracy": "accuracy",
    "create_extractor": "extractors",
    "clipped_share": "image_statistics",
    "colourfulness": "image_statistics",
    "content_hash": "features",
    "contrast": "image_statistics",
    "frechet_bias": "frechet",
    "frechet_distance": "frechet",
    "frechet_distance_from_features": "frechet",
    "frechet_distance_from_statistics": "frechet",
    "frechet_report": "frechet",
    "kernel_distance": "kernel",
    "kernel_distance_full": "kernel",
    "subset_indices": "kernel",
    "load_classifier": "classifier",
    "measure_straightness": "straightness",
    "magnitude_score": "image_statistics",
    "nearest": "neighbour_search",
    "neighbour_details": "neighbours",
    "neighbour_metrics": "neighbours",
    "neighbour_radii": "neighbours",
    "rms_distance": "distance",
    "saturation": "image_statistics",
    "save_classifier": "classifier",
}

__all__ = sorted(_WHERE)

__getattr__, __dir__ = lazy_exports(__name__, _WHERE)
