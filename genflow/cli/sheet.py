"""One picture of a comparison: named rows and columns of cells, in each the same images in the same order."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from genflow.images import grid

__all__ = ["SheetRow", "draw_sheet"]

_SHOWN = 16  # images a cell
_SMALL, _LARGE = 56, 192  # a tile's longer side: up to the first by whole factors, down to the second
_GAP = 8
_TEXT = 14


@dataclass(frozen=True)
class SheetRow:
    """A label of one line or more, and the images of each column; an empty cell stays empty."""

    label: str
    cells: Sequence[Sequence[Image.Image]]


def draw_sheet(columns: Sequence[str], rows: Sequence[SheetRow]) -> Image.Image:
    """Draw it: column titles above, labels at the left; small images enlarged by a whole factor, large ones reduced.

    A cell shows 16 images at most. All images have one size.
    """
    font = ImageFont.load_default(_TEXT)
    shown = max(len(cell) for row in rows for cell in row.cells)
    count = min(shown, _SHOWN)
    across = _across(count)
    tiles = [[_cell(cell, count, across) for cell in row.cells] for row in rows]
    width, height = next(tile.size for line in tiles for tile in line if tile is not None)
    margin = max(_width(font, line) for row in rows for line in row.label.splitlines()) + 2 * _GAP
    width = max(width, *(_width(font, title) for title in columns))
    top = _TEXT + 2 * _GAP
    heights = [max(height, round(1.25 * _TEXT * len(row.label.splitlines()))) + _GAP for row in rows]
    sheet = Image.new("RGB", (margin + len(columns) * (width + _GAP), top + sum(heights)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, title in enumerate(columns):
        pen.text((margin + index * (width + _GAP), _GAP), title, "black", font)
    y = top
    for row, line, tall in zip(rows, tiles, heights, strict=True):
        pen.multiline_text((_GAP, y), row.label, "black", font)
        for index, tile in enumerate(line):
            if tile is not None:
                sheet.paste(tile, (margin + index * (width + _GAP), y))
        y += tall
    return sheet


def _across(count: int) -> int:
    """Images a line: up to four in one, else about as many as there are lines, with the last line full if it can be."""
    if count <= 4:
        return count
    least = math.ceil(math.sqrt(count))
    return next((number for number in range(least, 2 * least) if count % number == 0), least)


def _width(font: ImageFont.FreeTypeFont, text: str) -> int:
    return math.ceil(font.getlength(text))


def _cell(images: Sequence[Image.Image], count: int, across: int) -> Image.Image | None:
    if not images:
        return None
    side = max(images[0].size)
    zoom = max(1, _SMALL // side)
    pictures = [image.convert("RGB") for image in images[:count]]
    if side > _LARGE:
        size = tuple(max(1, round(length * _LARGE / side)) for length in images[0].size)
        pictures = [picture.resize(size, Image.Resampling.LANCZOS) for picture in pictures]
    return grid(pictures, across, zoom=zoom)
