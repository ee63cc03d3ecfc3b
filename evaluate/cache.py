"""Tensors that took long to make, kept with a record of what they are."""

import hashlib
import json
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from genflow.files import atomic_path

__all__ = ["cached_tensors", "read_tensors", "save_tensors", "write_tensors"]


def cached_tensors(
    path: str | Path, record: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors at ``path`` where that file carries the same JSON ``record``; else make them and write it.

    A file that cannot be read or that carries another record is replaced.
    """
    kept = read_tensors(path, record)
    return write_tensors(path, record, make()) if kept is None else kept


def read_tensors(path: str | Path, record: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """The tensors at ``path``; None where there is no file, a damaged one, or one that carries another record."""
    if not Path(path).is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("record") != _text(record):
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError):
        return None
    # Files written before there were digests have none.
    return tensors if header.get("sha256") in (None, _digest(tensors)) else None


def write_tensors(path: str | Path, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Write ``tensors`` atomically, with ``record`` and a digest in the header; return them as they would be read."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_tensors(path, tensors, {"record": _text(record), "sha256": _digest(tensors)})
    return tensors


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write contiguous tensors of the host to a safetensors file atomically, as readable to others as any new file.

    (safetensors' own writer leaves files that only their owner can read, and refuses tensors that share memory.)
    """
    own: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        own[name] = tensor.clone() if place in places else tensor
        places.add(place)
    with atomic_path(path) as temporary:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        save_file(own, temporary, dict(header))
        temporary.chmod(mode)


def _text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True, allow_nan=False)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}\n".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
