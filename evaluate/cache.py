"""Tensors that took long to make, kept with a record of what they are."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from genflow.files import atomic_path

__all__ = ["cached_tensors"]


def cached_tensors(
    path: str | Path, record: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors at ``path`` where that file carries the same JSON ``record``; else make them and write it.

    A file that cannot be read or that carries another record is replaced.
    """
    path = Path(path)
    text = json.dumps(record, sort_keys=True, allow_nan=False)
    if path.is_file():
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("record") == text:
                    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError):
            pass
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in make().items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, {"record": text}))
    return tensors
