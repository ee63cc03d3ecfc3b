"""Training state on disk: safetensors and JSON, written whole or not at all."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from genflow.errors import InputError
from genflow.files import atomic_folder

__all__ = [
    "flatten_optimizer",
    "latest_checkpoint",
    "load_checkpoint",
    "load_optimizer",
    "restore_optimizer",
    "save_checkpoint",
]

_NAME = re.compile(r"step-(\d+)")
_STATE = "state.json"


def flatten_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's ``state_dict`` into tensors by flat name, and the JSON-safe rest."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    return tensors, {"numbers": numbers, "param_groups": state["param_groups"]}


def restore_optimizer(tensors: dict[str, Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`flatten_optimizer`."""
    state: dict[int, dict[str, Any]] = {int(i): dict(entries) for i, entries in rest["numbers"].items()}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    groups = [{k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in rest["param_groups"]]
    return {"state": state, "param_groups": groups}


def load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
    """Put back into ``optimizer`` what :func:`flatten_optimizer` made of its state."""
    optimizer.load_state_dict(restore_optimizer(tensors, rest))
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            if value.shape == parameter.shape:  # torch's fused kernels want the parameter's memory format
                entries[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], keep: int
) -> Path:
    """Write ``folder/step-NNNNNNNN`` with one safetensors file for each entry of ``tensors`` and ``state`` as JSON.

    Older checkpoints beyond the newest ``keep`` are removed once the new one stands.
    """
    target = folder / f"step-{step:08d}"
    with atomic_folder(target) as temporary:
        for name, group in tensors.items():
            save_file({k: v.detach().contiguous() for k, v in group.items()}, temporary / f"{name}.safetensors")
        (temporary / _STATE).write_text(json.dumps({"step": step, **state}, indent=2), encoding="utf-8")
    for old in _checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def _checkpoints(folder: Path) -> list[Path]:
    found = [p for p in folder.glob("step-*") if _NAME.fullmatch(p.name) and (p / _STATE).is_file()]
    return sorted(found, key=lambda p: int(p.name.split("-")[1]))


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in ``folder``, or None."""
    found = _checkpoints(folder)
    return found[-1] if found else None


def load_checkpoint(checkpoint: Path, names: tuple[str, ...]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read what :func:`save_checkpoint` wrote. Raises InputError where a file is missing or damaged."""
    try:
        state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
        tensors = {name: load_file(checkpoint / f"{name}.safetensors") for name in names}
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"{checkpoint}: damaged checkpoint ({error}); remove it to go on from the one before"
        ) from error
    return tensors, state
