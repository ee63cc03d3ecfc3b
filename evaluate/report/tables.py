"""The sections that are tables: the measured figures, figures by class, the protocol; and FD against samples."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from genflow.evaluate.measures import MEASURES, label, meaning
from genflow.evaluate.report.figures import draw_extrapolation
from genflow.evaluate.report.html import Cell, Markup, data_uri, element, join, scrolled, table
from genflow.evaluate.report.view import DASH, View, absent, number, section
from genflow.evaluate.table import ARROWS, CLASS_COLUMNS, class_figure

__all__ = [
    "classes_section",
    "direction",
    "extrapolation_section",
    "figures_section",
    "measure_name",
    "note_lines",
    "protocol_section",
    "warning_list",
]

_DIRECTIONS = {"up": "higher", "down": "lower", None: ""}
_LISTED = 20


def figures_section(view: View) -> Markup:
    """Every figure with its interval, which way is better, and what it means; and the warnings."""
    result, protocol = view.result, view.protocol
    rows = []
    for key, value in result["metrics"].items():
        measure = MEASURES[key]
        interval, spread = result["intervals"].get(key), result["spreads"].get(key)
        below = []
        if spread is not None:
            below.append(f"± {measure.form.format(spread)}")
        if interval is not None:
            ends = " to ".join(measure.form.format(interval[end]) for end in ("low", "high"))
            below.append(f"{ends} ({protocol['bootstrap']['level']:.0%})")
        rows.append(
            (
                measure_name(key, protocol),
                Cell(join(measure.form.format(value), *(element("small", line) for line in below)), value),
                direction(key),
            )
        )
    return section(
        "figures",
        "Figures",
        warning_list(protocol["warnings"]),
        table(("measure", "value", "better"), rows, caption="Measured figures", class_="measures"),
        note_lines(protocol["notes"]),
    )


def measure_name(key: str, protocol: dict[str, Any]) -> Markup:
    """What a measure is called, and below it what it means."""
    return join(label(key, protocol["features"]), element("small", meaning(key, protocol)))


def direction(key: str) -> Markup:
    """Which way is better."""
    way = MEASURES[key].direction
    return join(ARROWS[way], " ", element("span", _DIRECTIONS[way], class_="word"))


def warning_list(warnings: Sequence[str]) -> Markup | None:
    """What makes figures less than they seem; None where nothing does."""
    lines = [element("li", f"Warning: {text}") for text in warnings]
    return element("ul", *lines, class_="warnings") if lines else None


def note_lines(notes: Sequence[str]) -> Markup:
    """What else there is to know."""
    return join(*(element("p", f"Note: {text}", class_="note") for text in notes))


def classes_section(view: View) -> Markup:
    """A row a class, sortable by each column."""
    title, by_class = "By class", view.result["per_class"]
    if not by_class:
        return section(
            "classes", title, absent("Figures by class were not asked for (--per-class), or no class is known.")
        )
    rows = [
        (name, *(Cell(class_figure(key, by_class[key][row]), by_class[key][row]) for key in CLASS_COLUMNS))
        for row, name in enumerate(by_class["classes"])
    ]
    titles = {**CLASS_COLUMNS, "fd": view.frechet}
    head = ("class", *(titles[key] for key in CLASS_COLUMNS))
    body = table(head, rows, caption="Figures by class", sortable=True, class_="classes")
    note = element("p", "Click a column's name to sort by it.", class_="note scripted")
    return section("classes", title, note, scrolled(body, "Figures by class"))


def extrapolation_section(view: View) -> Markup:
    """The distance of subsets against their size, and its limit."""
    title, found = f"{view.frechet} against the number of samples", view.evaluation.extrapolation
    if found is None:
        return section(
            "extrapolation", title, absent(f"{view.frechet}-infinity was not asked for (--metrics fd-infinity).")
        )
    sizes, distances = [int(n) for n in found.sizes], [float(d) for d in found.distances]
    text = (
        f"The distance falls from {number(distances[0])} of {sizes[0]:,} samples to {number(distances[-1])} of "
        f"{sizes[-1]:,}; the line through all points in 1/N ends at {number(found.value)}, with a "
        f"standard error of {number(found.standard_error)}."
    )
    drawing = draw_extrapolation(sizes, distances, found.value, found.slope, name=view.frechet, text=text)
    note = "A Frechet distance of few samples comes out too large, by an amount that falls as 1/N. " + text
    return section("extrapolation", title, element("p", note, class_="note"), element("div", drawing, class_="plot"))


def protocol_section(protocol: dict[str, Any], result: dict[str, Any], file_name: str) -> Markup:
    """All that the figures depend on, and the whole result as a file."""
    rows = list(_flat(protocol))
    content = json.dumps(result, indent=2, allow_nan=False) + "\n"
    link = element(
        "a",
        "Figures and protocol as JSON",
        href=data_uri("application/json", content.encode()),
        download=file_name,
    )
    return section(
        "protocol",
        "Protocol",
        element("p", link),
        element(
            "details",
            element("summary", "All that the figures depend on"),
            table(("setting", "value"), rows, caption="Protocol", class_="protocol"),
        ),
    )


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """A row for each number or word in nested settings; of a long list the beginning."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name} / {key}" if name else key)
    elif isinstance(value, list) and value:
        words = [item if isinstance(item, str) else json.dumps(item) for item in value[:_LISTED]]
        if len(value) > _LISTED:
            words.append(f"and {len(value) - _LISTED:,} more, in the JSON")
        yield name, "; ".join(words)
    elif value is None or value in ([], {}):
        yield name, DASH
    else:
        yield name, value if isinstance(value, str) else json.dumps(value)
