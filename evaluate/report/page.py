"""The report as a whole: one file, which asks the network for nothing."""

import base64
import hashlib
from pathlib import Path

import genflow
from genflow.errors import InputError
from genflow.evaluate.evaluation import Evaluation
from genflow.evaluate.report.html import Markup, element, join
from genflow.evaluate.report.neighbourhood import density_section, map_section, nearest_section
from genflow.evaluate.report.samples import samples_section
from genflow.evaluate.report.style import SCRIPT, STYLE
from genflow.evaluate.report.tables import classes_section, extrapolation_section, figures_section, protocol_section
from genflow.evaluate.report.view import View
from genflow.evaluate.table import caption
from genflow.files import write_text

__all__ = ["page", "render", "write_report"]

_SECTIONS = (
    ("figures", "Figures", figures_section),
    ("samples", "Samples", samples_section),
    ("nearest", "Nearest images", nearest_section),
    ("density", "Density", density_section),
    ("classes", "Classes", classes_section),
    ("map", "Map", map_section),
    ("extrapolation", "FD against N", extrapolation_section),
    ("protocol", "Protocol", protocol_section),
)


def write_report(path: str | Path, evaluation: Evaluation, *, date: str | None = None) -> None:
    """Write an evaluation as one HTML file: figures, samples, their nearest reference images, the worst and the best by
    density, figures by class, a map of both sets, FD against the number of samples, and the protocol.

    The file holds all that it shows, pictures as thumbnails (below 5 MB together), and asks the network for nothing.
    What cannot be had (pictures of a file of features, say) is said in its place. The same evaluation gives the same
    bytes; ``date`` is shown where one is given.

    Raises:
        InputError: the file cannot be written.
    """
    text = render(evaluation, date=date)
    try:
        write_text(path, text)
    except OSError as error:
        raise InputError(f"report: {str(path)!r} cannot be written: {error.strerror}") from error


def render(evaluation: Evaluation, *, date: str | None = None) -> str:
    """The text of the file that :func:`write_report` writes."""
    view = View(evaluation)
    protocol = view.protocol
    sections = [build(view) for _, _, build in _SECTIONS]
    links = [element("li", element("a", name, href=f"#{key}")) for key, name, _ in _SECTIONS]
    count = protocol["count"]
    samples = "Samples" if count is None else f"{count:,} samples"
    lead = element("p", element("b", samples), f" {caption(protocol)}", class_="lead")
    return page(
        f"Evaluation of {protocol['samples']}",
        join(lead, element("nav", element("ul", *links), aria_label="Sections")),
        element("main", *sections),
        element("footer", join(f"genflow {genflow.__version__}", f", {date}" if date else "")),
    )


def page(title: str, under: Markup, *parts: Markup) -> str:
    """A whole document with the report's look; ``under`` stands below the title.

    Its policy forbids whatever does not stand in the file itself, and every script but the report's own.
    """
    script = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script}'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(STYLE)),
    )
    body = element("body", element("header", element("h1", title), under), *parts, element("script", Markup(SCRIPT)))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"
