"""The section of samples: what was judged, before any figure."""

import numpy as np

from genflow.evaluate.report.html import Markup, element
from genflow.evaluate.report.view import View, absent, section

__all__ = ["samples_section", "tiles"]

_SHOWN = 60
_CLASSES, _PER_CLASS = 12, 10


def samples_section(view: View) -> Markup:
    """Samples drawn at random, in rows by class where classes are known."""
    title = "Samples"
    if not view.generated:
        return section("samples", title, absent("The pictures are not at hand: features were given in their place."))
    features = view.evaluation.generated.features
    total = len(features.names)
    labels = features.labels.numpy() if features.labels is not None else np.full(total, -1)
    classes = np.unique(labels[labels >= 0])
    if not len(classes):
        rows = view.chosen(_SHOWN, total)
        note = element("p", f"{len(rows):,} of {total:,}, drawn at random.", class_="note")
        return section("samples", title, note, tiles(view, rows))
    shown = classes[view.chosen(_CLASSES, len(classes))]
    by_class = [view.chosen(_PER_CLASS, np.flatnonzero(labels == label)) for label in shown]
    view.generated.load(np.concatenate(by_class))
    lines = []
    for rows in by_class:
        lines += [element("dt", view.generated.label(rows[0])), element("dd", tiles(view, rows))]
    which = f"{len(shown)} of {len(classes)} classes" if len(shown) < len(classes) else "every class"
    note = element("p", f"Up to {_PER_CLASS} of {which}, drawn at random from {total:,}.", class_="note")
    return section("samples", title, note, element("dl", *lines, class_="byclass"))


def tiles(view: View, rows: np.ndarray) -> Markup:
    """The samples in ``rows`` side by side."""
    view.generated.load(rows)
    return element("ul", *(element("li", view.generated(int(row))) for row in rows), class_="tiles")
