"""Parameter groups of a module: what decays, and what has options of its own."""

import fnmatch
from collections.abc import Mapping
from typing import Any

from torch import nn

from genflow.errors import InputError, nearest

__all__ = ["is_exempt", "parameter_groups"]

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def is_exempt(owner: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is left out of weight decay: biases, norms, embeddings, and all with fewer than 2 dimensions.

    ``owner`` is the module that holds it as ``name``.
    """
    return parameter.ndim < 2 or name.endswith("bias") or isinstance(owner, (*_NORMS, nn.Embedding))


def parameter_groups(
    module: nn.Module,
    weight_decay: float | None = 0.0,
    *,
    exempt: bool = True,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Named parameter groups of ``module`` for any ``torch.optim`` optimizer; frozen parameters are left out.

    Args:
        module: whose parameters; shared ones count once.
        weight_decay: for what decays; None puts no weight decay into the groups.
        exempt: biases, norms and embeddings get no decay (:func:`is_exempt`). Default True.
        overrides: options by the names of parameters or modules, with ``*`` for any text: ``{"head": {"lr": 1e-4},
            "blocks.*.attention": {"weight_decay": 0.2}}``. Where several match, the later ones win. A weight decay
            here, too, is for what is not exempt. A group with its own ``lr`` also gets ``initial_lr``, which torch's
            schedulers start from.

    Returns:
        Groups by their options; exempt parameters come last, in groups of their own.

    Raises:
        InputError: nothing to optimize; an override that matches no parameter.
    """
    overrides = overrides or {}
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    unused = set(overrides)
    names: list[str] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        names.append(name)
        owner_name, _, own_name = name.rpartition(".")
        spared = exempt and is_exempt(module.get_submodule(owner_name), own_name, parameter)
        options: dict[str, Any] = {} if weight_decay is None else {"weight_decay": weight_decay}
        for pattern, values in overrides.items():
            if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*"):
                unused.discard(pattern)
                options.update(values)
        if spared and "weight_decay" in options:
            options["weight_decay"] = 0.0
        if "lr" in options:
            options["initial_lr"] = options["lr"]
        key = (spared, *sorted((k, repr(v)) for k, v in options.items()))
        found.setdefault(key, {"params": [], **options})["params"].append((name, parameter))
    if not names:
        raise InputError("optimizer: the module has no parameter that requires a gradient")
    if unused:
        pattern = min(unused)
        modules = [name for name, _ in module.named_modules() if name]
        raise InputError(f"optimizer.overrides: {pattern!r} matches no parameter{nearest(pattern, modules + names)}")
    return [found[key] for key in sorted(found, key=lambda key: key[0])]
