"""Features kept by what they were made of, whole or, of a run that was stopped, in shards.

An entry is named after the SHA-256 of its record: the images' content, the feature network with all that its features
depend on, the figures that are taken of images, and the versions of genflow and of this format. Neither file names nor
labels are in it, so that a copied folder finds its features again.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import genflow
from genflow.errors import InputError
from genflow.evaluate.cache import read_tensors, write_tensors
from genflow.evaluate.sources.figures import FIGURES
from genflow.files import cache_root, output_folder

__all__ = ["LIMIT", "NOTES", "POSITION", "FeatureEntry", "cache_folder", "cache_size", "join_rows"]

LIMIT = 8 * 2**30
"""Bytes that the entries may take together; those used longest ago go first. 50,000 x 2048 features take 0.45e9."""

POSITION = "position"
"""The tensor ``(n,)`` int64 that says which of the images each row of the others is of."""

NOTES = "notes."
"""Begins the names of tensors ``(n,)`` int64 that count what is said of images, for all of a batch in its first row."""

_FORMAT = 1


def cache_folder(cache: bool | str | Path) -> Path | None:
    """The folder of feature entries: for True one below :func:`~genflow.files.cache_root`, for False none.

    Raises InputError where a given folder, or that of $GENFLOW_CACHE, is a file or cannot be made or written to; a home
    folder that cannot be written to gives a warning and no cache.
    """
    if cache is False:
        return None
    if cache is not True:
        return output_folder("cache", cache)
    try:
        return output_folder("GENFLOW_CACHE", cache_root() / "features")
    except InputError as error:
        if os.environ.get("GENFLOW_CACHE"):
            raise
        warnings.warn(f"features are not kept: {error}", stacklevel=3)
        return None


def cache_size(folder: str | Path) -> int:
    """Bytes that the entries in ``folder`` take, shards of unfinished ones among them."""
    return sum(size for _, size, _ in _entries(Path(folder)))


def join_rows(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rows of several parts in one, by rising :data:`POSITION`; of two of one image the first counts.

    Notes that a part does not have are zeros there.
    """
    rows = parts[0]
    if len(parts) > 1:
        samples = {name: tensor for part in parts for name, tensor in part.items()}
        rows = {
            name: torch.cat([part.get(name, _no_notes(part, name, tensor)) for part in parts])
            for name, tensor in samples.items()
        }
    position, order = torch.sort(rows[POSITION], stable=True)
    first = torch.ones_like(position, dtype=torch.bool)
    first[1:] = position[1:] != position[:-1]
    chosen = order[first]
    if torch.equal(chosen, torch.arange(len(rows[POSITION]))):
        return rows
    return {name: tensor[chosen] for name, tensor in rows.items()}


def _no_notes(part: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    return like.new_zeros(len(part[POSITION]) if name.startswith(NOTES) else 0)


@dataclass(frozen=True)
class FeatureEntry:
    """One set of images seen by one network, in ``folder``: ``KEY.safetensors``, or shards in ``KEY.partial/``.

    Attributes:
        folder: of all entries.
        network: ``Extractor.describe()``, which lists nothing that only speed depends on.
        content: SHA-256 of the images, in their order.
    """

    folder: Path
    network: Mapping[str, Any]
    content: str

    @property
    def record(self) -> dict[str, Any]:
        """What the entry's content depends on, JSON-safe."""
        return {
            "network": dict(self.network),
            "content": self.content,
            "figures": sorted(FIGURES),
            "genflow": genflow.__version__,  # another release may prepare images otherwise
            "format": _FORMAT,
        }

    @cached_property
    def key(self) -> str:
        """SHA-256 of the record."""
        return hashlib.sha256(json.dumps(self.record, sort_keys=True, allow_nan=False).encode()).hexdigest()

    @property
    def path(self) -> Path:
        """The file of a finished run."""
        return self.folder / f"{self.key}.safetensors"

    @property
    def partial(self) -> Path:
        """The folder of an unfinished run's shards."""
        return self.folder / f"{self.key}.partial"

    def read(self) -> dict[str, Tensor] | None:
        """What a finished run kept; None where there is no such file, or a damaged one."""
        tensors = read_tensors(self.path, self.record)
        if tensors is not None:
            with suppress(OSError):
                os.utime(self.path)  # used just now
        return tensors

    def read_shards(self) -> dict[str, Tensor] | None:
        """The rows that unfinished runs kept; None where there are none. Damaged shards are removed."""
        parts: list[dict[str, Tensor]] = []
        for path in sorted(self.partial.glob("*.safetensors")):
            rows = read_tensors(path, self.record)
            if rows is not None and _columns(rows) == _columns(parts[0] if parts else rows):
                parts.append(rows)
            else:
                with suppress(OSError):
                    path.unlink()
        return join_rows(parts) if parts else None

    def write_shard(self, rows: Mapping[str, Tensor]) -> None:
        """Keep some rows of an unfinished run."""
        first, last = int(rows[POSITION][0]), int(rows[POSITION][-1])
        with _spared("partial features are not kept"):
            write_tensors(self.partial / f"{first:09d}-{last:09d}.safetensors", self.record, rows)

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep a finished run, remove its shards, and the entries used longest ago beyond :data:`LIMIT` bytes."""
        with _spared("features are not kept"):
            write_tensors(self.path, self.record, tensors)
            shutil.rmtree(self.partial, ignore_errors=True)
            total = 0
            for _, size, path in sorted(_entries(self.folder), reverse=True):
                total += size
                if total > LIMIT and path != self.path:
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _columns(rows: Mapping[str, Tensor]) -> set[str]:
    return {name for name in rows if not name.startswith(NOTES)}


@contextmanager
def _spared(what: str) -> Iterator[None]:
    """A cache that cannot be written costs time, not the result: the error becomes a warning."""
    try:
        yield
    except OSError as error:
        warnings.warn(f"{what}: {error}", stacklevel=3)


def _entries(folder: Path) -> list[tuple[float, int, Path]]:
    """When each entry was last used, its bytes and its path."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.suffix not in (".safetensors", ".partial") or len(path.stem) != 64:
            continue  # not ours to count, let alone to remove
        with suppress(OSError):  # another process has removed it
            files = [file.stat() for file in (path.iterdir() if path.is_dir() else [path])]
            used = max((stat.st_mtime for stat in files), default=path.stat().st_mtime)
            found.append((used, sum(stat.st_size for stat in files), path))
    return found
