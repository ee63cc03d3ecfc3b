"""The sections that need distances between features: nearest reference images, density, and the map of both sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from genflow.evaluate.report.figures import Layer, draw_points
from genflow.evaluate.report.html import Markup, element, join
from genflow.evaluate.report.images import Thumbnails
from genflow.evaluate.report.view import View, absent, number, section
from genflow.metrics.neighbour_search import nearest

if TYPE_CHECKING:
    from genflow.metrics.neighbours import NeighbourDetails

__all__ = ["density_section", "map_section", "nearest_section"]

_CARDS, _NEIGHBOURS = 12, 3
_TILES = 16
_POINTS = 4000
_STATISTICS_ONLY = "One side is known by its statistics only; this needs the features of single images."
_NOT_MEASURED = "No measure by nearest neighbours was asked for (precision, recall, density, coverage, authenticity)."


def nearest_section(view: View) -> Markup:
    """The samples that are closest to a picture of the training set, or else of the reference, each with the three
    nearest ones."""
    found = _suspects(view)
    title = "Nearest reference images" if found is None or found.known is view.reference else "Nearest training images"
    if found is None:
        return section("nearest", title, absent(_STATISTICS_ONLY if view.features is None else _NOT_MEASURED))
    if not view.generated and not found.known:
        return section("nearest", title, absent("Neither side's pictures are at hand: features were given instead."))
    known, queries = found.known.side.features.features, view.evaluation.generated.features.features
    distances, places = nearest(known, queries[found.rows], count=min(_NEIGHBOURS, len(known)))
    for pictures, shown in ((view.generated, found.rows), (found.known, places.flatten())):
        pictures.load(shown.tolist())
    cards = []
    for row, score, lengths, indices in zip(
        found.rows.tolist(), found.scores.tolist(), distances.tolist(), places.tolist(), strict=True
    ):
        four = [_captioned(view.generated, row, "sample")]
        four += [_captioned(found.known, i, number(length)) for i, length in zip(indices, lengths, strict=True)]
        words = join(element("code", view.generated.name(row)), f": {number(score)} {found.unit}")
        caption = element("figcaption", words)
        cards.append(element("figure", element("div", *four, class_="four"), caption, class_="card"))
    unseen = "" if found.known else " The pictures of the latter are not at hand."
    note = (
        f"The {len(cards)} samples most like a copy, by {found.order}. First in each row the sample, then its nearest "
        "with their distances in feature space; equal pictures are at distance 0." + unseen
    )
    return section("nearest", title, element("p", note, class_="note"), element("div", *cards, class_="cards"))


def _captioned(pictures: Thumbnails, row: int, words: str) -> Markup:
    picture = pictures(row) if pictures else element("div", class_="unseen-picture")
    return element("figure", picture, element("figcaption", words))


@dataclass(frozen=True)
class _Suspects:
    """The samples that are most like a copy: their rows, from the worst on, and scores, small being suspicious; what
    the order is by, what a score counts in, and the pictures that they may have been copied from."""

    rows: torch.Tensor
    scores: torch.Tensor
    order: str
    unit: str
    known: Thumbnails


def _suspects(view: View) -> _Suspects | None:
    evaluation, details = view.evaluation, view.evaluation.neighbours
    if evaluation.memorization is not None and view.train is not None:
        scores, known = evaluation.memorization.ratios, view.train
        order = "the distance to the nearest training image over that to the second nearest"
        unit = "of the distance to the second nearest"
    elif details is not None:
        scores, known = _relative(details, details.radius), view.reference
        order = f"the distance to the nearest reference image over that one's own to its {_nth(details.k)} neighbour"
        unit = "of the nearest image's radius"
    else:
        return None
    rows = torch.argsort(scores, stable=True)[:_CARDS]
    return _Suspects(rows, scores[rows], order, unit, known)


def _nth(count: int) -> str:
    """``1`` to "1st" and so on."""
    ending = "th" if count % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(count % 10, "th")
    return f"{count}{ending}"


def _relative(details: NeighbourDetails, radii: torch.Tensor) -> torch.Tensor:
    """Distance of each sample to its nearest real over a radius of that real; 0 for an exact copy."""
    ratio = details.distance / radii[details.nearest]
    return torch.where(details.distance > 0, ratio, torch.zeros_like(ratio))


def density_section(view: View) -> Markup:
    """Samples in the fewest balls and farthest out, and samples in the most."""
    title, details = "Worst and best by density", view.evaluation.neighbours
    if details is None:
        return section("density", title, absent(_STATISTICS_ONLY if view.features is None else _NOT_MEASURED))
    if not view.generated:
        return section("density", title, absent("The samples' pictures are not at hand: features were given instead."))
    far = _relative(details, details.density_radius)
    held = details.held
    # two stable sorts: by the first key, ties by the second
    outward = torch.argsort(far, descending=True, stable=True)
    worst = outward[torch.argsort(held[outward], stable=True)][:_TILES]
    inward = outward.flip(0)
    best = inward[torch.argsort(held[inward], descending=True, stable=True)][:_TILES]
    view.generated.load([*worst.tolist(), *best.tolist()])
    outside = int((held == 0).sum())
    note = (
        f"Each reference image has a ball that reaches to its {_nth(details.density_k)} neighbour. A sample in many "
        f"balls lies where real images are dense; {outside:,} of {len(held):,} samples are in none. Below a sample: in "
        "how many balls it is, and its distance to the nearest reference image over the radius of that one's ball."
    )
    blocks = []
    for heading, rows in (("In the fewest balls, farthest first", worst), ("In the most balls", best)):
        items = []
        for row in rows.tolist():
            count = int(held[row])
            words = f"{count:,} ball{'' if count == 1 else 's'}, {number(float(far[row]))}"
            picture = element("figure", view.generated(row), element("figcaption", words))
            items.append(element("li", picture))
        blocks += [element("h3", heading), element("ul", *items, class_="tiles scored")]
    return section("density", title, element("p", note, class_="note"), *blocks)


def map_section(view: View) -> Markup:
    """Both sets in the plane of the reference's first two principal components, by what is inside and what is not."""
    title, details = "Where samples and reference lie", view.evaluation.neighbours
    if view.features is None:
        return section("map", title, absent(_STATISTICS_ONLY))
    if details is None:
        return section("map", title, absent(_NOT_MEASURED))
    real, generated, shares = _plane(view)
    ends = np.stack([np.minimum(real.min(0), generated.min(0)), np.maximum(real.max(0), generated.max(0))])
    margin = 0.04 * (ends[1] - ends[0]) + 1e-9
    limits = tuple((float(low), float(high)) for low, high in zip(ends[0] - margin, ends[1] + margin, strict=True))
    axes = tuple(f"component {i + 1} ({share:.0%} of the variance)" for i, share in enumerate(shares))
    panels = []
    for name, points, inside, others, words in (
        ("precise", generated, details.precise, real, ("samples", "near a real image", "reference images")),
        ("recalled", real, details.recalled, generated, ("reference images", "near a sample", "samples")),
    ):
        marks = inside.cpu().numpy()
        share = float(marks.mean())
        layers = [Layer(others[view.chosen(_POINTS, len(others))], words[2], "context")]
        rows = view.chosen(_POINTS, len(points))
        for kept, legend, role in ((marks[rows], words[1], "first"), (~marks[rows], "not", "second")):
            layers.append(Layer(points[rows[kept]], legend, role))
        measure = "precision" if name == "precise" else "recall"
        text = f"{words[0]}, {share:.1%} of them {words[1]} ({measure}), among the {words[2]}"
        heading = f"{words[0].capitalize()}: {share:.1%} {words[1]} ({measure})"
        drawing = draw_points(name, layers, axes=axes, limits=limits, text=f"Scatter plot: {text}.")
        panels.append(element("div", element("h3", heading), drawing))
    shown = f" Of more than {_POINTS:,} points that many are drawn, at random."
    note = (
        "Features in the plane of the reference's first two principal components. Near means inside the ball that "
        f"reaches to the {_nth(details.k)} neighbour of one of the other set, measured in all dimensions, not in "
        "this plane." + (shown if max(len(real), len(generated)) > _POINTS else "")
    )
    return section("map", title, element("p", note, class_="note"), element("div", *panels, class_="panels"))


def _plane(view: View) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Both sets in the first two principal components of the reference, ``(N, 2)`` each, and the variance in them."""
    statistics = view.evaluation.reference.features.statistics
    values, vectors = torch.linalg.eigh(statistics.covariance)
    vectors = vectors[:, -2:].flip(1)
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()  # a sign of its own for each
    both = [((side.double() - statistics.mean) @ vectors) for side in view.features]
    if vectors.shape[1] == 1:
        both = [torch.cat([side, torch.zeros_like(side)], dim=1) for side in both]
    total = float(values.clamp_min(0).sum()) or 1.0
    shares = [float(value) / total for value in values[-2:].flip(0)]
    return both[0].numpy(), both[1].numpy(), [*shares, 0.0][:2]
