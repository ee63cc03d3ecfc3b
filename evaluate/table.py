"""The figures of an evaluation as a table for a terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from genflow.evaluate.measures import MEASURES, label, meaning

__all__ = [
    "ARROWS",
    "CLASS_COLUMNS",
    "SIGNIFICANT",
    "caption",
    "class_figure",
    "figure",
    "print_comparison",
    "print_table",
    "short_names",
]

ARROWS = {"up": "↑", "down": "↓", None: ""}
"""Which way is better."""

SIGNIFICANT = 0.05
"""Corrected p-values below this are marked."""


def figure(key: str, value: float | None, interval: dict[str, Any] | None = None, spread: float | None = None) -> str:
    """``value ± spread``, and below it ``[low, high]``; a dash where there is none."""
    if value is None:
        return "-"
    form = MEASURES[key].form
    text = form.format(value) if spread is None else f"{form.format(value)} ± {form.format(spread)}"
    return text if interval is None else f"{text}\n[{form.format(interval['low'])}, {form.format(interval['high'])}]"


def caption(protocol: dict[str, Any]) -> str:
    """The protocol in a line or two."""
    parts = []
    if protocol["reference_count"] is not None:
        parts.append(f"{protocol['reference_count']:,} images ({protocol['reference_data']})")
    else:
        parts.append(str(protocol["reference_data"]))
    network = f"{protocol['dimensions']} features"
    if protocol.get("features"):
        network += f" of {protocol['features']} {(protocol.get('features_sha256') or '')[:12]}".rstrip()
    parts.append(network)
    for name, form in (("resize", "resize {}"), ("dtype", "{}")):
        if protocol.get(name) is not None:
            parts.append(form.format(protocol[name]))
    if protocol["seed"] is not None:
        parts.append(f"drawn by seed {protocol['seed']} of {protocol['available']:,}")
    if protocol["bootstrap"]:
        resampled = protocol["bootstrap"]
        parts.append(f"[low, high]: {resampled['level']:.0%} of {resampled['draws']} resamples")
    return "against " + ", ".join(parts)


def print_table(result: dict[str, Any], console: Console | None = None) -> None:
    """Print what :func:`genflow.evaluate.run.evaluate` returned, its protocol in the caption, its warnings below."""
    console = console or Console()
    metrics, protocol = result["metrics"], result["protocol"]
    number = "samples" if protocol["count"] is None else f"{protocol['count']} samples"
    table = Table(title=Text(f"{number} of {protocol['samples']}"), title_style="bold", caption_justify="left")
    table.add_column("measure")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("")
    table.add_column("meaning")
    for key, value in metrics.items():
        shown = figure(key, value, result["intervals"].get(key), result["spreads"].get(key))
        # Text, since names and intervals in brackets are no markup
        name = Text(label(key, protocol["features"]))
        table.add_row(name, Text(shown), ARROWS[MEASURES[key].direction], meaning(key, protocol))
    table.caption = Text(caption(protocol))
    console.print(table)
    if result["per_class"] is not None:
        console.print(_class_table(result["per_class"]))
    for note in protocol["notes"]:
        console.print(Text(f"note: {note}", style="dim"))
    for warning in protocol["warnings"]:
        console.print(Text(f"warning: {warning}", style="yellow"))


CLASS_COLUMNS = {
    "count": "samples",
    "reference_count": "real",
    "fd": "FD",
    "bias": "bias",
    "precision": "precision",
    "recall": "recall",
    "accuracy": "accuracy",
}
"""Columns of the table by class, and their titles."""


def class_figure(key: str, value: float | None) -> str:
    """An entry of a column of :data:`CLASS_COLUMNS`."""
    if key.endswith("count"):
        return f"{value:,}"
    return figure("fd" if key == "bias" else key, value)


def _class_table(columns: dict[str, list[Any]]) -> Table:
    table = Table(title="by class", title_style="bold")
    table.add_column("class")
    for title in CLASS_COLUMNS.values():
        table.add_column(title, justify="right")
    for row, name in enumerate(columns["classes"]):
        cells = [class_figure(key, columns[key][row]) for key in CLASS_COLUMNS]
        table.add_row(name, *cells)
    return table


def print_comparison(result: dict[str, Any], console: Console | None = None) -> None:
    """Print what :func:`genflow.evaluate.compare.compare_sets` returned: figures side by side, then the tests."""
    console = console or Console()
    sets, tested, protocol = result["sets"], result["comparisons"], result["protocol"]
    names = short_names([one["protocol"]["samples"] for one in sets])
    table = Table(title="side by side", title_style="bold", caption_justify="left")
    table.add_column("measure", no_wrap=True)
    for name, one in zip(names, sets, strict=True):
        table.add_column(Text(f"{name}\n{_number(one)}"), justify="right")
    for key, found in tested.items():
        cells = []
        for place, one in enumerate(sets):
            shown = figure(key, one["metrics"][key], one["intervals"].get(key))
            best = place == found["best"]
            cells.append(Text(f"* {shown}" if best else shown, style="bold green" if best else ""))
        table.add_row(Text(f"{_short_label(key)} {ARROWS[MEASURES[key].direction]}".rstrip()), *cells)
    table.caption = Text(f"* best; {caption(sets[0]['protocol'])}")
    console.print(table)
    if protocol["bootstrap"]:
        console.print(_tests(tested, names, paired=protocol["paired"]))
    for note in sets[0]["protocol"]["notes"]:
        console.print(Text(f"note: {note}", style="dim"))
    for warning in protocol["warnings"]:
        console.print(Text(f"warning: {warning}", style="yellow"))


def _tests(tested: dict[str, Any], names: list[str], *, paired: bool) -> Table:
    """A row for each pair of sets, a column for each metric."""
    table = Table(title="are they different? p-values", title_style="bold", caption_justify="left")
    table.add_column("sets")
    for key in tested:
        table.add_column(_short_label(key), justify="right")
    pairs = next(iter(tested.values()))["pairs"]
    for place, pair in enumerate(pairs):
        p_values = [found["pairs"][place].get("p_corrected") for found in tested.values()]
        table.add_row(Text(f"{names[pair['first']]}\n{names[pair['second']]}"), *map(_p_value, p_values))
    how = "paired rows" if paired else "independent resamples"
    corrected = f", Holm-corrected for {len(pairs)} pairs" if len(pairs) > 1 else ""
    table.caption = Text(f"* below {SIGNIFICANT}: more than chance; two-sided bootstrap, {how}{corrected}")
    return table


def _p_value(p: float | None) -> Text:
    if p is None:
        return Text("-")
    return Text(f"{p:.3f} *", style="bold") if p < SIGNIFICANT else Text(f"{p:.3f}")


def _short_label(key: str) -> str:
    """The label without the features, which the caption names."""
    return MEASURES[key].label.removesuffix(" ({features})")


def _number(one: dict[str, Any]) -> str:
    count = one["protocol"]["count"]
    return "" if count is None else f"{count:,}"


def short_names(names: list[str]) -> list[str]:
    """The last parts of paths, as many as tell them apart."""
    split = [name.rstrip("/").split("/") for name in names]
    for parts in range(1, max(map(len, split)) + 1):
        short = ["/".join(name[-parts:]) for name in split]
        if len(set(short)) == len(set(names)):
            return short
    return names
