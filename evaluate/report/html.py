"""HTML written so that no text of a user can become markup: a string is escaped unless an element was made of it."""

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Cell", "Markup", "data_uri", "element", "join", "scrolled", "table"]

_VOID = {"br", "img", "link", "meta"}


class Markup(str):
    """Text that is HTML already; made by :func:`element` and :func:`join`, never of what came from outside."""

    __slots__ = ()


Child = str | int | float | None
Attribute = str | int | float | bool | None


def _text(child: Child) -> str:
    return "" if child is None else child if isinstance(child, Markup) else html.escape(str(child))


def join(*children: Child) -> Markup:
    """Children one after another, those that are not :class:`Markup` escaped; None is nothing."""
    return Markup("".join(_text(child) for child in children))


def element(tag: str, *children: Child, **attributes: Attribute) -> Markup:
    """``<tag attributes>children</tag>``.

    Of an attribute's name a trailing underscore is dropped and others are written as hyphens (``class_``,
    ``data_value``); True is written as the bare name, False and None are left out.
    """
    words = [tag]
    for name, value in attributes.items():
        name = name.rstrip("_").replace("_", "-")
        if value is True:
            words.append(name)
        elif value is not None and value is not False:
            words.append(f'{name}="{html.escape(str(value))}"')
    opening = f"<{' '.join(words)}>"
    return Markup(opening if tag in _VOID else f"{opening}{join(*children)}</{tag}>")


def data_uri(kind: str, content: bytes) -> str:
    """``content`` of the media type ``kind`` as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


@dataclass(frozen=True)
class Cell:
    """A number in a table: how it is written, and the value that a sortable column is ordered by; None comes last."""

    content: Child
    value: float | None


def table(
    head: Sequence[Child],
    rows: Iterable[Sequence[Cell | Child]],
    *,
    caption: str,
    sortable: bool = False,
    class_: str | None = None,
) -> Markup:
    """A table whose first column names the rows. ``caption`` is for those who cannot see it.

    ``sortable`` lets the page's script order the rows by a column.
    """
    lines = []
    for row in rows:
        cells = [element("th", row[0], scope="row")]
        for cell in row[1:]:
            if isinstance(cell, Cell):
                cells.append(element("td", cell.content, data_value=cell.value, class_="number"))
            else:
                cells.append(element("td", cell))
        lines.append(element("tr", *cells))
    names = " ".join(filter(None, (class_, "sortable" if sortable else None)))
    return element(
        "table",
        element("caption", caption, class_="unseen"),
        element("thead", element("tr", *(element("th", name, scope="col") for name in head))),
        element("tbody", *lines),
        class_=names or None,
    )


def scrolled(content: Markup, label: str) -> Markup:
    """What may be wider than the page, in a frame that scrolls by itself, with the keyboard too."""
    return element("div", content, class_="scrolled", role="region", aria_label=label, tabindex=0)
