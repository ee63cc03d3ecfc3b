"""Several sets of samples side by side as one file, of the same make as the report on one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genflow.evaluate.evaluation import Evaluation
from genflow.evaluate.measures import MEASURES, label
from genflow.evaluate.report.document import footer, navigation, page, write_page
from genflow.evaluate.report.html import Cell, Markup, element, join, scrolled, table
from genflow.evaluate.report.samples import tiles
from genflow.evaluate.report.tables import direction, measure_name, note_lines, protocol_section, warning_list
from genflow.evaluate.report.view import DASH, View, absent, section
from genflow.evaluate.table import SIGNIFICANT, caption, short_names

__all__ = ["render_comparison", "write_comparison_report"]

_SHOWN = 24
_SECTIONS = {"figures": "Figures", "differences": "Differences", "samples": "Samples", "protocol": "Protocol"}


def write_comparison_report(
    path: str | Path, result: dict[str, Any], evaluations: Sequence[Evaluation] = (), *, date: str | None = None
) -> None:
    """Write what :func:`genflow.evaluate.compare.compare_sets` returned as one HTML file.

    It has every figure of every set with its interval, the differences with their p-values, samples of each set where
    their ``evaluations`` are given, and the protocol. It needs no other file, and the same input gives the same bytes.

    Raises:
        InputError: the file cannot be written.
    """
    write_page(path, render_comparison(result, evaluations, date=date))


def render_comparison(
    result: dict[str, Any], evaluations: Sequence[Evaluation] = (), *, date: str | None = None
) -> str:
    """The text of the file that :func:`write_comparison_report` writes."""
    sets = result["sets"]
    names = short_names([one["protocol"]["samples"] for one in sets])
    against = caption(sets[0]["protocol"])
    protocol = {**result["protocol"], "sets": {name: one["protocol"] for name, one in zip(names, sets, strict=True)}}
    return page(
        f"Comparison of {', '.join(names)}",
        join(element("p", against[:1].upper() + against[1:], class_="lead"), navigation(_SECTIONS)),
        element(
            "main",
            _figures(result, names),
            _differences(result, names),
            _samples(names, evaluations),
            protocol_section(protocol, result, "comparison.json"),
        ),
        footer(date),
    )


def _figures(result: dict[str, Any], names: Sequence[str]) -> Markup:
    """A row a measure, a column a set; the best of each row is marked."""
    sets, protocol = result["sets"], result["sets"][0]["protocol"]
    rows = []
    for key, found in result["comparisons"].items():
        form, cells = MEASURES[key].form, []
        for place, one in enumerate(sets):
            interval = one["intervals"].get(key)
            value = form.format(one["metrics"][key])
            best = element("span", "best", class_="best") if place == found["best"] else None
            ends = interval and f"{form.format(interval['low'])} to {form.format(interval['high'])}"
            content = join(value, element("small", ends) if ends else None, best)
            cells.append(Cell(content, one["metrics"][key]))
        rows.append((measure_name(key, protocol), *cells, direction(key)))
    counts = [one["protocol"]["count"] for one in sets]
    heads = [
        join(name, element("small", DASH if count is None else f"{count:,} samples"))
        for name, count in zip(names, counts, strict=True)
    ]
    body = table(("measure", *heads, "better"), rows, caption="Figures side by side", class_="measures sets")
    return section(
        "figures",
        "Figures",
        warning_list(result["protocol"]["warnings"]),
        scrolled(body, "Figures side by side"),
        note_lines(protocol["notes"]),
    )


def _differences(result: dict[str, Any], names: Sequence[str]) -> Markup:
    """A row a pair of sets within each measure: the difference, its interval, and how likely it is by chance."""
    protocol = result["protocol"]
    if not protocol["bootstrap"]:
        return section("differences", "Differences", absent("No resamples were asked for (--bootstrap)."))
    features, rows = result["sets"][0]["protocol"]["features"], []
    for key, found in result["comparisons"].items():
        form = MEASURES[key].form
        for pair in found["pairs"]:
            p = pair.get("p_corrected")
            ends = f"{form.format(pair['low'])} to {form.format(pair['high'])}" if "low" in pair else None
            clear = element("b", "yes") if p is not None and p < SIGNIFICANT else "no" if p is not None else DASH
            rows.append(
                (
                    label(key, features),
                    f"{names[pair['first']]} less {names[pair['second']]}",
                    Cell(
                        join(form.format(pair["difference"]), element("small", ends) if ends else None),
                        pair["difference"],
                    ),
                    Cell(DASH if p is None else f"{p:.3f}", p),
                    clear,
                )
            )
    head = ("measure", "sets", "difference", "p", "more than chance")
    body = table(head, rows, caption="Differences between sets", sortable=True, class_="classes measures pairs")
    how = "sample by sample, which belong together" if protocol["paired"] else "each set by itself"
    note = (
        f"Two-sided bootstrap of {protocol['bootstrap']['draws']} resamples, drawn {how}; p-values corrected within "
        f"each measure ({protocol['correction']}). More than chance: p below {SIGNIFICANT}."
    )
    return section(
        "differences", "Differences", element("p", note, class_="note"), scrolled(body, "Differences between sets")
    )


def _samples(names: Sequence[str], evaluations: Sequence[Evaluation]) -> Markup:
    """The same number of samples of each set; of sets that belong together the same rows."""
    blocks = []
    for name, evaluation in zip(names, evaluations, strict=False):
        view = View(evaluation)
        blocks.append(element("h3", name))
        if view.generated:
            rows = view.chosen(_SHOWN, len(evaluation.generated.features.features))
            blocks.append(tiles(view, rows))
        else:
            blocks.append(absent("The pictures are not at hand: features were given in their place."))
    return section("samples", "Samples", *(blocks or [absent("The sets' pictures were not kept.")]))
