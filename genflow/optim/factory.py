"""An optimizer from a name or a file, over a module or parameters: what the command line and recipes use."""

import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genflow.errors import InputError, check_keys
from genflow.optim.base import OptimizerBase
from genflow.optim.groups import parameter_groups
from genflow.optim.options import FLAG_DEFAULTS
from genflow.optim.registry import optimizer_class

__all__ = ["create_optimizer", "option_names"]

_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)  # where it exists for CPUs and accelerators alike
_FILES = (".json", ".yaml", ".yml")
_KEYS = ("name", "lr", "weight_decay", "options", "overrides")


def option_names(cls: type[torch.optim.Optimizer]) -> list[str] | None:
    """What the constructor of ``cls`` takes beside parameters; None if it takes anything."""
    parameters = inspect.signature(cls.__init__).parameters
    names = [name for name, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD][2:]
    if issubclass(cls, OptimizerBase):
        return names + list(FLAG_DEFAULTS)
    return names if len(names) == len(parameters) - 2 else None


def create_optimizer(
    name_or_path: str | Path,
    params: nn.Module | Iterable[Any],
    *,
    lr: float | Tensor | None = None,
    weight_decay: float | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    exempt: bool = True,
    **options: Any,
) -> torch.optim.Optimizer:
    """An optimizer by name, or from a file.

    Args:
        name_or_path: a name of :data:`genflow.optim.OPTIMIZERS`; an import path (``torch.optim:Muon``); or a JSON or
            YAML file with the keys of a recipe's ``optimizer`` section (``name``, ``lr``, ``weight_decay``,
            ``options``, ``overrides``), or a whole recipe. What is given here wins over the file.
        params: a module, whose parameters are put into groups by :func:`genflow.optim.parameter_groups`; or
            parameters, named parameters or groups as torch takes them.
        lr: step size; default: the optimizer's own.
        weight_decay: default: 0 for a module, else the optimizer's own.
        overrides: per-module options, only with a module; see :func:`genflow.optim.parameter_groups`.
        exempt: no weight decay on biases, norms and embeddings of a module; default True.
        **options: the optimizer's own; lists become tuples. torch's Adam, AdamW and SGD are fused unless told
            otherwise.

    Raises:
        InputError: an unknown name or option (with the nearest known), a value that the optimizer refuses, an
            override that matches nothing, a file that cannot be read.
    """
    if str(name_or_path).endswith(_FILES):
        values = _read(Path(name_or_path))
        lr = values.get("lr") if lr is None else lr
        weight_decay = values.get("weight_decay") if weight_decay is None else weight_decay
        overrides = values.get("overrides") if overrides is None else overrides
        options = {**(values.get("options") or {}), **options}
        name_or_path = values["name"]
    name = name_or_path
    cls = optimizer_class(name)
    known = option_names(cls)
    if known is not None:
        check_keys("optimizer.options", options, [key for key in known if key not in ("lr", "weight_decay")])
        for pattern, values in (overrides or {}).items():
            check_keys(f"optimizer.overrides[{pattern!r}]", values, known)
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    if cls in _FUSED and not any(options.get(key) for key in ("foreach", "differentiable")):
        options.setdefault("fused", True)
    if lr is not None:
        options["lr"] = lr
    decays = known is None or "weight_decay" in known
    if weight_decay and not decays:
        raise InputError(f"optimizer.weight_decay: got {weight_decay}; {name!r} has none, allowed: 0")
    if isinstance(params, nn.Module):
        if known is not None and "model" in known:
            options.setdefault("model", params)  # for those that watch its layers
        params = parameter_groups(params, (weight_decay or 0.0) if decays else None, exempt=exempt, overrides=overrides)
    elif overrides:
        raise InputError("optimizer.overrides: they go by the names of a module's parts; allowed: only with a module")
    if weight_decay is not None and decays:
        options["weight_decay"] = weight_decay
    try:
        return cls(params, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"optimizer: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            values = json.loads(text)
        else:
            import yaml  # only files need it

            values = yaml.safe_load(text)
    except OSError as error:
        raise InputError(f"optimizer: {path} cannot be read ({error.strerror})") from error
    except Exception as error:  # yaml's errors have no common base that exists without it
        raise InputError(f"optimizer: {path} is not {path.suffix[1:]}: {' '.join(str(error).split())}") from error
    if isinstance(values, dict) and isinstance(values.get("optimizer"), dict):
        values = values["optimizer"]
    if not isinstance(values, dict) or "name" not in values:
        raise InputError(f"optimizer: {path} holds no 'name'; keys: {', '.join(_KEYS)}")
    check_keys(f"optimizer: {path.name}", values, _KEYS)
    for key in ("options", "overrides"):
        if not isinstance(values.get(key) or {}, dict):
            raise InputError(f"optimizer: {path.name}: {key}: got {values[key]!r}; allowed: a mapping")
    return values
