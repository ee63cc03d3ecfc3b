"""How a claim about an optimizer is measured and told; the claims themselves are in ``optimizer_claims_*``."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

__all__ = ["Claim", "Finding", "Panel", "mlp"]


@dataclass(frozen=True)
class Panel:
    """A drawing: lines by name, each x and y; None in y leaves a gap. ``level`` is a dashed line across."""

    x: str
    y: str
    lines: dict[str, tuple[Sequence[float], Sequence[float | None]]]
    log: str = ""
    level: float | None = None


@dataclass(frozen=True)
class Finding:
    """What was measured: in words, whether the claim holds by it, and every number, safe for JSON."""

    figure: str
    holds: bool
    numbers: dict[str, Any] = field(default_factory=dict)
    panel: Panel | None = None


@dataclass(frozen=True)
class Claim:
    """A paper's sentence and the experiment on it; ``measure(quick)``, quick being smaller sizes that show less."""

    says: str
    paper: str
    measure: Callable[[bool], Finding]


def mlp(*sizes: int, activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    """Linear layers with ``activation`` between them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers, nn.Linear(*sizes[-2:]))
