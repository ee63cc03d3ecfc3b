"""A page around its sections: what stands above and below them, the look, and the policy that nothing is fetched."""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path

import genflow
from genflow.errors import InputError
from genflow.evaluate.report.html import Markup, element, join
from genflow.evaluate.report.style import SCRIPT, STYLE
from genflow.files import write_text

__all__ = ["footer", "navigation", "page", "write_page"]


def navigation(sections: Mapping[str, str]) -> Markup:
    """Links to sections: names by key."""
    links = [element("li", element("a", name, href=f"#{key}")) for key, name in sections.items()]
    return element("nav", element("ul", *links), aria_label="Sections")


def footer(date: str | None) -> Markup:
    """What made the page, and when, where that is to be said."""
    return element("footer", join(f"genflow {genflow.__version__}", f", {date}" if date else ""))


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


def write_page(path: str | Path, text: str) -> None:
    """Write atomically. Raises InputError where that cannot be done."""
    try:
        write_text(path, text)
    except OSError as error:
        raise InputError(f"report: {str(path)!r} cannot be written: {error.strerror}") from error
