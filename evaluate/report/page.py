"""The report on one evaluation as a whole: one file, which asks the network for nothing."""

from pathlib import Path

from genflow.evaluate.evaluation import Evaluation
from genflow.evaluate.report.document import footer, navigation, page, write_page
from genflow.evaluate.report.html import element, join
from genflow.evaluate.report.neighbourhood import density_section, map_section, nearest_section
from genflow.evaluate.report.samples import samples_section
from genflow.evaluate.report.tables import classes_section, extrapolation_section, figures_section, protocol_section
from genflow.evaluate.report.view import View
from genflow.evaluate.table import caption

__all__ = ["render", "write_report"]

_SECTIONS = {
    "figures": "Figures",
    "samples": "Samples",
    "nearest": "Nearest images",
    "density": "Density",
    "classes": "Classes",
    "map": "Map",
    "extrapolation": "FD against N",
    "protocol": "Protocol",
}


def write_report(path: str | Path, evaluation: Evaluation, *, date: str | None = None) -> None:
    """Write an evaluation as one HTML file: figures, samples, their nearest reference images, the worst and the best by
    density, figures by class, a map of both sets, FD against the number of samples, and the protocol.

    The file holds all that it shows, pictures as thumbnails (below 5 MB together), and asks the network for nothing.
    What cannot be had (pictures of a file of features, say) is said in its place. The same evaluation gives the same
    bytes; ``date`` is shown where one is given.

    Raises:
        InputError: the file cannot be written.
    """
    write_page(path, render(evaluation, date=date))


def render(evaluation: Evaluation, *, date: str | None = None) -> str:
    """The text of the file that :func:`write_report` writes."""
    view = View(evaluation)
    protocol, count = view.protocol, view.protocol["count"]
    samples = "Samples" if count is None else f"{count:,} samples"
    lead = element("p", element("b", samples), f" {caption(protocol)}", class_="lead")
    return page(
        f"Evaluation of {protocol['samples']}",
        join(lead, navigation(_SECTIONS)),
        element(
            "main",
            figures_section(view),
            samples_section(view),
            nearest_section(view),
            density_section(view),
            classes_section(view),
            map_section(view),
            extrapolation_section(view),
            protocol_section(protocol, view.result, "evaluation.json"),
        ),
        footer(date),
    )
