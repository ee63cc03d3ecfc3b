"""Images that are files: what folders and archives have in common, and folders."""

import copy
import functools
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch

from genflow.data import image_files
from genflow.errors import InputError
from genflow.evaluate.sources.labels import (
    DATASET_JSON,
    Labelling,
    folder_classes,
    listed_labels,
    png_text,
    record_labels,
)
from genflow.evaluate.sources.source import EncodedSource
from genflow.images import UnreadableImageError

__all__ = ["FolderSource", "NamedFiles"]

_HEAD = 4096  # a PNG's record of how it was made lies in here, but for very long prompts


class NamedFiles(EncodedSource):
    """Files with paths; their classes are looked for when they are first asked for."""

    def __init__(self, name: str, paths: Sequence[str], class_names: Sequence[str] | None) -> None:
        if not paths:
            raise InputError(f"{name} holds no image")
        self.name, self.names = name, tuple(paths)
        self._given_names = tuple(class_names) if class_names else None

    def among(self, class_names: Sequence[str]) -> Self:
        other = copy.copy(self)
        other._given_names = tuple(class_names)
        other.__dict__.pop("_labelling", None)
        return other

    @abstractmethod
    def read_listing(self) -> bytes | None:
        """The dataset.json that lies with the images, where there is one."""

    @functools.cached_property
    def _labelling(self) -> Labelling:
        listing = self.read_listing()
        if listing is not None:
            listed = listed_labels(listing, f"{self.name}: {DATASET_JSON}", self.names)
            if listed is not None:
                bound = len(self._given_names) if self._given_names else max(listed) + 1
                return torch.tensor([label if label < bound else -1 for label in listed]), self._given_names
        labelling = record_labels(map(self._record, range(len(self))), self._given_names)
        return labelling or folder_classes(self.names, self._given_names) or (None, None)

    def _record(self, index: int) -> str | None:
        if not self.names[index].lower().endswith(".png"):
            return None
        try:
            return png_text(self.head(index, _HEAD), functools.partial(self.read_bytes, index))
        except UnreadableImageError:
            return None  # reading the image will tell

    @property
    def labels(self) -> torch.Tensor | None:
        return self._labelling[0]

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self._labelling[1]


class FolderSource(NamedFiles):
    """A folder of images, its sub-folders among them, in natural order; hidden files and grid.png are passed over."""

    def __init__(self, folder: Path, name: str | None = None, *, class_names: Sequence[str] | None = None) -> None:
        self.folder = folder
        files = image_files(folder)
        super().__init__(name or str(folder), [path.relative_to(folder).as_posix() for path in files], class_names)

    def place(self, index: int) -> str:
        return f"{self.folder}/{self.names[index]}"

    def read_bytes(self, index: int) -> bytes:
        return self._read(index, -1)

    def head(self, index: int, size: int) -> bytes:
        return self._read(index, size)

    def _read(self, index: int, size: int) -> bytes:
        try:
            with open(self.place(index), "rb", buffering=0) as file:
                return file.read(size)
        except OSError as error:
            raise UnreadableImageError(self.place(index), error.strerror or str(error)) from error

    def read_listing(self) -> bytes | None:
        path = self.folder / DATASET_JSON
        return path.read_bytes() if path.is_file() else None
