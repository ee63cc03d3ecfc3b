"""The options that every optimizer of this package takes, and the checks of all hyperparameters."""

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from genflow.errors import InputError, check_choice, check_flag, check_keys, check_number

__all__ = ["FLAG_DEFAULTS", "Flags", "check_betas", "check_flags", "check_lr"]


class Flags(TypedDict, total=False):
    """Options common to all optimizers; each may also be set in a parameter group.

    foreach: the multi-tensor form. None (default) decides by device and size: always on accelerators, on a
        CPU for tensors of at most :data:`genflow.optim.batches.FOREACH_NUMEL` entries.
    maximize: ascend instead of descend. Default False.
    capturable: keep step counts on the device and branch on no value of theirs (CUDA graphs). Default False.
    differentiable: let autograd see the step; single-tensor form. Default False.
    compile: run the step through ``torch.compile``; needs a C++ compiler on a CPU. Default False.
    nonfinite: what to do when a gradient holds NaN or infinity: "none" (default: as torch, nothing is checked),
        "skip" (the whole step is left out) or "raise" (NonFiniteError naming the parameter). Parameters and
        state are untouched either way. The check costs one host-device sync a step.
    missing: a parameter without gradient is left alone ("skip", default, as torch) or named in an error ("raise").
    stochastic_rounding: bfloat16 parameters are rounded up or down at random with the mean kept, so that updates
        below half a unit in the last place are not lost; draws from torch's global generator. Default False.
    """

    foreach: bool | None
    maximize: bool
    capturable: bool
    differentiable: bool
    compile: bool
    nonfinite: Literal["none", "skip", "raise"]
    missing: Literal["skip", "raise"]
    stochastic_rounding: bool


FLAG_DEFAULTS: dict[str, Any] = {
    "foreach": None,
    "maximize": False,
    "capturable": False,
    "differentiable": False,
    "compile": False,
    "nonfinite": "none",
    "missing": "skip",
    "stochastic_rounding": False,
}
_SWITCHES = ("maximize", "capturable", "differentiable", "compile", "stochastic_rounding")


def check_flags(flags: Mapping[str, Any]) -> None:
    """Raise InputError for an unknown flag, a wrong value or two flags that exclude each other."""
    check_keys("optimizer", flags, FLAG_DEFAULTS)
    flags = FLAG_DEFAULTS | dict(flags)
    for name in _SWITCHES:
        check_flag(name, flags[name])
    if flags["foreach"] not in (None, True, False):
        raise InputError(f"foreach: got {flags['foreach']!r}; allowed: None, True, False")
    check_choice("nonfinite", flags["nonfinite"], ("none", "skip", "raise"))
    check_choice("missing", flags["missing"], ("skip", "raise"))
    if flags["differentiable"]:
        for other in ("foreach", "compile", "stochastic_rounding"):
            if flags[other]:
                raise InputError(f"{other}: True does not go with differentiable=True")
    if flags["capturable"] and flags["nonfinite"] != "none":
        raise InputError(
            f"nonfinite: {flags['nonfinite']!r} needs a host-device sync, which capturable=True excludes; allowed: none"
        )


def check_lr(lr: float | Tensor) -> None:
    """A finite number >= 0, or a tensor with one element."""
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise InputError(f"lr: Tensor lr must be 1-element; got shape {tuple(lr.shape)}")
        if not lr.is_floating_point():
            raise InputError(f"lr: got a tensor of {lr.dtype}; allowed: a floating-point one")
        if lr.device.type == "cpu" and not (torch.isfinite(lr) & (lr >= 0)).item():
            raise InputError(f"lr: got {lr.item()}; allowed: a finite number >= 0")
        return
    check_number("lr", lr, at_least=0)


def check_betas(betas: Any, count: int = 2) -> None:
    """``count`` numbers in [0, 1)."""
    if not isinstance(betas, (tuple, list)) or len(betas) != count:
        raise InputError(f"betas: got {betas!r}; allowed: {count} numbers in [0, 1)")
    for index, beta in enumerate(betas):
        check_number(f"betas[{index}]", beta, at_least=0, below=1)
