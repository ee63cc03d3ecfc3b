"""Figures of each class by itself."""

from typing import Any

from torch import Tensor

from genflow.evaluate.pair import Pair

__all__ = ["left_out_classes", "per_class_table"]


def per_class_table(pair: Pair) -> dict[str, list[Any]]:
    """Columns, one entry a class that either side has, safe for JSON.

    ``classes`` (names), ``labels`` (numbers), ``count`` and ``reference_count``; ``fd``, the distance between samples
    and reference of that class, and ``bias``, what too few samples add to it; ``precision``, the share of its samples
    near any real image, and ``recall``, the share of its real images near any sample; ``accuracy``, the share of its
    samples that the network takes for it. None where there is nothing to tell.
    """
    classes = pair.classes
    labels = sorted(classes.counts)
    names = pair.generated.class_names or pair.reference.class_names or ()
    ours, theirs = pair.generated.labels, pair.reference.labels
    details = pair.neighbours if _large_enough(pair) else None
    predicted = pair.generated.predicted if pair.can_tell_classes else None
    return {
        "classes": [names[label] if label < len(names) else str(label) for label in labels],
        "labels": labels,
        "count": [classes.counts[label][1] for label in labels],
        "reference_count": [classes.counts[label][0] for label in labels],
        "fd": [classes.distances.get(label) for label in labels],
        "bias": [classes.biases.get(label) for label in labels],
        "precision": [None if details is None else _share(details.precise, ours == label) for label in labels],
        "recall": [None if details is None else _share(details.recalled, theirs == label) for label in labels],
        "accuracy": [None if predicted is None else _share(predicted == label, ours == label) for label in labels],
    }


def left_out_classes(pair: Pair) -> list[str]:
    """A line where classes have no distance."""
    left_out = pair.classes.left_out
    if not left_out:
        return []
    names = pair.generated.class_names or pair.reference.class_names or ()
    label, why = next(iter(sorted(left_out.items())))
    name = names[label] if label < len(names) else str(label)
    others = f", nor have {len(left_out) - 1} others" if len(left_out) > 1 else ""
    return [f"class {name} has no distance ({why}){others}; a mean over the rest compares with none over all classes"]


def _share(flags: Tensor, rows: Tensor) -> float | None:
    chosen = flags[rows.to(flags.device)]
    return float(chosen.double().mean()) if len(chosen) else None


def _large_enough(pair: Pair) -> bool:
    settings = pair.settings
    return len(pair.generated.features) > settings.k and len(pair.reference.features) > max(
        settings.k, settings.density_k
    )
