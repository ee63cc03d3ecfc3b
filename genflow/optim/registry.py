"""Optimizers by name. This module loads nothing, so that recipes can be checked before torch is there."""

import importlib
from typing import TYPE_CHECKING

from genflow.errors import InputError, check_choice

if TYPE_CHECKING:
    from torch.optim import Optimizer

__all__ = ["OPTIMIZERS", "check_name", "optimizer_class"]

OPTIMIZERS: dict[str, str] = {
    "adabelief": "genflow.optim.adabelief:AdaBelief",
    "adagrad-norm": "genflow.optim.adagrad_norm:AdaGradNorm",
    "adamp": "genflow.optim.adamp:AdamP",
    "adan": "genflow.optim.adan:Adan",
    "diffgrad": "genflow.optim.diffgrad:DiffGrad",
    "frugal": "genflow.optim.frugal:FRUGAL",
    "lion": "genflow.optim.lion:Lion",
    "lion-k": "genflow.optim.lion_k:LionK",
    "mkor": "genflow.optim.mkor:MKOR",
    "mkor-h": "genflow.optim.mkor_h:MKORH",
    "sgdp": "genflow.optim.sgdp:SGDP",
    "stable-spam": "genflow.optim.stable_spam:StableSPAM",
    "adadelta": "torch.optim:Adadelta",
    "adagrad": "torch.optim:Adagrad",
    "adam": "torch.optim:Adam",
    "adamax": "torch.optim:Adamax",
    "adamw": "torch.optim:AdamW",
    "nadam": "torch.optim:NAdam",
    "radam": "torch.optim:RAdam",
    "rmsprop": "torch.optim:RMSprop",
    "rprop": "torch.optim:Rprop",
    "sgd": "torch.optim:SGD",
}
"""Where each optimizer lives; all work on any module and without a closure (mkor-h is told the loss by
``observe``). Others go by ``package.module:Class``."""


def check_name(name: str) -> str:
    """Return ``name`` if it is one of :data:`OPTIMIZERS` or has the form of a path; otherwise raise InputError."""
    if not isinstance(name, str):
        raise InputError(f"optimizer.name: got {name!r}; allowed: {', '.join(OPTIMIZERS)}, or package.module:Class")
    if "." in name or ":" in name:
        return name
    return check_choice("optimizer.name", name, OPTIMIZERS)


def optimizer_class(name: str) -> "type[Optimizer]":
    """The class called ``name``: one of :data:`OPTIMIZERS`, or an import path such as ``torch.optim:Muon``.

    Raises:
        InputError: an unknown name, or a path that leads to no ``torch.optim.Optimizer``.
    """
    path = OPTIMIZERS.get(check_name(name), name)
    module, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"optimizer.name: {name!r} cannot be imported ({error})") from error
    from torch.optim import Optimizer

    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise InputError(f"optimizer.name: {name!r} is not a class of optimizers; allowed: torch.optim.Optimizer's")
    return found
