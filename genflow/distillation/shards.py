"""Tensors on disk in shards: each written whole or not at all, those that are missing made, damaged ones named."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from genflow.errors import InputError, check_number
from genflow.files import atomic_path, check_safetensors, write_json

__all__ = ["ShardStore"]

_MANIFEST = "manifest.json"
_MARK = "shard"  # manifest and content, in one entry: safetensors writes several in no fixed order


@dataclass(frozen=True)
class ShardStore:
    """A folder of shards that one manifest describes.

    Attributes:
        folder: where they lie: ``manifest.json`` and ``shard-NNNNN.safetensors``.
        manifest: all that decides the shards' content, JSON-safe.
        count: rows in all shards together.
        size: rows in a shard; the last one may have fewer.
    """

    folder: Path
    manifest: dict[str, Any]
    count: int
    size: int

    @classmethod
    def open(cls, folder: Path) -> "ShardStore":
        """The store in ``folder``, by its manifest's ``count`` and ``shard_size``; InputError where there is none."""
        manifest = read_manifest(folder)
        count, size = manifest.get("count"), manifest.get("shard_size")
        check_number(f"{folder / _MANIFEST}: count", count, at_least=1, integer=True)
        check_number(f"{folder / _MANIFEST}: shard_size", size, at_least=1, integer=True)
        return cls(folder, manifest, count, size)

    @property
    def key(self) -> str:
        """16 hexadecimal digits of the manifest, which every shard carries."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        """How many shards there are."""
        return -(-self.count // self.size)

    def rows(self, index: int) -> range:
        """The rows that shard ``index`` holds."""
        return range(index * self.size, min((index + 1) * self.size, self.count))

    def path(self, index: int) -> Path:
        """The file of shard ``index``."""
        return self.folder / f"shard-{index:05d}.safetensors"

    def begin(self) -> None:
        """Write the manifest. Raises InputError where the folder holds one that says something else."""
        path = self.folder / _MANIFEST
        if not path.is_file():
            write_json(path, self.manifest)
            return
        before = read_manifest(self.folder)
        for key in sorted({*before, *self.manifest}):
            if before.get(key) != self.manifest.get(key):
                raise InputError(
                    f"{self.folder}: its {key!r} is {before.get(key)}, now {self.manifest.get(key)}; "
                    "allowed: the same, another folder, or --restart"
                )

    def missing(self) -> list[int]:
        """The shards that are not there yet. Raises InputError, naming the file, for one that is damaged."""
        absent = []
        for index in range(len(self)):
            if self.path(index).is_file():
                self._check(index)
            else:
                absent.append(index)
        return absent

    def _check(self, index: int) -> None:
        path = self.path(index)
        try:
            check_safetensors(path)
            with safe_open(path, "pt") as file:
                found = (file.metadata() or {}).get(_MARK, "").partition(" ")[0]
                rows = {file.get_slice(name).get_shape()[0] for name in file.keys()}  # noqa: SIM118 (no dictionary)
        except (InputError, SafetensorError) as error:
            raise InputError(f"{path}: damaged shard ({error}); remove it, and it is made again") from error
        if found != self.key or rows != {len(self.rows(index))}:
            raise InputError(f"{path}: not a shard of this manifest; remove it, and it is made again")

    def write(self, index: int, tensors: dict[str, Tensor]) -> None:
        """Write shard ``index``."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with atomic_path(self.path(index)) as temporary:
            save_file(tensors, temporary, metadata={_MARK: f"{self.key} {_digest(tensors)}"})

    def read(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """All rows, on ``device``. Raises InputError for shards that are missing or damaged, by name."""
        absent = self.missing()
        if absent:
            raise InputError(f"{self.path(absent[0])}: {len(absent)} of {len(self)} shards are missing")
        parts: Sequence[dict[str, Tensor]] = [self._load(index, device) for index in range(len(self))]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _load(self, index: int, device: torch.device | str) -> dict[str, Tensor]:
        try:
            with safe_open(self.path(index), "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                whole = file.metadata()[_MARK].partition(" ")[2] == _digest(tensors)
        except (OSError, KeyError, SafetensorError) as error:
            raise InputError(f"{self.path(index)}: damaged shard ({error}); remove it, and it is made again") from error
        if not whole:
            raise InputError(
                f"{self.path(index)}: damaged shard (its bytes have changed); remove it, and it is made again"
            )
        return {name: tensor.to(device) for name, tensor in tensors.items()}


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest in ``folder``. Raises InputError where there is none, or it is no JSON."""
    path = folder / _MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    if not isinstance(manifest, dict):
        raise InputError(f"{path}: not a manifest of shards")
    return manifest
