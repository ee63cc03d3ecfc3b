"""torch's optimizers by name, with the usual parameter groups."""

import inspect
from typing import Any

import torch
from torch import nn

from genflow.errors import InputError, check_choice, check_keys

__all__ = ["OPTIMIZERS", "create_optimizer", "decay_groups"]

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "radam": torch.optim.RAdam,
    "sgd": torch.optim.SGD,
}


def decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: matrices and kernels with ``weight_decay``; biases, norms and embeddings without."""
    embeddings = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    parameters = [p for p in network.parameters() if p.requires_grad]
    plain = [p for p in parameters if p.ndim < 2 or id(p) in embeddings]
    decayed = [p for p in parameters if not (p.ndim < 2 or id(p) in embeddings)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def create_optimizer(
    name: str, network: nn.Module, lr: float, weight_decay: float, options: dict[str, Any]
) -> torch.optim.Optimizer:
    """One of :data:`OPTIMIZERS` over ``network``; fused where torch has that.

    Raises:
        InputError: an unknown name or option, or a value that the optimizer refuses.
    """
    cls = OPTIMIZERS[check_choice("optimizer.name", name, OPTIMIZERS)]
    signature = inspect.signature(cls.__init__).parameters
    known = [p for p in signature if p not in {"self", "params", "lr", "weight_decay"}]
    check_keys("optimizer.options", options, known)
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    if "fused" in signature:
        options.setdefault("fused", True)
    try:
        return cls(decay_groups(network, weight_decay), lr=lr, **options)
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer: {error}") from error
