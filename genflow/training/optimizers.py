"""The optimizer that a recipe's ``optimizer`` section describes; :mod:`genflow.optim` has the optimizers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from genflow import optim
from genflow.errors import InputError
from genflow.optim import OPTIMIZERS

__all__ = ["OPTIMIZERS", "create_optimizer"]


def create_optimizer(
    name: str,
    network: nn.Module,
    lr: float,
    weight_decay: float,
    options: Mapping[str, Any],
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> torch.optim.Optimizer:
    """One of :data:`OPTIMIZERS` over ``network``: see :func:`genflow.optim.create_optimizer`.

    Raises:
        InputError: an unknown name or option, an override that matches nothing, a value that the optimizer refuses.
    """
    for key in ("lr", "weight_decay", "overrides", "exempt"):
        if key in options:
            raise InputError(f"optimizer.options: unknown key {key!r}; lr, weight_decay and overrides stand beside it")
    return optim.create_optimizer(name, network, lr=lr, weight_decay=weight_decay, overrides=overrides, **options)
