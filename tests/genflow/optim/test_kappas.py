"""Kappa objects and Lion-K: conjugates, and the constraint or penalty that training ends in."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genflow.errors import InputError
from genflow.optim import KAPPAS, Kappa, LionK, create_kappa
from genflow.optim.kappas import L1, L2, DeadZone, Elastic, HalfSquare, Huber, LInf, Lp, Nuclear, PseudoHuber, SortedL1

EXAMPLES = [
    L1(),
    L2(),
    L2(dim=-1),
    L2(dim=0),
    Lp(1.5),
    Lp(4.0),
    LInf(),
    HalfSquare(),
    Huber(0.3),
    PseudoHuber(0.3),
    DeadZone(0.2),
    SortedL1(0.3),
    SortedL1(1.0),
    Elastic(0.5),
    Nuclear(),
]
every = pytest.mark.parametrize("kappa", EXAMPLES, ids=repr)
matrices = st.lists(st.floats(-3, 3).map(lambda x: round(x, 3)), min_size=6, max_size=6).map(
    lambda x: torch.tensor(x, dtype=torch.float64).view(2, 3)
)


def test_every_kappa_is_tried_here() -> None:
    assert {kappa.name for kappa in EXAMPLES} == set(KAPPAS)


@every
@given(c=matrices)
@settings(deadline=None, max_examples=40)
def test_fenchel_young_holds_with_equality_at_the_gradient(kappa: Kappa, c: Tensor) -> None:
    """<c, s> = kappa(c) + kappa*(s) for s = grad kappa(c): gradient, value and conjugate belong together."""
    s = kappa.grad(c)
    assert s.shape == c.shape
    assert (c * s).sum().item() == pytest.approx((kappa.value(c) + kappa.conjugate(s)).item(), abs=1e-6)


@every
@given(c=matrices, y=matrices)
@settings(deadline=None, max_examples=40)
def test_fenchel_young_inequality(kappa: Kappa, c: Tensor, y: Tensor) -> None:
    y = y / max(1.0, kappa.gauge(y).item())  # into the constraint set
    assert (c * y).sum().item() <= (kappa.value(c) + kappa.conjugate(y)).item() + 1e-6


@every
def test_outside_the_constraint_set_the_conjugate_is_infinite(kappa: Kappa) -> None:
    y = torch.tensor([[0.2, -0.4, 0.1], [0.3, 0.1, -0.2]], dtype=torch.float64)
    gauge = kappa.gauge(y).item()
    if gauge == 0:
        assert "penalty" in kappa.implies
        assert math.isfinite(kappa.conjugate(100 * y).item())
        return
    assert kappa.gauge(3 * y).item() == pytest.approx(3 * gauge)
    assert math.isfinite(kappa.conjugate(0.99 * y / gauge).item())
    assert kappa.conjugate(1.01 * y / gauge).item() == math.inf


@every
def test_gradient_is_autograds_where_kappa_is_smooth(kappa: Kappa) -> None:
    c = torch.tensor([[0.9, -0.5, 0.3], [0.1, -0.7, 1.1]], dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(kappa.value(c), c)
    torch.testing.assert_close(kappa.grad(c.detach()), expected)


@every
def test_kappa_is_odd_zero_at_zero_and_survives_its_config(kappa: Kappa) -> None:
    c = torch.tensor([[0.9, -0.5, 0.3], [0.1, -0.7, 1.1]])
    torch.testing.assert_close(kappa.grad(-c), -kappa.grad(c))
    assert torch.equal(kappa.grad(torch.zeros(2, 3)), torch.zeros(2, 3))
    assert kappa.value(torch.zeros(2, 3)).item() == 0
    assert create_kappa(kappa.config()) == kappa
    torch.testing.assert_close(kappa.grads_([c.clone(), c[0].clone(), c[0, 0].clone()])[0], kappa.grad(c))


def test_bad_kappas_are_named() -> None:
    for kappa, message in (
        (3, "kappa: got 3"),
        ({"p": 2}, "kappa: None is not known"),
        ({"name": "lp", "p": 1}, "kappa.p: got 1; allowed: a finite number > 1"),
        ({"name": "huber", "e": 0}, "kappa.e: got 0"),
        ({"name": "sorted-l1", "share": 0}, "kappa.share: got 0"),
        ({"name": "elastic", "a": -1}, "kappa.a: got -1"),
        ({"name": "l2", "dim": 0.5}, "kappa.dim: got 0.5"),
    ):
        with pytest.raises(InputError, match=message):
            create_kappa(kappa)


def test_an_own_kappa_works_by_object_and_by_name() -> None:
    class Steep(Kappa):
        name = "test-steep"

        def value(self, c: Tensor) -> Tensor:
            return 2 * c.abs().sum()

        def grad(self, c: Tensor) -> Tensor:
            return 2 * c.sign()

    try:
        weight = nn.Parameter(torch.ones(2, 2))
        optimizer = LionK([weight], Steep(), lr=0.25)
        weight.grad = torch.ones(2, 2)
        optimizer.step()
        assert torch.equal(weight, torch.full((2, 2), 0.5))
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.step()
        assert torch.equal(weight, torch.zeros(2, 2))
    finally:
        del KAPPAS["test-steep"]


def train(kappa: Kappa, decay: float, goal: Tensor, steps: int = 4000) -> tuple[nn.Parameter, LionK]:
    """Minimize |x - goal|^2 / 2 with a learning rate that goes to zero."""
    x = nn.Parameter(torch.full_like(goal, 2.0))
    optimizer = LionK([("x", x)], kappa, lr=0.02, weight_decay=decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: (1 - t / steps) ** 2)
    for _ in range(steps):
        x.grad = (x - goal).detach()
        optimizer.step()
        scheduler.step()
    return x, optimizer


GOAL = torch.tensor([[3.0, -0.5, 0.2], [-1.5, 0.05, 0.7]], dtype=torch.float64)


@pytest.mark.parametrize(
    "kappa",
    [
        L1(),
        L2(),
        Lp(3.0),
        Huber(0.5),
        PseudoHuber(0.5),
        HalfSquare(),
        Elastic(2.0),
        pytest.param(L2(dim=-1), marks=pytest.mark.slow),
        pytest.param(LInf(), marks=pytest.mark.slow),
        pytest.param(DeadZone(0.3), marks=pytest.mark.slow),
        pytest.param(SortedL1(0.5), marks=pytest.mark.slow),
        pytest.param(Nuclear(), marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_training_ends_at_the_minimum_that_kappa_implies(kappa: Kappa) -> None:
    """f(x) + kappa*(w x) / w at the end is no larger than at any point near by, and the iterate is inside the set."""
    decay = 1.3

    def objective(x: Tensor) -> float:
        return ((x - GOAL).square().sum() / 2 + kappa.conjugate(decay * x) / decay).item()

    x, optimizer = train(kappa, decay, GOAL)
    (report,) = optimizer.kappa_constraint()
    assert report["name"] == "x"
    assert report["gauge"] <= 1 + 1e-3
    inside = x.detach() / max(1.0, report["gauge"])
    generator = torch.Generator().manual_seed(0)
    for size in (0.3, 0.03):
        for _ in range(200):
            other = inside + size * torch.randn(2, 3, generator=generator, dtype=torch.float64)
            other = other / max(1.0, kappa.gauge(decay * other).item())
            assert objective(inside) <= objective(other) + 2e-3


@pytest.mark.parametrize("kappa", [L1(), L2(), L2(dim=-1), Nuclear()], ids=repr)
def test_outside_the_set_the_distance_shrinks_by_one_minus_lr_times_decay(kappa: Kappa) -> None:
    """Section 3 of the paper, for the gauge: g(x') <= (1 - lr w) g(x) + lr w."""
    lr, decay = 0.1, 2.0
    x = nn.Parameter(3 * GOAL.clone())
    optimizer = LionK([x], kappa, lr=lr, weight_decay=decay)
    for t in range(60):
        before = kappa.gauge(decay * x.detach()).item()
        x.grad = torch.sin(torch.arange(6, dtype=torch.float64).view(2, 3) * t)
        optimizer.step()
        after = kappa.gauge(decay * x.detach()).item()
        assert after <= (1 - lr * decay) * before + lr * decay + 1e-9
    assert after <= 1 + 1e-5


def test_the_report_names_what_is_outside_and_needs_a_decay() -> None:
    inside, outside = nn.Parameter(torch.full((2,), 0.5)), nn.Parameter(torch.full((2,), 3.0 + 0j))
    optimizer = LionK([{"params": [inside]}, {"params": [outside], "kappa": Huber(2.0)}], weight_decay=1.0)
    first, second = optimizer.kappa_constraint()
    assert (first["inside"], first["gauge"], first["penalty"]) == (True, 0.5, 0)
    assert (second["name"], second["inside"], second["gauge"], second["penalty"]) == ("1.0", False, 3.0, 18.0)
    assert second["implies"].startswith("every |y_i| <= 1")
    with pytest.raises(InputError, match="weight_decay: 0 in group 0"):
        LionK([inside]).kappa_constraint()
