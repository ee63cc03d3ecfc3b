"""What Newton's stage is made of: directions against the whole Hessian, sparsity, step lengths, falling reg."""

import pytest
import torch

from genflow.evaluate.transport import make_problem
from genflow.transport import sinkhorn_newton
from genflow.transport.newton import annealing, armijo_step
from genflow.transport.problem import Problem
from genflow.transport.sparse import SparseDirection, largest_entries
from genflow.transport.state import State, dense_direction, laplacian_factor, laplacian_solve
from genflow.transport.sweeps import sweeps


def state_of(kind: str, size: int, eta: float, count: int = 20) -> tuple[Problem, State]:
    """A problem of one of the paper's kinds and where some sweeps take it."""
    problem = Problem.create(*make_problem(kind, size), 1 / eta)
    v = torch.zeros_like(problem.b)
    _, v, _, _ = sweeps(problem, v, 1e-12, count)
    return problem, State(problem, v)


def whole_direction(state: State) -> torch.Tensor:
    """The columns' part of Newton's direction from the paper's Hessian of both potentials, by least squares."""
    plan = state.plan[0]
    hessian = torch.cat(
        (
            torch.cat((torch.diag(plan.sum(1)), plan), 1),
            torch.cat((plan.mT, torch.diag(plan.sum(0))), 1),
        )
    )
    gradient = torch.cat((torch.zeros_like(plan[:, 0]), state.residual[0]))
    return torch.linalg.lstsq(hessian, gradient, driver="gelsd", rcond=1e-14).solution[len(plan) :]


def up_to_constant(direction: torch.Tensor) -> torch.Tensor:
    return direction - direction.mean(-1, keepdim=True)


def test_the_state_is_the_dual_and_its_derivative():
    problem, state = state_of("random", 12, 30, count=1)
    v = state.v.clone().requires_grad_()
    u = problem.log_a - torch.logsumexp(v.unsqueeze(-2) - problem.kernel, -1)
    value = (problem.a * u).sum() + (problem.b * v).sum()
    torch.testing.assert_close(state.value[0], value.detach())
    torch.testing.assert_close(state.residual, torch.autograd.grad(value, v)[0])
    torch.testing.assert_close(state.plan.sum(-1), problem.a)
    torch.testing.assert_close(state.error, (state.plan.sum(-2) - problem.b).abs().sum(-1))


def test_the_dense_direction_solves_the_papers_system(kind):
    problem, state = state_of(kind, 49, 60)
    direction = up_to_constant(dense_direction(problem, state)[0])
    torch.testing.assert_close(direction, up_to_constant(whole_direction(state)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_the_sparse_direction_is_the_dense_one_to_its_tolerance(kind, share):
    problem, state = state_of(kind, 100, 300)
    sparse = SparseDirection(share)
    direction = sparse(problem, state)[0]
    image = state.columns[0] * direction - state.plan[0].mT @ (state.plan[0] @ direction / problem.a[0])
    assert float((state.residual[0] - image).norm()) <= 0.1 * float(state.residual[0].norm())


def test_a_sparsity_that_is_too_small_grows():
    problem, state = state_of("random", 100, 300)
    sparse = SparseDirection(1e-4)
    for _ in range(8):
        if float(state.error) > 1e-9:
            state, failed = armijo_step(problem, state, sparse(problem, state))
            assert not failed.any()
    assert sparse.share > 1e-4
    assert float(state.error) < 1e-9


@pytest.mark.parametrize("density", [1e-4, 0.1, 1.0])
def test_any_density_gives_the_same_solution(kind, density):
    a, b, cost = make_problem(kind, 100)
    batch = torch.stack((cost, cost.square()))
    dense, sparse = (sinkhorn_newton(a, b, batch, 1 / 300, tolerance=1e-12, density=share) for share in (1.0, density))
    assert sparse.converged.all()
    torch.testing.assert_close(sparse.plan, dense.plan, rtol=0, atol=1e-11)
    torch.testing.assert_close(sparse.f, dense.f, rtol=0, atol=1e-9)


def test_large_problems_are_sparse_by_themselves():
    a, b, cost = make_problem("points", 700)
    result = sinkhorn_newton(a, b, cost, 1 / 1200, tolerance=1e-12)
    assert result.converged
    assert result.details["density"] < [0.2]
    assert result.details["inner"] > 0


def test_the_largest_entries_are_kept_and_each_rows_and_columns():
    plan = torch.rand(40, 30, dtype=torch.float64) ** 4
    plan[3] *= 1e-9
    plan[:, 5] *= 1e-9
    mask = largest_entries(plan, 0.1)
    assert mask.any(0).all()
    assert mask.any(1).all()
    assert mask.gather(1, plan.argmax(1, keepdim=True)).all()
    assert mask.gather(0, plan.argmax(0, keepdim=True)).all()
    assert 120 <= int(mask.sum()) <= 120 + 70
    assert plan[mask].sort().values[-120:].sum() == plan.flatten().sort().values[-120:].sum()


def test_a_sampled_cut_keeps_about_the_share_asked_for():
    plan = torch.rand(1000, 1024, dtype=torch.float64)
    assert float(largest_entries(plan, 0.05).double().mean()) == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("weakest", [1.0, 1e-8, 1e-18])
def test_almost_separate_groups_are_solved(weakest):
    links = torch.zeros(1, 4, 4, dtype=torch.float64)
    for i, j, link in ((0, 1, 1.0), (2, 3, 2.0), (1, 2, weakest)):
        links[0, i, j] = links[0, j, i] = link
    b = torch.tensor([[0.4, 0.2, 0.2, 0.2]], dtype=torch.float64)
    solved = laplacian_solve(laplacian_factor(links, b), torch.tensor([[1.0, 0, 0, -1.0]], dtype=torch.float64))[0]
    assert solved.isfinite().all()
    if weakest > 1e-16:  # a flow of 1 along the chain falls by 1 / link
        fall = torch.tensor([1.0, 1 / weakest, 0.5], dtype=torch.float64)
        torch.testing.assert_close(-solved.diff(), fall, rtol=1e-6, atol=1e-6)


def test_a_step_never_lowers_the_dual_and_failures_are_named():
    problem, state = state_of("random", 20, 2000, count=1)
    climbed, failed = armijo_step(problem, state, dense_direction(problem, state))
    assert not failed.any()
    assert climbed.value > state.value
    same, failed = armijo_step(problem, state, -dense_direction(problem, state))
    assert failed.all()
    torch.testing.assert_close(same.v, state.v)


def test_the_regularization_falls_to_the_one_asked_for():
    problem = Problem.create(*make_problem("random", 20), 1e-3)
    factors = annealing(problem)
    assert factors[-1] == 1
    assert float(problem.span) / factors[0] <= 50 < float(problem.span) / factors[1]
    assert annealing(Problem.create(*make_problem("random", 20), 1.0)) == [1.0]
