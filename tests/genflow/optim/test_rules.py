"""Every rule against a plain twin written from its paper's equations, in float64, and against published numbers."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genflow.optim import SGDP, AdaBelief, AdaGradNorm, AdamP, Adan, DiffGrad, Lion, LionK, StableSPAM, projection

GOLDEN = json.loads((Path(__file__).parents[2] / "data" / "optimizers.json").read_text())
FORMS = {
    "single": {"foreach": False},
    "many": {"foreach": True},
    "capturable single": {"foreach": False, "capturable": True},
    "capturable many": {"foreach": True, "capturable": True},
}
STEPS = 50
State = dict[str, Any]
Rule = Callable[[Tensor, Tensor, State, int], Tensor]

X = torch.sin(0.7 * torch.arange(192, dtype=torch.float64)).view(32, 6)
Y = (X @ torch.cos(torch.arange(24, dtype=torch.float64)).view(4, 6).T).argmax(1)


def start() -> list[Tensor]:
    """A matrix, a vector, and two weights on whose length the loss does not depend: row by row, and as a whole."""
    weight = 0.3 * torch.sin(1.3 * torch.arange(24, dtype=torch.float64)).view(4, 6)
    rows = 0.5 + torch.cos(torch.arange(12, dtype=torch.float64)).view(3, 2, 2)
    whole = 0.2 + torch.sin(2 + torch.arange(6, dtype=torch.float64)).view(2, 3)
    return [weight, torch.zeros(4, dtype=torch.float64), rows, whole]


def loss_of(params: list[Tensor], t: int) -> Tensor:
    weight, bias, rows, whole = params
    batch = slice(8 * (t % 4), 8 * (t % 4) + 8)
    target = torch.sin(t + torch.arange(12, dtype=torch.float64))
    by_row = (rows / rows.flatten(1).norm(dim=1)[:, None, None]).flatten() @ target
    at_once = (whole / whole.norm()).flatten() @ target[:6].cos()
    return F.cross_entropy(X[batch] @ weight.T + bias, Y[batch]) + by_row + at_once


def gradients(params: list[Tensor], t: int) -> list[Tensor]:
    params = [p.detach().requires_grad_() for p in params]
    return list(torch.autograd.grad(loss_of(params, t), params))


def run(make: Callable[[list[Tensor]], torch.optim.Optimizer], steps: int = STEPS) -> list[Tensor]:
    params = [p.requires_grad_() for p in start()]
    optimizer = make(params)
    for t in range(steps):
        optimizer.zero_grad()
        loss_of(params, t).backward()
        optimizer.step()
    return [p.detach() for p in params]


def run_twin(rule: Rule, prepare: Callable[[list[Tensor], State], list[Tensor]] | None = None) -> list[Tensor]:
    """``prepare`` sees all gradients, and what it writes into its dict is in every tensor's state too."""
    params, shared = start(), {}
    states: list[State] = [{"shared": shared} for _ in params]
    for t in range(1, STEPS + 1):
        grads = gradients(params, t - 1)
        if prepare is not None:
            grads = prepare(grads, shared)
        params = [rule(p, g, s, t) for p, g, s in zip(params, grads, states, strict=True)]
    return params


def assert_close(a: list[Tensor], b: list[Tensor], tolerance: float = 1e-10) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def average(state: State, name: str, value: Tensor, beta: float) -> Tensor:
    """An exponential moving average that starts at zero."""
    state[name] = beta * state.get(name, torch.zeros_like(value)) + (1 - beta) * value
    return state[name]


# the twins


def lion(lr: float, b1: float, b2: float, wd: float, kappa_grad: Callable[[Tensor], Tensor] = torch.sign) -> Rule:
    def rule(p: Tensor, g: Tensor, s: State, t: int) -> Tensor:
        m = s.get("m", torch.zeros_like(p))
        update = kappa_grad(b1 * m + (1 - b1) * g)
        s["m"] = b2 * m + (1 - b2) * g
        return p - lr * (update + wd * p)

    return rule


def adan(lr: float, b1: float, b2: float, b3: float, eps: float, wd: float, no_prox: bool = False) -> Rule:
    def rule(p: Tensor, g: Tensor, s: State, t: int) -> Tensor:
        d = g - s.get("g", g)
        s["g"] = g
        m = average(s, "m", g, b1) / (1 - b1**t)
        v = average(s, "v", d, b2) / (1 - b2**t)
        n = average(s, "n", (g + b2 * d) ** 2, b3) / (1 - b3**t)
        update = lr * (m + b2 * v) / (n.sqrt() + eps)
        return p * (1 - lr * wd) - update if no_prox else (p - update) / (1 + lr * wd)

    return rule


def adabelief(
    lr: float, b1: float, b2: float, eps: float, wd: float, decouple: bool = True, fixed: bool = False, **options: bool
) -> Rule:
    def rule(p: Tensor, g: Tensor, s: State, t: int) -> Tensor:
        if not decouple:
            g = g + wd * p
        m = average(s, "m", g, b1)
        variance = average(s, "s", (g - m) ** 2, b2)
        if options.get("accumulate", True):
            variance = s["s"] = variance + eps
        else:
            variance = variance + eps
        if decouple:
            p = p - (wd if fixed else lr * wd) * p
        if not options.get("rectify"):
            return p - lr * (m / (1 - b1**t)) / ((variance / (1 - b2**t)).sqrt() + eps)
        n_max = 2 / (1 - b2) - 1
        n = n_max - 2 * t * b2**t / (1 - b2**t)
        if n < 5:
            return p - lr * m / (1 - b1**t) if options.get("sgd", True) else p
        r = math.sqrt((n - 4) * (n - 2) * n_max / ((n_max - 4) * (n_max - 2) * n))
        return p - lr * r * m / (1 - b1**t) * math.sqrt(1 - b2**t) / (variance.sqrt() + eps)

    return rule


def diffgrad(lr: float, b1: float, b2: float, eps: float, wd: float = 0, decouple: bool = False) -> Rule:
    def rule(p: Tensor, g: Tensor, s: State, t: int) -> Tensor:
        if decouple:
            p = p - lr * wd * p
        else:
            g = g + wd * p
        m, v = average(s, "m", g, b1), average(s, "v", g * g, b2)
        friction = 1 / (1 + torch.exp(-(s.get("g", torch.zeros_like(g)) - g).abs()))
        s["g"] = g
        return p - lr * math.sqrt(1 - b2**t) / (1 - b1**t) * friction * m / (v.sqrt() + eps)

    return rule


def without_radial_part(p: Tensor, g: Tensor, u: Tensor, delta: float, eps: float) -> tuple[Tensor, bool]:
    """Equation 12 of AdamP: by rows if all of them look scale invariant, else as a whole."""
    if p.ndim < 2:
        return u, False
    for shape in ((len(p), -1), (1, -1)):
        rows, grads, updates = p.reshape(shape), g.reshape(shape), u.reshape(shape)
        cosines = [abs(float(r @ q) / float(r.norm() * q.norm())) for r, q in zip(rows, grads, strict=True)]
        if max(cosines) < delta / math.sqrt(rows.shape[1]):
            units = [r / (r.norm() + eps) for r in rows]
            projected = [w - n * (n @ w) for n, w in zip(units, updates, strict=True)]
            return torch.stack(projected).reshape(p.shape), True
    return u, False


def adamp(
    lr: float,
    b1: float,
    b2: float,
    eps: float,
    wd: float,
    delta: float = 0.1,
    ratio: float = 0.1,
    nesterov: bool = False,
) -> Rule:
    def rule(p: Tensor, g: Tensor, s: State, t: int) -> Tensor:
        m, v = average(s, "m", g, b1), average(s, "v", g * g, b2)
        look = b1 * m + (1 - b1) * g if nesterov else m
        u = look / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + eps)
        u, projected = without_radial_part(p, g, u, delta, eps)
        return p * (1 - lr * wd * (ratio if projected else 1)) - lr * u

    return rule


def sgdp(
    lr: float, mu: float, damp: float, wd: float, delta: float = 0.1, ratio: float = 0.1, nesterov: bool = False
) -> Rule:
    def rule(p: Tensor, g: Tensor, s: State, t: int) -> Tensor:
        s["m"] = mu * s.get("m", torch.zeros_like(g)) + (1 - damp) * g
        u = g + mu * s["m"] if nesterov else s["m"]
        u, projected = without_radial_part(p, g, u, delta, 1e-8)
        return p * (1 - lr * wd * (ratio if projected else 1) / (1 - mu)) - lr * u

    return rule


def stable_spam(
    lr: float, b1: float, b2: float, eps: float, wd: float, g1: float, g2: float, g3: float, gap: int, **options: Any
) -> Rule:
    def rule(p: Tensor, g: Tensor, s: State, t: int) -> Tensor:
        scale = 1.0
        if total := options.get("total"):
            low = options["low"]
            scale = low + (1 - low) * (1 + math.cos(math.pi * min(t / total, 1))) / 2
        p = p - lr * wd * p
        if options.get("clip", True):
            threshold = average(s, "max", g.abs().max(), g3) / (1 - g3**t)
            g = torch.where(g.abs() > threshold, g / g.abs().max() * threshold, g)
        if options.get("normalize", True):
            norm = g.norm()
            mean = average(s, "norm", norm, g1 * scale) / (1 - (g1 * scale) ** t)
            square = average(s, "square", norm**2, g2) / (1 - g2**t)
            g = g / norm * mean / (square.sqrt() + eps)
        s["since"] = s.get("since", 0) + 1
        if gap and t % gap == 0:
            s["m"], s["v"], s["since"] = torch.zeros_like(p), torch.zeros_like(p), 1
        m, v = average(s, "m", g, b1 * scale), average(s, "v", g * g, b2)
        since = s["since"]
        return p - lr * m / (1 - (b1 * scale) ** since) / ((v / (1 - b2**since)).sqrt() + eps)

    return rule


def adagrad_norm(lr: float, b0: float) -> tuple[Rule, Callable[[list[Tensor], State], list[Tensor]]]:
    def prepare(grads: list[Tensor], shared: State) -> list[Tensor]:
        shared["b"] = shared.get("b", b0**2) + sum(float(g.norm()) ** 2 for g in grads)
        return grads

    return lambda p, g, s, t: p - lr * g / math.sqrt(s["shared"]["b"]), prepare


def clipped(limit: float, eps: float) -> Callable[[list[Tensor], State], list[Tensor]]:
    def prepare(grads: list[Tensor], shared: State) -> list[Tensor]:
        norm = math.sqrt(sum(float(g.norm()) ** 2 for g in grads))
        return [g * min(1.0, limit / (norm + eps)) for g in grads]

    return prepare


CASES: dict[str, tuple[Callable[..., torch.optim.Optimizer], Any]] = {
    "lion": (lambda p, **f: Lion(p, 0.01, weight_decay=0.1, **f), lion(0.01, 0.9, 0.99, 0.1)),
    "lion-k elastic": (
        lambda p, **f: LionK(p, {"name": "elastic", "a": 0.5}, 0.01, (0.8, 0.95), 0.2, **f),
        lion(0.01, 0.8, 0.95, 0.2, lambda c: c.sign() + 0.5 * c),
    ),
    "lion-k huber": (
        lambda p, **f: LionK(p, {"name": "huber", "e": 0.1}, 0.01, weight_decay=0.2, **f),
        lion(0.01, 0.9, 0.99, 0.2, lambda c: torch.clamp(10 * c, -1, 1)),
    ),
    "adan": (lambda p, **f: Adan(p, 0.01, weight_decay=0.02, **f), adan(0.01, 0.98, 0.92, 0.99, 1e-8, 0.02)),
    "adan no_prox": (
        lambda p, **f: Adan(p, 0.02, (0.9, 0.8, 0.95), 1e-6, 0.1, no_prox=True, **f),
        adan(0.02, 0.9, 0.8, 0.95, 1e-6, 0.1, no_prox=True),
    ),
    "adan clip": (
        lambda p, **f: Adan(p, 0.01, max_grad_norm=0.1, **f),
        (adan(0.01, 0.98, 0.92, 0.99, 1e-8, 0), clipped(0.1, 1e-8)),
    ),
    "adabelief": (
        lambda p, **f: AdaBelief(p, 0.01, weight_decay=0.1, rectify=False, **f),
        adabelief(0.01, 0.9, 0.999, 1e-16, 0.1),
    ),
    "adabelief rectify": (
        lambda p, **f: AdaBelief(p, 0.01, weight_decay=0.01, fixed_decay=True, **f),
        adabelief(0.01, 0.9, 0.999, 1e-16, 0.01, fixed=True, rectify=True),
    ),
    "adabelief rectify, no sgd, l2": (
        lambda p, **f: AdaBelief(p, 0.01, (0.8, 0.99), 1e-8, 0.1, weight_decouple=False, degenerated_to_sgd=False, **f),
        adabelief(0.01, 0.8, 0.99, 1e-8, 0.1, decouple=False, rectify=True, sgd=False),
    ),
    "adabelief eps under the root": (
        lambda p, **f: AdaBelief(p, 0.01, eps=1e-4, rectify=False, accumulate_eps=False, **f),
        adabelief(0.01, 0.9, 0.999, 1e-4, 0, accumulate=False),
    ),
    "diffgrad": (lambda p, **f: DiffGrad(p, 0.01, weight_decay=0.1, **f), diffgrad(0.01, 0.9, 0.999, 1e-8, 0.1)),
    "diffgrad decoupled": (
        lambda p, **f: DiffGrad(p, 0.01, (0.8, 0.9), 1e-4, 0.1, weight_decouple=True, **f),
        diffgrad(0.01, 0.8, 0.9, 1e-4, 0.1, decouple=True),
    ),
    "adamp": (lambda p, **f: AdamP(p, 0.01, weight_decay=0.1, **f), adamp(0.01, 0.9, 0.999, 1e-8, 0.1)),
    "adamp nesterov": (
        lambda p, **f: AdamP(p, 0.01, weight_decay=0.1, nesterov=True, wd_ratio=0.5, **f),
        adamp(0.01, 0.9, 0.999, 1e-8, 0.1, ratio=0.5, nesterov=True),
    ),
    "adamp always": (
        lambda p, **f: AdamP(p, 0.01, weight_decay=0.1, delta=10, **f),
        adamp(0.01, 0.9, 0.999, 1e-8, 0.1, delta=10),
    ),
    "sgdp": (
        lambda p, **f: SGDP(p, 0.1, 0.9, 0.3, 0.01, **f),
        sgdp(0.1, 0.9, 0.3, 0.01),
    ),
    "sgdp nesterov": (
        lambda p, **f: SGDP(p, 0.1, 0.9, weight_decay=0.01, nesterov=True, delta=10, **f),
        sgdp(0.1, 0.9, 0, 0.01, delta=10, nesterov=True),
    ),
    "stable-spam": (
        lambda p, **f: StableSPAM(p, 0.01, weight_decay=0.1, gap=20, **f),
        stable_spam(0.01, 0.9, 0.999, 1e-8, 0.1, 0.7, 0.9, 0.999, 20),
    ),
    "stable-spam cosine": (
        lambda p, **f: StableSPAM(
            p, 0.01, gamma1=None, gamma2=0.8, gamma3=0.99, gap=7, total_steps=30, eta_min=0.25, **f
        ),
        stable_spam(0.01, 0.9, 0.999, 1e-8, 0, 0.9, 0.8, 0.99, 7, total=30, low=0.25),
    ),
    "stable-spam clip only": (
        lambda p, **f: StableSPAM(p, 0.01, gap=0, normalize=False, **f),
        stable_spam(0.01, 0.9, 0.999, 1e-8, 0, 0.7, 0.9, 0.999, 0, normalize=False),
    ),
    "adagrad-norm": (lambda p, **f: AdaGradNorm(p, 0.5, 0.1, **f), adagrad_norm(0.5, 0.1)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES)
def test_rule_follows_the_paper(case: str, form: str) -> None:
    make, twin = CASES[case]
    twin = twin if isinstance(twin, tuple) else (twin,)
    assert_close(run(lambda p: make(p, **FORMS[form])), run_twin(*twin))


def test_the_problem_projects_by_row_as_a_whole_and_not_at_all() -> None:
    params = start()
    grads = gradients(params, 0)
    assert [without_radial_part(p, g, g, 0.1, 1e-8)[1] for p, g in zip(params, grads, strict=True)] == [0, 0, 1, 1]
    by_row = [abs(float(r @ q) / float(r.norm() * q.norm())) for r, q in zip(params[3], grads[3], strict=True)]
    assert max(by_row) > 0.1 / math.sqrt(3)


# published numbers, on the matrix and the vector alone


def golden_run(make: Callable[[list[Tensor]], torch.optim.Optimizer]) -> dict[str, float]:
    weight, bias = (p.requires_grad_() for p in start()[:2])
    optimizer = make([weight, bias])
    first = 0.0
    for t in range(STEPS):
        optimizer.zero_grad()
        batch = slice(8 * (t % 4), 8 * (t % 4) + 8)
        F.cross_entropy(X[batch] @ weight.T + bias, Y[batch]).backward()
        optimizer.step()
        first = weight.norm().item() if t == 0 else first
    loss = F.cross_entropy(X @ weight.T + bias, Y).item()
    return {
        "loss": loss,
        "Wn": weight.norm().item(),
        "W00": weight[0, 0].item(),
        "b0": bias[0].item(),
        "step1_Wn": first,
    }


PUBLISHED = {
    "stable_spam gap 20": lambda p, **f: StableSPAM(p, 1e-2, weight_decay=0.1, gap=20, **f),
    "stable_spam gap 1000": lambda p, **f: StableSPAM(p, 1e-2, gap=1000, **f),
    "adamp": lambda p, **f: AdamP(p, 1e-2, weight_decay=0.1, **f),
    "adamp nesterov": lambda p, **f: AdamP(p, 1e-2, weight_decay=0.1, nesterov=True, **f),
    "adamp delta 10": lambda p, **f: AdamP(p, 1e-2, weight_decay=0.1, delta=10, **f),
    "sgdp delta 10": lambda p, **f: SGDP(p, 0.1, 0.9, weight_decay=0.01, delta=10, **f),
    "adan": lambda p, **f: Adan(p, 1e-2, weight_decay=0.02, **f),
    "adan no_prox": lambda p, **f: Adan(p, 1e-2, weight_decay=0.02, no_prox=True, **f),
    "adan clip 0.1": lambda p, **f: Adan(p, 1e-2, max_grad_norm=0.1, **f),
    "lion": lambda p, **f: Lion(p, 1e-2, weight_decay=0.1, **f),
    "adabelief rectify": lambda p, **f: AdaBelief(p, 1e-2, weight_decay=0.01, **f),
    "adabelief": lambda p, **f: AdaBelief(p, 1e-2, weight_decay=0.01, rectify=False, **f),
    "diffgrad": lambda p, **f: DiffGrad(p, 1e-2, **f),
    "diffgrad l2": lambda p, **f: DiffGrad(p, 1e-2, weight_decay=0.01, **f),
}


@pytest.mark.parametrize("form", ["single", "many"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers(name: str, form: str) -> None:
    """Those of the reference implementation that follows the paper; ``source`` in the file names it."""
    found = golden_run(lambda p: PUBLISHED[name](p, **FORMS[form]))
    assert found == pytest.approx({k: v for k, v in GOLDEN[name].items() if k != "source"}, rel=1e-10)


# limits


def test_adan_without_differences_is_adam() -> None:
    ours = run(lambda p: Adan(p, 0.01, (0.9, 0.0, 0.999), weight_decay=0.1, no_prox=True))
    assert_close(ours, run(lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1)))


def test_lion_k_with_l1_is_lion_and_with_the_half_square_is_momentum() -> None:
    for x, y in zip(
        run(lambda p: LionK(p, "l1", 0.01, weight_decay=0.1)),
        run(lambda p: Lion(p, 0.01, weight_decay=0.1)),
        strict=True,
    ):
        assert torch.equal(x, y)

    def momentum(p: Tensor, g: Tensor, s: State, t: int) -> Tensor:
        return p - 0.1 * (average(s, "m", g, 0.9) + 0.01 * p)

    assert_close(run(lambda p: LionK(p, "square", 0.1, (0.9, 0.9), 0.01)), run_twin(momentum))


def test_adamp_without_projection_is_adamw() -> None:
    ours = run(lambda p: AdamP(p, 0.01, weight_decay=0.1, delta=0))
    assert_close(ours, run(lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1)))


def test_adamp_is_adamw_on_weights_that_the_loss_scales_with() -> None:
    results = []
    for cls in (AdamP, torch.optim.AdamW):
        params = [p.requires_grad_() for p in start()]
        goals = [5 * p.detach() for p in params]
        optimizer = cls(params, 0.01, weight_decay=0.1)
        for _ in range(STEPS):
            for p, goal in zip(params, goals, strict=True):
                p.grad = p.detach() - goal
            optimizer.step()
        results.append([p.detach() for p in params])
    assert_close(*results)


def test_stable_spam_with_all_parts_off_is_adamw() -> None:
    ours = run(lambda p: StableSPAM(p, 0.01, weight_decay=0.1, gap=0, clip=False, normalize=False))
    assert_close(ours, run(lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1)))


def test_diffgrad_with_large_gradients_is_adam_and_with_constant_ones_half_of_it() -> None:
    p = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = DiffGrad([p], 1.0, eps=0.0)
    for t, friction in enumerate((1 / (1 + math.exp(-2.0)), 0.5, 0.5)):
        before = p.detach().clone()
        p.grad = torch.full_like(p, 2.0)
        optimizer.step()
        torch.testing.assert_close(before - p.detach(), torch.full_like(p, friction)), t


def test_sgdp_without_projection_or_decay_is_sgd() -> None:
    ours = run(lambda p: SGDP(p, 0.1, 0.9, delta=0))
    assert_close(ours, run(lambda p: torch.optim.SGD(p, 0.1, 0.9)))


def test_adagrad_norm_of_one_number_is_adagrad() -> None:
    values = []
    for make in (
        lambda p: AdaGradNorm(p, 0.1, 1e-9, weight_decay=0.1, scope="tensor"),
        lambda p: torch.optim.Adagrad(p, 0.1, weight_decay=0.1, eps=1e-12),
    ):
        x = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        optimizer = make([x])
        for t in range(30):
            x.grad = (x + math.sin(t)).detach()
            optimizer.step()
        values.append(x.item())
    assert values[0] == pytest.approx(values[1], rel=1e-9)


# single facts that the papers claim


def test_stable_spam_resets_keep_the_step_size_with_constant_gradients() -> None:
    p = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = StableSPAM([p], 1.0, gap=10)
    for _ in range(25):
        before = p.detach().clone()
        p.grad = torch.ones_like(p)
        optimizer.step()
        torch.testing.assert_close((p.detach() - before).abs(), torch.ones_like(p), rtol=1e-6, atol=1e-6)


def test_stable_spam_scales_a_spike_down_to_the_average_largest_entry() -> None:
    p = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = StableSPAM([p], 1.0, (0.0, 0.0), eps=0.0, gap=0, normalize=False, gamma3=0.9)
    for spike in (1.0, 1.0, 100.0):
        p.grad = torch.tensor([spike, -1.0, 0.5, 0.0], dtype=torch.float64)
        optimizer.step()
    threshold = (0.9 * (1 - 0.9**2) + 0.1 * 100) / (1 - 0.9**3)
    expected = torch.tensor([threshold, 1.0, 0.5, 0.0], dtype=torch.float64) ** 2
    torch.testing.assert_close(optimizer.state[p]["exp_avg_sq"], expected)


@pytest.mark.parametrize("delta", [0.0, 0.1, 10.0])
def test_projection_with_and_without_reading_values_back(delta: float) -> None:
    params = [*start(), torch.zeros(2, 2, dtype=torch.float64)]
    grads = [*gradients(params[:4], 0), torch.ones(2, 2, dtype=torch.float64)]
    hits = []
    for p, g in zip(params, grads, strict=True):
        if p.ndim > 1:
            u = torch.cos(torch.arange(p.numel(), dtype=torch.float64)).view(p.shape)
            on_host = projection._project_on_host(p, g, u, delta, 0.3, 1e-8)
            on_device = projection._project_on_device(p, g, u, delta, 0.3, 1e-8)
            torch.testing.assert_close(on_host[0], on_device[0])
            assert (1 if on_host[1] is None else on_host[1]) == on_device[1].item()
            hits.append(on_host[1] is not None)
    assert hits == {0.0: [False] * 4, 0.1: [False, True, True, True], 10.0: [True] * 4}[delta]


def test_sgdp_projects_the_update_and_never_the_buffer() -> None:
    """The authors' code projects the buffer in place too, for it is the update; timm and pytorch-optimizer do not."""
    params = [p.requires_grad_() for p in start()]
    optimizer = SGDP(params, 0.1, 0.9, delta=10)
    loss_of(params, 0).backward()
    optimizer.step()
    for param in params:
        assert torch.equal(optimizer.state[param]["momentum_buffer"], param.grad)


def test_adan_restart_makes_the_next_step_a_first_one() -> None:
    params = [p.requires_grad_() for p in start()]
    optimizer = Adan(params, 0.01)
    for t in range(7):
        optimizer.zero_grad()
        loss_of(params, t).backward()
        optimizer.step()
    optimizer.restart()
    fresh = [p.detach().clone().requires_grad_() for p in params]
    again = Adan(fresh, 0.01)
    for some, own in ((params, optimizer), (fresh, again)):
        own.zero_grad()
        loss_of(some, 7).backward()
        own.step()
    assert all(torch.equal(a, b) for a, b in zip(params, fresh, strict=True))


def test_adagrad_norm_counts_parameters_that_join_late_and_those_that_pause() -> None:
    a, b = (torch.zeros(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = AdaGradNorm([a], 1.0, 0.5)
    a.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
    optimizer.step()
    optimizer.add_param_group({"params": [b]})
    a.grad, b.grad = None, torch.tensor([0.0, 2.0], dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(b.detach(), -torch.tensor([0.0, 2.0], dtype=torch.float64) / math.sqrt(0.25 + 25 + 4))
