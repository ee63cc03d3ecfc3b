"""What a source of images is, whatever holds them."""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, Self

import numpy as np
from torch import Tensor

from genflow.evaluate.sources.labels import renumbered
from genflow.evaluate.sources.pixels import Picture, picture_of
from genflow.images import UnreadableImageError, decode_image

__all__ = ["EncodedSource", "ImageSource", "Picture", "Source"]


_UNREADABLE = b"\xff" * 8  # in the place of a length


class ImageSource(Protocol):
    """N images with what is known of them.

    Attributes:
        name: as the user gave it.
        names: one an image: its path in the folder or archive, or its place in an array.
        labels: int64 ``(N,)``, -1 where the class is not known; None where no class is.
        class_names: names of the labels; None where they have none.
    """

    name: str
    names: Sequence[str]
    labels: Tensor | None
    class_names: tuple[str, ...] | None

    def __len__(self) -> int: ...

    def place(self, index: int) -> str:
        """Where an image lies, in full, for a message."""

    def read(self, index: int) -> np.ndarray:
        """One image, uint8 ``(H, W, C)`` with C 1 or 3. Raises InputError, which names it."""

    def picture(self, index: int) -> Picture:
        """The same, with notes on what of the file was left behind. Raises as :meth:`read` does; of what is damaged,
        :class:`~genflow.images.UnreadableImageError`."""

    def content_hash(self, indices: Sequence[int] | None = None) -> str:
        """SHA-256 of the images' bytes in this order, all by default. Names and labels do not go into it."""

    def among(self, class_names: Sequence[str]) -> "ImageSource":
        """The same images with labels that are numbers in ``class_names``; nothing is opened or read again."""

    def describe(self) -> dict[str, Any]:
        """What a protocol has to say of the source beside its name, for JSON: of a pipeline, how it samples."""


class Source(ABC):
    """Base of the sources: :meth:`read` from :meth:`picture`."""

    name: str
    names: Sequence[str]
    labels: Tensor | None = None
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def place(self, index: int) -> str:
        return self.names[index]

    def read(self, index: int) -> np.ndarray:
        return self.picture(index).array

    def among(self, class_names: Sequence[str]) -> Self:
        other = copy.copy(self)
        if self.labels is not None:
            other.labels, other.class_names = renumbered(self.labels, self.class_names, class_names)
        return other

    def describe(self) -> dict[str, Any]:
        return {}

    @abstractmethod
    def picture(self, index: int) -> Picture: ...

    @abstractmethod
    def content_hash(self, indices: Sequence[int] | None = None) -> str: ...


class EncodedSource(Source):
    """Images that are files of their own. The same files give the same hash wherever they lie."""

    @abstractmethod
    def read_bytes(self, index: int) -> bytes:
        """The file. Raises UnreadableImageError."""

    def head(self, index: int, size: int) -> bytes:
        """The file's first bytes, at least ``size`` of them where it has as many."""
        return self.read_bytes(index)

    def picture(self, index: int) -> Picture:
        place = self.place(index)
        return picture_of(*decode_image(self.read_bytes(index), place), place)

    def content_hash(self, indices: Sequence[int] | None = None) -> str:
        digest = hashlib.sha256(b"files\n")
        for index in range(len(self)) if indices is None else indices:
            try:
                data = self.read_bytes(index)
            except UnreadableImageError:  # whoever decodes it will name it
                digest.update(_UNREADABLE)
                continue
            digest.update(len(data).to_bytes(8, "big"))
            digest.update(data)
        return digest.hexdigest()
