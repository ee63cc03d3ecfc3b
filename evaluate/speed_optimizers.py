"""Optimizer steps against pytorch-optimizer's and torch's AdamW, for ``genflow.evaluate.speed optimizers``."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from genflow.evaluate.console import progress_bar
from genflow.evaluate.timing import best_times
from genflow.optim import create_optimizer
from genflow.optim.registry import optimizer_class

__all__ = ["RULES", "Rule", "compare_optimizers"]


@dataclass(frozen=True)
class Rule:
    """One rule: its name with us and in pytorch-optimizer, and the options that make both do the same."""

    name: str
    peer: str
    options: dict[str, Any]
    peer_options: dict[str, Any]
    contiguous: bool = False
    """The peer fails on other weights than contiguous ones, such as those with channels last."""

    @property
    def entrywise(self) -> bool:
        """Whether the issue compares its compiled step with AdamW's fused one."""
        return self.name not in ("adamp", "sgdp", "stable-spam")


_BELIEF = {"rectify": False}
_MOMENTUM = {"lr": 0.1, "momentum": 0.9}
RULES = (
    Rule("lion", "Lion", {}, {}),
    Rule("adabelief", "AdaBelief", _BELIEF, _BELIEF),  # the peer rectifies in a loop only
    Rule("diffgrad", "DiffGrad", {"weight_decouple": True}, {}),
    Rule("adan", "Adan", {}, {}),
    Rule("stable-spam", "StableSPAM", {}, {}),
    Rule("adamp", "AdamP", {}, {}, contiguous=True),
    Rule("sgdp", "SGDP", _MOMENTUM, _MOMENTUM, contiguous=True),
)
"""Every rule of ours that pytorch-optimizer has."""

_WEIGHT_DECAY = 0.01


def _equal(count: int, size: int) -> Callable[[], list[nn.Parameter]]:
    def make() -> list[nn.Parameter]:
        generator = torch.Generator().manual_seed(0)
        return [nn.Parameter(torch.randn(size, size, generator=generator) / size) for _ in range(count)]

    return make


def _default_network() -> nn.Module:
    """The shipped recipe's network, as it is trained: weights of convolutions lie with the channels last."""
    from genflow.training.networks import create_network
    from genflow.training.recipe import load_recipe

    recipe = load_recipe("fashion-mnist")
    torch.manual_seed(0)
    network = create_network(
        recipe.network.type, options=recipe.network.options, size=(28, 28), channels=1, num_classes=10
    )
    return network.to(memory_format=torch.channels_last)


def _settings(quick: bool) -> dict[str, Callable[[], list[nn.Parameter]]]:
    if quick:
        return {"3 of 8x8": _equal(3, 8)}
    return {
        "300 of 32x32": _equal(300, 32),
        "100 of 256x256": _equal(100, 256),
        "default network": lambda: list(_default_network().parameters()),
    }


def _ready(make: Callable[[], list[nn.Parameter]], device: torch.device) -> list[nn.Parameter]:
    """Parameters on the device with small random gradients, which lie as they do."""
    generator = torch.Generator().manual_seed(1)
    params = [nn.Parameter(param.detach().to(device)) for param in make()]
    for param in params:
        param.grad = torch.empty_like(param).copy_(1e-2 * torch.randn(param.shape, generator=generator))
    return params


def compare_optimizers(
    quick: bool, device: torch.device | str = "cpu", rules: tuple[Rule, ...] = RULES, repeats: int = 60
) -> list[dict[str, Any]]:
    """Rows for speed's table: milliseconds a step.

    For every rule and setting the default and the compiled form against the faster of pytorch-optimizer's loop and
    foreach forms, and the compiled form against torch's fused AdamW; then AdamW's own two forms, and what FRUGAL and
    MKOR cost. All forms of a rule take turns in one run. Without pytorch-optimizer its rows are left out, and a line
    on stderr says so.
    """
    device = torch.device(device)
    rules, repeats = (rules[:1], 3) if quick else (rules, repeats)
    peers = _peers()
    settings = _settings(quick)
    rows = []
    with progress_bar("optimizers", len(settings) * (len(rules) + 1) + 1) as advance:
        for setting, make in settings.items():
            for rule in rules:
                made = (lambda make=make: [nn.Parameter(p.contiguous()) for p in make()]) if rule.contiguous else make
                milliseconds = _time_rule(rule, made, device, peers, repeats)
                rows += _rows(rule, setting, milliseconds)
                advance(1)
            rows += _adamw_rows(setting, make, device, repeats)
            advance(1)
        if not quick:
            rows += _whole_step_rows(device, max(2, repeats // 10))
        advance(1)
    return rows


def _peers() -> Any | None:
    try:
        import pytorch_optimizer
    except ImportError:
        print("pytorch-optimizer is not installed: its rows are left out", file=sys.stderr)
        return None
    return pytorch_optimizer


def _time_rule(
    rule: Rule, make: Callable[[], list[nn.Parameter]], device: torch.device, peers: Any | None, repeats: int
) -> dict[str, float]:
    """Milliseconds a step of every form."""
    options = {"weight_decay": _WEIGHT_DECAY, **rule.options}
    forms: dict[str, Optimizer] = {
        "default": _ours(rule, make, device, options),
        "compiled": _ours(rule, make, device, options | {"compile": True}),
        "AdamW fused": torch.optim.AdamW(_ready(make, device), fused=True),
    }
    if peers is not None:
        peer_options = {"weight_decay": _WEIGHT_DECAY, **rule.peer_options}
        for name, foreach in (("loop", False), ("foreach", True)):
            peer = getattr(peers, rule.peer)
            forms[f"pytorch-optimizer {name}"] = peer(_ready(make, device), foreach=foreach, **peer_options)
    return _milliseconds(forms, device, repeats)


def _ours(
    rule: Rule, make: Callable[[], list[nn.Parameter]], device: torch.device, options: dict[str, Any]
) -> Optimizer:
    return optimizer_class(rule.name)(_ready(make, device), **options)


def _milliseconds(forms: dict[str, Optimizer], device: torch.device, repeats: int) -> dict[str, float]:
    for optimizer in forms.values():
        for _ in range(3):  # makes state and graphs
            optimizer.step()
    seconds = best_times([optimizer.step for optimizer in forms.values()], repeats, device)
    return {name: 1000 * each for name, each in zip(forms, seconds, strict=True)}


def _rows(rule: Rule, setting: str, milliseconds: dict[str, float]) -> list[dict[str, Any]]:
    what = f"{rule.name}, {setting}"
    peers = [name for name in milliseconds if name.startswith("pytorch-optimizer")]
    rows = []
    if peers:
        best = min(peers, key=milliseconds.__getitem__)
        rows += [_row(what, ours, best, milliseconds) for ours in ("default", "compiled")]
    if rule.entrywise:
        rows.append(_row(what, "compiled", "AdamW fused", milliseconds))
    if not peers:
        rows.append(_row(what, "default", "AdamW fused", milliseconds))
    return rows


def _adamw_rows(
    setting: str, make: Callable[[], list[nn.Parameter]], device: torch.device, repeats: int
) -> list[dict[str, Any]]:
    """What AdamW's forms and FRUGAL's step take."""
    forms: dict[str, Optimizer] = {
        "fused": torch.optim.AdamW(_ready(make, device), fused=True),
        "foreach": torch.optim.AdamW(_ready(make, device), foreach=True),
        "FRUGAL": create_optimizer("frugal", _ready(make, device)),
    }
    milliseconds = _milliseconds(forms, device, repeats)
    return [_row(f"AdamW, {setting}", name, "fused", milliseconds) for name in ("foreach", "FRUGAL")]


def _whole_step_rows(device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """MKOR's cost lies in hooks too: ten training steps, one update of its inverses among them, against AdamW's."""
    forms, steps = ("mkor", "adamw"), 10
    works = [_training_steps(name, device, steps) for name in forms]
    for work in works:
        work()
    seconds = best_times(works, repeats, device)
    milliseconds = {name: 1000 * each / steps for name, each in zip(forms, seconds, strict=True)}
    return [_row("forward, backward and step, default network, 32 images", "mkor", "adamw", milliseconds)]


def _training_steps(name: str, device: torch.device, count: int) -> Callable[[], None]:
    network = _default_network().to(device)
    params = network if name == "mkor" else network.parameters()
    options = {"unsupported": "base"} if name == "mkor" else {"fused": True}
    optimizer = optimizer_class(name)(params, lr=1e-4, **options)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 1, 28, 28, generator=generator).to(device, memory_format=torch.channels_last)
    timesteps = (1000 * torch.rand(32, generator=generator)).to(device)
    labels = torch.randint(0, 10, (32,), generator=generator).to(device)

    def work() -> None:
        for _ in range(count):
            predicted = network(images, timesteps, class_labels=labels).sample
            nn.functional.mse_loss(predicted, images).backward()
            optimizer.step()
            optimizer.zero_grad()

    return work


def _row(what: str, ours: str, peer: str, milliseconds: dict[str, float]) -> dict[str, Any]:
    return {
        "what": what,
        "ours_name": ours,
        "peer_name": peer,
        "ours": milliseconds[ours],
        "peer": milliseconds[peer],
        "unit": "ms",
    }
