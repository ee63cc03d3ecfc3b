"""Whether what a metric needs is there: before any image is seen, and afterwards. Names as in ``measures.NEEDS``."""

from torch import Tensor

from genflow.evaluate.feature_set import FeatureSet
from genflow.evaluate.measures import MEASURES
from genflow.evaluate.pair import Pair
from genflow.evaluate.sides import Given
from genflow.metrics.features import Extractor

__all__ = ["Facts", "expected_facts", "known_facts"]

Facts = dict[str, bool | None]
"""None: not known yet."""

_WITHOUT_SCORES = ("dinov2", "clip", "inception:64", "inception:192", "inception:768", "inception:spatial")
_FIGURES = tuple(need.removeprefix("images.") for key in MEASURES for need in MEASURES[key].needs if "." in need)
_OTHER_CLASSES = ("inception", *_WITHOUT_SCORES)


def expected_facts(
    ours: Given, theirs: Given, train: Given | None, extractor: Extractor | None, *, by_class: bool
) -> Facts:
    """Before any image is seen. ``by_class``: look for classes, for which the head of each PNG is read."""
    facts: Facts = {
        "features": ours.has_features and theirs.has_features,
        "train": train is not None and train.has_features,
        "labels": ours.has_labels if by_class else None,
        "reference_labels": theirs.has_labels if by_class else None,
    }
    if ours.source is None:
        return facts | _of_samples(ours.known)
    network = extractor.name
    if network.startswith(_WITHOUT_SCORES):
        facts["logits"] = False
    if network.startswith(_OTHER_CLASSES):
        facts["classes"] = False
    return facts


def known_facts(pair: Pair) -> Facts:
    """Afterwards."""
    return {
        "features": pair.generated.features is not None and pair.reference.features is not None,
        "train": pair.train is not None and pair.train.features is not None,
        "labels": _any(pair.generated.labels),
        "reference_labels": _any(pair.reference.labels),
        **_of_samples(pair.generated),
        "classes": pair.can_tell_classes,
    }


def _of_samples(samples: FeatureSet) -> Facts:
    return {
        "logits": samples.logits is not None,
        **{f"images.{name}": name in samples.images for name in _FIGURES},
    }


def _any(labels: Tensor | None) -> bool:
    return labels is not None and bool((labels >= 0).any())
