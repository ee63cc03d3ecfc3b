"""Claims about second order: MKOR's steps and their cost, BO-REP on bilevel problems."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from genflow.evaluate.optimizer_claims import Claim, Finding, Panel, mlp
from genflow.optim import MKOR, BORep
from genflow.optim.kronecker import update_inverse_

__all__ = ["CLAIMS"]


def _steps_to(goal: float, make: Callable[[nn.Module], Optimizer], limit: int) -> tuple[int, list[float]]:
    """Full-batch steps to a loss, and the losses: a regression whose inputs are far from zero."""
    torch.manual_seed(0)
    network = mlp(10, 20, 3)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(256, 10, generator=generator) + 3
    y = torch.sin(x @ torch.randn(10, 3, generator=generator) / 3)
    optimizer = make(network)
    losses = []
    for _ in range(limit):
        optimizer.zero_grad()
        loss = F.mse_loss(network(x), y)
        losses.append(loss.item())
        if losses[-1] < goal:
            break
        loss.backward()
        optimizer.step()
    return (len(losses) - 1 if losses[-1] < goal else limit), losses


def mkor_steps(quick: bool = False) -> Finding:
    """Each optimizer with the best of five step sizes."""
    limit, goal = (40, 0.3) if quick else (500, 0.12)
    rates = (0.003, 0.01, 0.03, 0.1, 0.3)
    makers: dict[str, Callable[[nn.Module, float], Optimizer]] = {
        "MKOR": lambda network, lr: MKOR(network, lr=lr, inverse_gap=1),
        "SGD, momentum 0.9": lambda network, lr: SGD(network.parameters(), lr, momentum=0.9),
        "Adam": lambda network, lr: Adam(network.parameters(), lr),
    }
    best: dict[str, tuple[int, float]] = {}
    lines = {}
    for name, make in makers.items():
        runs = {
            lr: _steps_to(goal, lambda network, make=make, lr=lr: make(network, lr), limit)  # type: ignore[misc]
            for lr in rates
        }
        lr = min(runs, key=lambda rate: runs[rate][0])
        best[name] = (runs[lr][0], lr)
        lines[f"{name}, lr {lr:g}"] = (range(len(runs[lr][1])), runs[lr][1])
    told = ", ".join(f"{name} {steps} (lr {lr:g})" for name, (steps, lr) in best.items())
    counts = {name: steps for name, (steps, _) in best.items()}
    return Finding(
        figure=f"steps to a loss of {goal}: {told}",
        holds=counts["MKOR"] < min(counts["Adam"], counts["SGD, momentum 0.9"]),
        numbers={"steps and lr": best},
        panel=Panel("step", "loss", lines, "y", goal),
    )


def _seconds(work: Callable[[], Any], repeats: int) -> float:
    """The least of several runs."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def mkor_cost(quick: bool = False) -> Finding:
    """An update of one factor's inverse: by rank one, and by inverting the factor."""
    sizes = (32, 64) if quick else (512, 1024, 2048)
    seen: dict[str, list[float]] = {"rank one": [], "inversion": []}
    torch.manual_seed(0)
    for size in sizes:
        inverse, vector = torch.eye(size), torch.randn(size)
        factor = 0.95 * torch.eye(size) + 0.05 * torch.outer(vector, vector)
        seen["rank one"].append(_seconds(lambda i=inverse, v=vector: update_inverse_(i, v, 0.95), 20))
        seen["inversion"].append(_seconds(lambda f=factor: torch.linalg.inv(f), 2))
    power = {name: math.log(s[-1] / s[0]) / math.log(sizes[-1] / sizes[0]) for name, s in seen.items()}
    return Finding(
        figure=f"from width {sizes[0]} to {sizes[-1]} an update of an inverse grows with the width to the power "
        f"{power['rank one']:.2f} ({1e3 * seen['rank one'][-1]:.1f} ms at the end), inverting with "
        f"{power['inversion']:.2f} ({1e3 * seen['inversion'][-1]:.0f} ms). The product with the gradient, two matrix "
        "multiplications, is cubic in both",
        holds=power["rank one"] < 2.5 and power["inversion"] > power["rank one"],
        numbers={"widths": sizes, "seconds": seen, "powers": power},
        panel=Panel("width", "seconds", {name: (sizes, s) for name, s in seen.items()}, "xy"),
    )


def _cleaning(lr: float, steps: int, normalize: bool, share: float) -> tuple[list[float], float, float]:
    """Samples' shares (a softmax) learnt by the loss on a few clean samples, where a ``share`` of labels is wrong.

    The loss on the clean samples is exponential, so that its curvature grows with its gradient. Gives this loss over
    the steps, the accuracy on held-out samples, and the part of the samples that the shares judge rightly.
    """
    torch.manual_seed(0)
    labels = torch.arange(240) % 4
    samples = (2 * torch.randn(4, 8))[labels] + torch.randn(240, 8)
    samples = 3 * samples / samples.norm(dim=1).mean()
    train, clean, held = slice(0, 120), slice(120, 180), slice(180, 240)
    wrong = torch.rand(120) < share
    given = torch.where(wrong, labels[train] + 1, labels[train]) % 4
    importance, weight = nn.Parameter(torch.zeros(120)), nn.Parameter(torch.zeros(4, 8))

    def inner() -> Tensor:
        losses = F.cross_entropy(samples[train] @ weight.T, given, reduction="none")
        return importance.softmax(0) @ losses + 0.001 * weight.square().sum()

    def outer() -> Tensor:
        scores = samples[clean] @ weight.T
        return ((scores - scores.gather(1, labels[clean][:, None])).exp().sum(1) - 1).mean()

    optimizer = BORep(
        [importance], [weight], outer, inner, lr=lr, inner_lr=1 / 9, system_lr=1 / 9, inner_steps=5,
        normalize=normalize, nonfinite="skip",
    )  # fmt: skip
    schedule = LambdaLR(optimizer, [lambda t: 1 / (1 + 0.03 * t), lambda t: 1.0])
    losses = []
    for _ in range(steps):
        losses.append(optimizer.step()["outer_loss"].item())
        schedule.step()
    judged = ((importance.detach() < 0) == wrong).float().mean().item()
    accuracy = (samples[held] @ weight.detach().T).argmax(1).eq(labels[held]).float().mean().item()
    return losses, accuracy, judged


def cleaning(quick: bool = False) -> Finding:
    """Six and nine in ten labels wrong; both methods with the best of a ladder of step sizes, which fall as 1/t."""
    steps = 20 if quick else 120
    rates = (
        {True: (0.4,), False: (0.1, 1.0)}
        if quick
        else {True: (0.2, 0.4, 0.8), False: (0.01, 0.03, 0.1, 0.4, 1.6, 10.0)}
    )
    found: dict[str, dict[str, Any]] = {}
    lines = {}
    for share in (0.6, 0.9):
        for normalize in (True, False):
            runs = {lr: _cleaning(lr, steps, normalize, share) for lr in rates[normalize]}
            ends = {lr: run[0][-1] if math.isfinite(run[0][-1]) else math.inf for lr, run in runs.items()}
            lr = min(ends, key=ends.__getitem__)
            name = f"{'BO-REP' if normalize else 'plain descent'}, {share:.0%} wrong"
            losses, accuracy, judged = runs[lr]
            found[name] = {
                "lr": lr,
                "clean loss": losses[-1],
                "held-out accuracy": accuracy,
                "judged rightly": judged,
                "clean loss by lr": {f"{rate:g}": end if math.isfinite(end) else None for rate, end in ends.items()},
            }
            lines[f"{name}, lr {lr:g}"] = (range(steps), losses)

    def told(share: str) -> str:
        ours, plain = (found[f"{name}, {share} wrong"] for name in ("BO-REP", "plain descent"))
        return (
            f"with {share} of labels wrong BO-REP {ours['clean loss']:.2f} (held-out accuracy "
            f"{ours['held-out accuracy']:.2f}), plain descent {plain['clean loss']:.2f} "
            f"({plain['held-out accuracy']:.2f})"
        )

    ours, plain = (found[f"{name}, 90% wrong"]["clean loss"] for name in ("BO-REP", "plain descent"))
    return Finding(
        figure=f"clean loss after {steps} steps, the best of {len(rates[True])} and of {len(rates[False])} step sizes: "
        f"{told('90%')}; {told('60%')}",
        holds=ours < 0.5 * plain,
        numbers=found,
        panel=Panel("step", "loss on clean samples", lines, "y"),
    )


def unbounded_smoothness(quick: bool = False) -> Finding:
    """f = sum cosh(5 y), whose curvature grows with its gradient; started where that is e^15."""
    steps = 30 if quick else 300

    def losses(lr: float, normalize: bool) -> list[float]:
        x, y = nn.Parameter(torch.full((2,), 3.0)), nn.Parameter(torch.zeros(2))
        optimizer = BORep(
            [x], [y], lambda: torch.cosh(5 * y).sum(), lambda: (y - x).square().sum() / 2,
            lr=lr, inner_lr=0.5, system_lr=0.5, inner_steps=5, normalize=normalize, nonfinite="skip",
        )  # fmt: skip
        schedule = LambdaLR(optimizer, [lambda t: 1 / (1 + 0.03 * t), lambda t: 1.0])
        found = []
        for _ in range(steps):
            optimizer.step()
            schedule.step()
            found.append(torch.cosh(5 * x.detach()).sum().item())
        return found

    ours = losses(0.2, True)
    plain = {lr: losses(lr, False) for lr in (1e-8, 3e-8, 1e-7, 1.5e-7, 3e-7, 1e-6, 1e-4, 1e-2)}
    best = min(plain, key=lambda lr: plain[lr][-1])
    return Finding(
        figure=f"f (least 2) after {steps} steps: BO-REP {ours[-1]:.2f}, plain descent {plain[best][-1]:.3g} (the best "
        f"of {len(plain)} step sizes: {best:g})",
        holds=ours[-1] < 2.1 and plain[best][-1] > 2 * ours[-1],
        numbers={"BO-REP": ours[-1], "plain descent": {f"{lr:g}": values[-1] for lr, values in plain.items()}},
        panel=Panel(
            "step", "f", {"BO-REP": (range(steps), ours), f"plain, lr {best:g}": (range(steps), plain[best])}, "y"
        ),
    )


CLAIMS = {
    "mkor-steps": Claim(
        "fewer steps than first order where the problem is ill-conditioned", "arXiv 2306.01685", mkor_steps
    ),
    "mkor-cost": Claim("an update of the factors costs O(d^2), not O(d^3)", "arXiv 2306.01685", mkor_cost),
    "bo-rep-cleaning": Claim(
        "converges on hyper-data-cleaning where plain gradient descent does not", "arXiv 2401.09587", cleaning
    ),
    "bo-rep-smoothness": Claim(
        "converges where the smoothness of the upper level is unbounded", "arXiv 2401.09587", unbounded_smoothness
    ),
}
