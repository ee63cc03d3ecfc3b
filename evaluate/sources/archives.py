"""Images inside zip and tar archives, read where they lie: nothing is ever written, so no path can lead astray."""

import io
import lzma
import os
import struct
import tarfile
import threading
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from genflow.data import is_image_name, natural_key
from genflow.errors import InputError
from genflow.evaluate.sources.files import NamedFiles
from genflow.evaluate.sources.gzip_blocks import GzipBlocks
from genflow.evaluate.sources.labels import DATASET_JSON
from genflow.images import UnreadableImageError

__all__ = ["ARCHIVE_SUFFIXES", "DAMAGED", "TarSource", "ZipSource", "open_archive"]

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")

_LARGEST = 2**30  # bytes of one file; a member that claims more is no picture
DAMAGED = (
    *(OSError, EOFError, ValueError, RuntimeError, ArithmeticError, struct.error),
    *(zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError),
)
"""What the readers of archives raise on damaged ones."""


class _Archive(NamedFiles):
    """Members by path, in natural order. The file is opened again in each process that reads it."""

    def __init__(self, path: Path, name: str, class_names: Sequence[str] | None) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._opened: tuple[int, Any] | None = None
        try:
            members = self._list()
        except InputError:
            raise
        except DAMAGED as error:
            raise InputError(f"{path}: damaged or no archive of this kind ({error})") from error
        self._listing = members.pop(DATASET_JSON, None)
        paths = sorted(members, key=natural_key)
        self._members = [members[member] for member in paths]
        super().__init__(name, paths, class_names)

    @abstractmethod
    def _list(self) -> dict[str, Any]:
        """What is needed to read each image, and dataset.json, by its path."""

    @abstractmethod
    def _open(self) -> Any:
        """Whatever is kept open to read members."""

    @abstractmethod
    def _member(self, member: Any, size: int | None) -> bytes:
        """A member's bytes, or about the first ``size`` of them."""

    @property
    def _handle(self) -> Any:
        with self._lock:
            if self._opened is None or self._opened[0] != os.getpid():
                self._opened = os.getpid(), self._open()
            return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"} | {"_opened": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    def place(self, index: int) -> str:
        return f"{self.path}/{self.names[index]}"

    def read_bytes(self, index: int) -> bytes:
        return self._read(index, None)

    def head(self, index: int, size: int) -> bytes:
        return self._read(index, size)

    def _read(self, index: int, size: int | None) -> bytes:
        try:
            return self._member(self._members[index], size)
        except DAMAGED as error:
            raise UnreadableImageError(self.place(index), f"in its archive: {error}") from error

    def read_listing(self) -> bytes | None:
        try:
            return None if self._listing is None else self._member(self._listing, None)
        except DAMAGED as error:
            raise InputError(f"{self.path}/{DATASET_JSON}: cannot be read ({error})") from error


class ZipSource(_Archive):
    """The images in a zip file."""

    def _open(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.path)  # its own lock lets several threads read

    def _list(self) -> dict[str, zipfile.ZipInfo]:
        members = {}
        for info in self._handle.infolist():
            path = _normal(info.filename)
            if not info.is_dir() and _wanted(path):
                if info.flag_bits & 1:
                    raise InputError(f"{self.path}: {path} is encrypted; allowed: archives without a password")
                members[path] = info
        return members

    def _member(self, member: zipfile.ZipInfo, size: int | None) -> bytes:
        _check_size(member.file_size)
        if size is None:
            return self._handle.read(member)
        with self._handle.open(member) as file:
            return file.read(size)


class TarSource(_Archive):
    """The images in a tar file, gzipped or not."""

    def _open(self) -> Callable[[int, int], bytes]:
        file = self.path.open("rb")
        gzipped = file.read(2) == b"\x1f\x8b"
        return GzipBlocks(file).read_at if gzipped else _Unpacked(file).read_at

    def _list(self) -> dict[str, tuple[int, int]]:
        members = {}
        with tarfile.open(fileobj=_Stream(self._handle), mode="r:") as archive:
            for info in archive:
                path = _normal(info.name)
                if info.isreg() and _wanted(path):
                    if info.issparse():
                        raise InputError(f"{self.path}: {path} is stored with holes; allowed: whole files")
                    members[path] = info.offset_data, info.size  # of two with one name the later, as tar has it
                archive.members = []  # or each would be kept
            if not self._handle(archive.offset, 1):
                raise EOFError("it is cut short: tar's end mark is missing")
        return members

    def _member(self, member: tuple[int, int], size: int | None) -> bytes:
        offset, whole = member
        _check_size(whole)
        wanted = whole if size is None else min(size, whole)
        data = self._handle(offset, wanted)
        if len(data) < wanted:
            raise EOFError("the archive is cut short")
        return data


class _Unpacked:
    """A plain file by offset, from several threads."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file, self._lock = file, threading.Lock()

    def read_at(self, offset: int, size: int) -> bytes:
        with self._lock:
            self._file.seek(offset)
            return self._file.read(size)


class _Stream(io.RawIOBase):
    """What reads by offset, as a file that tarfile can walk through."""

    def __init__(self, read_at: Callable[[int, int], bytes]) -> None:
        self._read_at, self._at = read_at, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            raise io.UnsupportedOperation("the end is not known")
        self._at = offset if whence == os.SEEK_SET else self._at + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        data = self._read_at(self._at, size if size >= 0 else _LARGEST)
        self._at += len(data)
        return data


def _normal(path: str) -> str:
    return "/".join(part for part in path.replace("\\", "/").split("/") if part not in ("", "."))


def _wanted(path: str) -> bool:
    return path == DATASET_JSON or is_image_name(path)


def _check_size(size: int) -> None:
    if size > _LARGEST:
        raise ValueError(f"it claims to be of {size} bytes; allowed: up to {_LARGEST}")


def open_archive(path: Path, name: str, class_names: Sequence[str] | None = None) -> NamedFiles:
    """The images in an archive, of the kind that its suffix tells. Raises InputError: damaged, encrypted, no image."""
    kind = ZipSource if path.suffix.lower() == ".zip" else TarSource
    return kind(path, name, class_names)
