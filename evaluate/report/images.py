"""Pictures inside a page: small, of bounded size, in the address itself."""

import io
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from genflow.errors import InputError
from genflow.evaluate.evaluation import Side
from genflow.evaluate.report.html import Markup, data_uri, element

__all__ = ["Thumbnails"]

_SIDE = 128
"""Pixels of a thumbnail's longer side, shown at 64 to 96."""
_EXACT = 64
"""Up to this many pixels a side a picture is kept as it is, lossless."""


@dataclass(frozen=True)
class Thumbnails:
    """Pictures of one side of an evaluation, as ``img`` elements.

    Attributes:
        side: whose pictures.
        noun: what one is called in its text for those who cannot see it: "sample", "reference image".
    """

    side: Side
    noun: str
    _made: dict[int, np.ndarray] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether pictures can be had at all."""
        return self.side.source is not None and self.side.features.names is not None

    def name(self, row: int) -> str:
        """Of the sample in ``row``: its file or place, else its number."""
        names = self.side.features.names
        return names[row] if names is not None else f"number {row}"

    def label(self, row: int) -> str | None:
        """The name of its class, where one is known."""
        features = self.side.features
        label = -1 if features.labels is None else int(features.labels[row])
        if label < 0:
            return None
        names = features.class_names
        return names[label] if names is not None and label < len(names) else f"class {label}"

    def load(self, rows: Iterable[int]) -> None:
        """Tell which pictures will be shown: a pipeline makes them together several times faster than one by one."""
        source, wanted = self.side.source, [row for row in dict.fromkeys(map(int, rows)) if row not in self._made]
        if not wanted or not hasattr(source, "batches"):  # what is read from a disk can as well be read when shown
            return
        index = {name: place for place, name in enumerate(source.names)}
        places = [index[self.name(row)] for row in wanted]
        pictures = itertools.chain.from_iterable(source.batches(places, len(places)))
        self._made.update((row, picture.array) for row, picture in zip(wanted, pictures, strict=True))

    def __call__(self, row: int) -> Markup:
        """The picture in ``row``; a line in its place where it cannot be read any more."""
        words = f"{self.noun} {self.name(row)}"
        label = self.label(row)
        if label is not None:
            words += f", {label}"
        try:
            picture = self._made[row] if row in self._made else self.side.picture(row)
        except InputError as error:
            return element("span", f"cannot be read: {error}", class_="unreadable")
        if picture is None:
            return element("span", "no picture", class_="unreadable")
        address, (width, height), exact = _thumbnail(picture)
        return element(
            "img",
            src=address,
            width=width,
            height=height,
            alt=words,
            title=words,
            class_="exact" if exact else None,
            decoding="async",
        )


def _thumbnail(picture: np.ndarray) -> tuple[str, tuple[int, int], bool]:
    """Address, size and whether all pixels are there, of a uint8 ``(H, W, C)`` picture with C 1 or 3."""
    image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
    longer = max(image.size)
    exact = longer <= _EXACT
    if longer > _SIDE:
        size = (max(1, round(image.width * _SIDE / longer)), max(1, round(image.height * _SIDE / longer)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if exact:
        image.save(buffer, format="PNG", optimize=True)
    else:
        image.save(buffer, format="JPEG", quality=85, optimize=True)
    return data_uri("image/png" if exact else "image/jpeg", buffer.getvalue()), image.size, exact
