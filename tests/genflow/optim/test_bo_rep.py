"""BO-REP against a twin on a quadratic problem with a known hypergradient, and where plain descent fails."""

import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genflow.errors import InputError, NonFiniteError
from genflow.optim import BORep

RHO = 0.3


class Quadratic:
    """g = y'Ay/2 - y'Bx and f = |y - c|^2/2 + rho |x|^2/2: y* = A^-1 B x."""

    def __init__(self, named: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        root = normal(4, 4)
        self.a = root @ root.T / 4 + torch.eye(4, dtype=torch.float64)
        self.b, self.c = normal(4, 3), normal(4)
        self.x, self.y = nn.Parameter(normal(3)), nn.Parameter(normal(4))
        self.named = named

    def outer(self) -> Tensor:
        return (self.y - self.c).square().sum() / 2 + RHO * self.x.square().sum() / 2

    def inner(self) -> Tensor:
        return self.y @ self.a @ self.y / 2 - self.y @ self.b @ self.x

    def make(self, **options: Any) -> BORep:
        x, y = ([("x", self.x)], [("y", self.y)]) if self.named else ([self.x], [self.y])
        return BORep(x, y, self.outer, self.inner, **options)

    def hypergradient(self) -> Tensor:
        x = self.x.detach()
        solved = torch.linalg.solve(self.a, self.b)
        return RHO * x + solved.T @ (solved @ x - self.c)


@pytest.mark.parametrize("radius", [None, 0.05])
@pytest.mark.parametrize("normalize", [True, False])
def test_rule_follows_algorithm_1(radius: float | None, normalize: bool) -> None:
    problem = Quadratic()
    lr, inner_lr, nu, beta, steps, interval = 0.05, 0.1, 0.2, 0.8, 4, 3
    optimizer = problem.make(
        lr=lr,
        inner_lr=inner_lr,
        system_lr=nu,
        beta=beta,
        inner_steps=steps,
        interval=interval,
        radius=radius,
        refine_steps=5,
        refine_rounds=2,
        normalize=normalize,
    )
    a, b, c, x, y = problem.a, problem.b, problem.c, problem.x.detach().clone(), problem.y.detach().clone()
    z, m = torch.zeros_like(y), torch.zeros_like(x)

    def descend(y: Tensor, count: int, rate: float, ball: float | None) -> list[Tensor]:
        centre, seen = y, []
        for _ in range(count):
            y = y - rate * (a @ y - b @ x)
            if ball is not None and (y - centre).norm() > ball:
                y = centre + ball * (y - centre) / (y - centre).norm()
            seen.append(y)
        return seen

    for k in range(50):
        if k == 0:
            for epoch in range(2):
                ball = None if radius is None else radius / math.sqrt(2) ** epoch
                y = torch.stack(descend(y, 5 * 2**epoch, inner_lr / 2**epoch, ball)).mean(0)
        elif k % interval == 0:
            y = descend(y, steps, inner_lr, radius)[-1]
        z = z - nu * (a @ z - (y - c))
        h = RHO * x - (-b.T) @ z
        m = beta * m + (1 - beta) * h
        x = x - lr * m / (m.norm() + 1e-10) if normalize else x - lr * m
        optimizer.step()
        for ours, twin in ((problem.x, x), (problem.y, y), (optimizer.state[problem.y]["solution"], z)):
            torch.testing.assert_close(ours.detach(), twin, rtol=1e-10, atol=1e-10)


def test_it_finds_the_solution_of_the_system_the_hypergradient_and_the_optimum() -> None:
    problem = Quadratic()
    optimizer = problem.make(lr=0.0, inner_lr=0.2, system_lr=0.3, beta=0.0, interval=1, refine_steps=50)
    for _ in range(200):
        found = optimizer.step()
    solution = torch.linalg.solve(problem.a, torch.linalg.solve(problem.a, problem.b @ problem.x.detach()) - problem.c)
    torch.testing.assert_close(optimizer.state[problem.y]["solution"], solution)
    torch.testing.assert_close(optimizer.state[problem.x]["momentum"], problem.hypergradient())
    torch.testing.assert_close(found["hypergradient_norm"], problem.hypergradient().norm())
    before = problem.x.detach().clone()
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert (problem.x.detach() - before).norm().item() == pytest.approx(0.1)  # every step has length lr
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda t: 1 / (1 + 0.1 * t), lambda t: 1.0])
    for _ in range(600):
        optimizer.step()
        schedule.step()
    assert problem.hypergradient().norm() < 0.03 * 1.0


def test_refinement_starts_near_the_lower_solution_and_once_only() -> None:
    distances = {}
    for steps in (0, 30):
        problem = Quadratic()
        optimizer = problem.make(lr=0.0, inner_lr=0.2, refine_steps=steps, interval=1000)
        wanted = torch.linalg.solve(problem.a, problem.b @ problem.x.detach())
        optimizer.step()
        distances[steps] = (problem.y.detach() - wanted).norm().item()
        y = problem.y.detach().clone()
        optimizer.step()
        assert torch.equal(problem.y, y)
    assert distances[30] < 0.01 * distances[0]


def test_grad_is_left_alone_and_no_graph_is_kept() -> None:
    problem = Quadratic()
    problem.x.grad = torch.ones(3, dtype=torch.float64)
    optimizer = problem.make()
    found = optimizer.step()
    assert torch.equal(problem.x.grad, torch.ones(3, dtype=torch.float64))
    assert problem.y.grad is None
    kept = [*found.values(), *optimizer.state[problem.x].values(), *optimizer.state[problem.y].values()]
    assert not any(value.requires_grad for value in kept)


def test_a_saved_run_goes_on_bit_by_bit() -> None:
    first, second = Quadratic(), Quadratic()
    optimizer, resumed = first.make(), second.make(lr=1.0)
    for _ in range(5):
        optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    second.x.data.copy_(first.x.data)
    second.y.data.copy_(first.y.data)
    for _ in range(7):
        optimizer.step()
        resumed.step()
    assert torch.equal(first.x, second.x)
    assert torch.equal(first.y, second.y)
    assert resumed.param_groups[0]["updates"] == 12


def test_losses_that_are_not_finite_change_nothing() -> None:
    for nonfinite in ("raise", "skip"):
        problem = Quadratic()
        optimizer = problem.make(nonfinite=nonfinite, interval=1)
        optimizer.step()
        kept = [problem.x.detach().clone(), problem.y.detach().clone(), optimizer.state[problem.y]["solution"].clone()]
        good, problem.c = problem.c, problem.c * math.nan
        if nonfinite == "raise":
            with pytest.raises(NonFiniteError, match="step 1 is not finite .outer_loss nan"):
                optimizer.step()
        else:
            optimizer.step()
        after = [problem.x.detach(), problem.y.detach(), optimizer.state[problem.y]["solution"]]
        assert all(torch.equal(a, b) for a, b in zip(kept, after, strict=True))
        problem.c = good
        optimizer.step()
        assert torch.isfinite(problem.x).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr: got -1"),
        ({"inner_lr": math.nan}, "lr: got nan"),
        ({"system_lr": 0}, "system_lr: got 0"),
        ({"beta": 1.0}, "beta: got 1.0"),
        ({"inner_steps": 0}, "inner_steps: got 0"),
        ({"interval": 1.5}, "interval: got 1.5"),
        ({"radius": 0}, "radius: got 0"),
        ({"refine_steps": -1}, "refine_steps: got -1"),
        ({"refine_rounds": 0}, "refine_rounds: got 0"),
        ({"normalize": 1}, "normalize: got 1"),
        ({"eps": -1}, "eps: got -1"),
        ({"nonfinite": "ignore"}, "nonfinite: 'ignore'"),
    ],
)
def test_bad_values_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Quadratic().make(**options)


def test_bad_parameters_and_losses_are_named() -> None:
    problem = Quadratic()
    with pytest.raises(InputError, match="inner_params: got none"):
        BORep([problem.x], [], problem.outer, problem.inner)
    with pytest.raises(InputError, match="inner parameter 1: it is there twice, or at both levels"):
        BORep([problem.x], [problem.y, problem.x], problem.outer, problem.inner)
    with pytest.raises(InputError, match="weights: it requires no gradient"):
        BORep([("weights", torch.zeros(2))], [problem.y], problem.outer, problem.inner)
    with pytest.raises(InputError, match="outer parameter 0: got torch.complex64"):
        BORep([torch.zeros(2, dtype=torch.complex64)], [problem.y], problem.outer, problem.inner)
    with pytest.raises(InputError, match="inner_loss: got None"):
        BORep([problem.x], [problem.y], problem.outer, None)
    optimizer = Quadratic(named=True).make()
    assert optimizer.param_groups[1]["param_names"] == ["y"]
    with pytest.raises(InputError, match="closure"):
        optimizer.step(problem.outer)
    with pytest.raises(InputError, match="two groups"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(RuntimeError, match="inner_loss: its gradient depends on no parameter"):
        BORep([problem.x], [problem.y], problem.outer, lambda: problem.y.sum()).step()
