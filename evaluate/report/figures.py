"""Plots as SVG that stands inside a page and takes its colours, light or dark, from it."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from genflow.evaluate.report.html import Markup, element

__all__ = ["Layer", "draw_extrapolation", "draw_points"]

# Drawn in the colours on the left, which nothing else has; the page's own stand in their place afterwards.
_INK, _GRID, _FIRST, _SECOND = "#010203", "#010204", "#010205", "#010206"
_VARIABLES = {_INK: "ink", _GRID: "line", _FIRST: "first", _SECOND: "second"}
# Points become one bitmap, which cannot change with the page: these are clear on white and on black, and apart from one
# another for every kind of colour blindness (Okabe and Ito, https://jfly.uni-koeln.de/color/). Shapes differ as well.
_POINTS = {"first": ("#0072B2", "o"), "second": ("#D55E00", "X"), "context": ("#8C929B", "o")}

_STYLE = {
    "svg.fonttype": "none",  # text stays text: small, selectable, in the page's own font
    "svg.hashsalt": "genflow",  # identifiers, and so the bytes, are the same every time
    "font.size": 11,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": _GRID,
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": _GRID,
    "xtick.labelcolor": _INK,
    "ytick.color": _GRID,
    "ytick.labelcolor": _INK,
}


@dataclass(frozen=True)
class Layer:
    """Points of one kind in a scatter plot: ``(N, 2)`` places, and a name for the legend."""

    points: np.ndarray
    name: str
    role: Literal["first", "second", "context"]
    """Gives colour and shape."""


Limits = tuple[float, float]


def draw_points(
    name: str, layers: Sequence[Layer], *, axes: tuple[str, str], limits: tuple[Limits, Limits], text: str
) -> Markup:
    """A scatter plot, later layers on top. No other drawing of the page has its ``name``; ``text`` says what is seen
    for those who cannot see it."""

    def fill(plot: Any) -> None:
        for layer in layers:
            colour, marker = _POINTS[layer.role]
            size = {"context": 5, "first": 9, "second": 16}[layer.role]
            style = {"s": size, "c": colour, "marker": marker, "linewidths": 0, "rasterized": True}
            plot.scatter(*layer.points.T, alpha=0.35 if layer.role == "context" else 0.75, label=layer.name, **style)
        plot.set(xlabel=axes[0], ylabel=axes[1], xlim=limits[0], ylim=limits[1])
        place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "ncols": len(layers)}
        legend = plot.legend(**place, frameon=False, handletextpad=0.1, fontsize=10)
        for handle, layer in zip(legend.legend_handles, layers, strict=True):
            colour = {"first": _FIRST, "second": _SECOND}.get(layer.role, _POINTS["context"][0])
            handle.set(sizes=[36], alpha=1, rasterized=False, facecolor=colour)

    return _svg(name, fill, (5.2, 4.4), text)


def draw_extrapolation(
    sizes: Sequence[int], distances: Sequence[float], value: float, slope: float, *, name: str, text: str
) -> Markup:
    """Distances of subsets over one over their size, the fitted line, and where it meets the axis: no bias is left."""

    def fill(plot: Any) -> None:
        inverse = np.reciprocal(np.asarray(sizes, dtype=np.float64))
        end = 1.06 * inverse.max()
        plot.plot([0, end], [value, value + slope * end], color=_INK, linewidth=1, linestyle="--", label="fitted line")
        plot.plot(inverse, distances, "o", color=_FIRST, markersize=5, label=f"{name} of N samples")
        limit = f"endless samples: {value:.4g}"
        plot.plot([0], [value], "D", color=_SECOND, markersize=7, label=limit, clip_on=False, zorder=5)
        shown = _apart(inverse, 0.11 * end)
        plot.set_xticks([0, *(inverse[i] for i in shown)], ["∞", *(f"{sizes[i]:,}" for i in shown)])
        plot.set(xlabel="samples N (axis in 1/N)", ylabel=name, xlim=(0, end))
        plot.grid(linewidth=0.6)
        plot.legend(frameon=False, fontsize=10)

    return _svg("extrapolation", fill, (5.2, 3.6), text)


def _apart(places: np.ndarray, gap: float) -> list[int]:
    """Which of ``places`` to label, from the largest down, so that no two labels are closer than ``gap``."""
    kept: list[int] = []
    for index in np.argsort(-places):
        if places[index] >= gap and (not kept or places[kept[-1]] - places[index] >= gap):
            kept.append(int(index))
    return kept


def _svg(name: str, fill: Callable[[Any], None], size: tuple[float, float], text: str) -> Markup:
    import matplotlib
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained", facecolor="none")
        plot = figure.subplots()
        plot.set_facecolor("none")
        fill(plot)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", dpi=160, metadata={"Date": None})
    return Markup(_for_page(buffer.getvalue(), name, text))


def _for_page(drawing: str, name: str, text: str) -> str:
    """What matplotlib wrote, as a part of a page: its colours and font, no identifier that another drawing has, and
    nothing that only a file of its own needs (addresses of schemas, styles of everything)."""
    viewed = re.search(r'viewBox="([^"]+)"', drawing)[1]
    inside = drawing[drawing.index(">", drawing.index("<svg")) + 1 :]
    for pattern, new in (
        (r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", ""),
        (r'<(g|image) id="[^"]*"', r"<\1"),
        (r'(<image [^>]*?) id="[^"]*"', r"\1"),
        (r'\bid="', f'id="{name}-'),
        (r'xlink:href="#', f'href="#{name}-'),
        (r"url\(#", f"url(#{name}-"),
        (r"xlink:href=", "href="),
        (r"font-family: [^;\"]*;? ?", ""),
        (r"\n\s*", "\n"),
    ):
        inside = re.sub(pattern, new, inside, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        inside = inside.replace(colour, f"var(--{variable})")
    return element("svg", viewBox=viewed, role="img", aria_label=text).removesuffix("</svg>") + inside.strip()
