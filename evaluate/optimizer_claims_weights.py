"""Claims about weights and state: Lion-K's constraint, AdamP's effective step, FRUGAL's memory."""

import itertools
import statistics
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from genflow.evaluate.optimizer_claims import Claim, Finding, Panel, mlp
from genflow.optim import FRUGAL, AdamP, LionK, create_kappa

__all__ = ["CLAIMS", "state_bytes"]

_KAPPAS: tuple[str | dict[str, Any], ...] = (
    "l1",
    "l2",
    {"name": "l2", "dim": -1},
    {"name": "lp", "p": 3.0},
    "linf",
    "huber",
    "pseudo-huber",
    "dead-zone",
    "sorted-l1",
    "nuclear",
)
"""Those that imply a constraint; "square" and "elastic" imply a penalty alone."""

_SLACK = 1e-4


def _gauges(kappa: str | dict[str, Any], decay: float, steps: int) -> list[float]:
    """The largest gauge of a network's weights, before training and after every step; at most 1 is inside."""
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    y = torch.sin(x @ torch.randn(6, 3))
    network = mlp(6, 16, 3)
    with torch.no_grad():
        for param in network.parameters():
            param.mul_(6)  # far outside
    optimizer = LionK(network.parameters(), kappa, lr=0.05, weight_decay=decay)
    implied = [create_kappa(kappa).gauge] * len(list(network.parameters()))
    found = []
    for step in range(steps + 1):
        with torch.no_grad():
            found.append(
                max(gauge(1.3 * p).item() for gauge, p in zip(implied, network.parameters(), strict=True))
            )  # fmt: skip
        if step < steps:
            optimizer.zero_grad()
            F.mse_loss(network(x), y).backward()
            optimizer.step()
    return found


def _label(kappa: str | dict[str, Any]) -> str:
    return kappa if isinstance(kappa, str) else " ".join(str(value) for value in kappa.values())


def lion_k(quick: bool = False) -> Finding:
    """Networks that start far outside the set, and one without decay, which has no reason to enter it."""
    steps = 150 if quick else 300
    curves = {_label(kappa): _gauges(kappa, 1.3, steps) for kappa in _KAPPAS}
    free = _gauges("l1", 0.0, steps)
    ends = {name: curve[-1] for name, curve in curves.items()}
    returned = {
        name: sum(b > 1 + _SLACK and a <= 1 for a, b in itertools.pairwise(curve)) for name, curve in curves.items()
    }
    worst = max(ends, key=ends.__getitem__)
    least = min(curve[0] for curve in curves.values())
    lines = {**curves, "l1 without decay": free}
    return Finding(
        figure=f"gauge (at most 1 inside) of {len(ends)} kappas: from {least:.2f} and more down to at most "
        f"{ends[worst]:.5f} ({worst}); steps that left the set again: {sum(returned.values())}; "
        f"l1 without decay ends at {free[-1]:.2f}",
        holds=ends[worst] <= 1 + _SLACK and least > 1 and not any(returned.values()) and free[-1] > 1.1,
        numbers={
            "start": {name: curve[0] for name, curve in curves.items()},
            "end": ends,
            "left again": returned,
            "without decay": free[-1],
        },
        panel=Panel("step", "gauge", {k: (range(0, steps + 1, 5), v[::5]) for k, v in lines.items()}, "y", 1.0),
    )


def _effective_steps(optimizer: type[Optimizer], steps: int) -> tuple[list[float], list[float]]:
    """Of rows that a batch normalization follows: mean change of direction in each step, mean length after it."""
    torch.manual_seed(0)
    x = torch.randn(1024, 16)
    y = (torch.tanh(x @ torch.randn(16, 8)) @ torch.randn(8, 4) + torch.randn(1024, 4)).argmax(1)

    def normalized(inputs: int) -> list[nn.Module]:
        return [nn.Linear(inputs, 32, bias=False), nn.BatchNorm1d(32, affine=False), nn.ReLU()]

    network = nn.Sequential(*normalized(16), *normalized(32), nn.Linear(32, 4))
    weights: list[Tensor] = [network[0].weight, network[3].weight]
    stepper = optimizer(network.parameters(), lr=1e-2)  # type: ignore[call-arg]
    turns, lengths = [], []
    for _ in range(steps):
        rows = torch.randint(0, len(x), (64,))
        stepper.zero_grad()
        F.cross_entropy(network(x[rows]), y[rows]).backward()
        before = [F.normalize(w.detach(), dim=1) for w in weights]
        stepper.step()
        after = [F.normalize(w.detach(), dim=1) for w in weights]
        turns.append(torch.cat([(a - b).norm(dim=1) for a, b in zip(after, before, strict=True)]).mean().item())
        lengths.append(torch.cat([w.detach().norm(dim=1) for w in weights]).mean().item())
    return turns, lengths


def adamp(quick: bool = False) -> Finding:
    """A classifier with batch normalization: what is left of the step's angle after training, and the growth."""
    steps = 200 if quick else 1000
    tenth = steps // 10
    kept, growth, lines = {}, {}, {}
    for name, cls in (("AdamP", AdamP), ("Adam", torch.optim.Adam)):
        turns, lengths = _effective_steps(cls, steps)
        kept[name] = statistics.fmean(turns[-tenth:]) / statistics.fmean(turns[tenth // 5 : tenth // 5 + tenth])
        growth[name] = lengths[-1] / lengths[0]
        every = max(1, steps // 75)
        means = [statistics.fmean(turns[i : i + every]) for i in range(0, steps, every)]
        lines[name] = (range(0, steps, every), means)
    return Finding(
        figure=f"after {steps} steps the effective step is {kept['AdamP']:.0%} of what it was with AdamP, "
        f"{kept['Adam']:.0%} with Adam; the weights grew {growth['AdamP']:.2f} and {growth['Adam']:.2f} times",
        holds=kept["AdamP"] > 0.7 and kept["Adam"] < 0.7 * kept["AdamP"] and growth["AdamP"] < growth["Adam"],
        numbers={"kept": kept, "growth": growth},
        panel=Panel("step", "effective step (change of direction)", lines),
    )


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of all tensors in an optimizer's state."""
    tensors = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    return sum(tensor.nbytes for tensor in tensors)


_SELECTS = {"columns": 0.25, "entries": 0.25, "svd": 0.25, "blocks": 1 / 3}  # a third of three matrices


def frugal(quick: bool = False) -> Finding:
    """State of three square matrices after a step, and of the default recipe's network."""
    from genflow.training.networks import create_network
    from genflow.training.recipe import load_recipe

    recipe = load_recipe("fashion-mnist")
    network = create_network(
        recipe.network.type, size=(28, 28), channels=1, num_classes=10, options=recipe.network.options
    )
    side = 64 if quick else 256
    matrices = [nn.Parameter(torch.zeros(side, side)) for _ in range(3)]
    for param in [*matrices, *network.parameters()]:
        param.grad = torch.ones_like(param)

    def bytes_of(params: list[nn.Parameter], cls: type[Optimizer], **options: Any) -> int:
        optimizer = cls(params, lr=0.0, **options)  # type: ignore[call-arg]
        optimizer.step()
        return state_bytes(optimizer)

    adam = bytes_of(matrices, torch.optim.AdamW)
    found = {
        select: bytes_of(matrices, FRUGAL, density=density, select=select) / adam
        for select, density in _SELECTS.items()
    }
    whole = [bytes_of(list(network.parameters()), cls) for cls in (FRUGAL, torch.optim.AdamW)]
    return Finding(
        figure=f"of AdamW's state, at density 0.25: {found['columns']:.4f} by columns, {found['entries']:.4f} by "
        f"entries (with indices), {found['svd']:.4f} by SVD (with the basis); the default network: {whole[0]:,} bytes "
        f"against {whole[1]:,} ({whole[0] / whole[1]:.3f}; vectors keep theirs)",
        holds=found["columns"] < 0.26 and whole[0] < 0.27 * whole[1],
        numbers={"of AdamW's": found, "densities": _SELECTS, "default network": whole},
    )


CLAIMS = {
    "lion-k": Claim(
        "with weight decay the iterates enter kappa's constraint set and stay there", "arXiv 2310.05898", lion_k
    ),
    "adamp": Claim(
        "on scale-invariant weights momentum lets the norm grow and the effective step decay; without the radial part "
        "of the update it is kept",
        "arXiv 2006.08217",
        adamp,
    ),
    "frugal-memory": Claim("optimizer state in proportion to the density", "arXiv 2411.07837", frugal),
}
