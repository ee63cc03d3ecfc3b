"""Images of a data set that the ``datasets`` library loads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from genflow.data import open_table
from genflow.errors import InputError
from genflow.evaluate.sources.labels import renumbered
from genflow.evaluate.sources.source import EncodedSource
from genflow.images import UnreadableImageError

__all__ = ["DatasetSource"]


class DatasetSource(EncodedSource):
    """The image column of a table, its files as they are stored, and its column of classes.

    Args:
        name: the data set's id.
        split: of the data set.
        own_names: names of its classes, by default its own.
        class_names: as of ``open_source``.

    Raises:
        InputError: the library is not installed, the data set is not to be had, it has no images.
    """

    def __init__(
        self,
        name: str,
        split: str,
        *,
        own_names: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        table, self._column, labels = open_table(name, split)
        if len(table) == 0:
            raise InputError(f"{name} holds no image")
        if labels is not None:
            numbers = torch.tensor([-1 if label is None else label for label in table[labels]])
            self.labels, self.class_names = renumbered(numbers, own_names or table.features[labels].names, class_names)
        self._table = table.cast_column(self._column, type(table.features[self._column])(decode=False))
        self.name = name
        self.names = tuple(f"{split}[{index}]" for index in range(len(table)))

    def place(self, index: int) -> str:
        return f"{self.name}/{self.names[index]}"

    def read_bytes(self, index: int) -> bytes:
        entry: dict[str, Any] | None = self._table[index][self._column]
        if entry is None:
            raise UnreadableImageError(self.place(index), "no image here")
        if entry.get("bytes") is not None:
            return entry["bytes"]
        try:
            return Path(entry["path"]).read_bytes()
        except (OSError, TypeError) as error:
            raise UnreadableImageError(self.place(index), f"{entry.get('path')}: {error}") from error
