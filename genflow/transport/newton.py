"""Sinkhorn-Newton-Sparse: a few Sinkhorn sweeps, then Newton steps with a sparsified Hessian of the dual.

Tang and others, "Accelerating Sinkhorn Algorithm with Sparse Newton Iterations" (ICLR 2024). The dual's Hessian is
``[[diag(P 1), P], [P^T, diag(P^T 1)]] / reg`` up to its sign. Here the rows are made exact after every step (half a
Sinkhorn sweep, at the price of evaluating the plan), as in Tang and Qiu, "Safe and Sparse Newton Method for
Entropic-Regularized Optimal Transport" (NeurIPS 2024), so that Newton's system is the Schur complement
``diag(P^T 1) - P^T diag(1 / a) P`` on the columns: the Laplacian of a graph, half as large.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from genflow.errors import check_number
from genflow.transport.problem import EntropicPlan, Problem, solution
from genflow.transport.sweeps import first_scaling, row_scaling, sweeps

__all__ = ["sinkhorn_newton"]

ARMIJO = 1e-4
HALVINGS = 30
SLACK = 1e-13
"""Relative rounding of the dual's value: below it the marginal error alone judges a step."""


def dense_direction(problem: Problem, plan: Tensor, columns: Tensor, residual: Tensor) -> Tensor:
    """Newton's direction (B, m) with the whole Hessian.

    The diagonal is summed from the off-diagonal entries, which has no cancellation where a column sits almost alone
    in one row; the null direction is removed by holding the heaviest column, which keeps the diagonal dominant.
    """
    weights = plan / problem.a.unsqueeze(-1).masked_fill(problem.a.unsqueeze(-1) == 0, 1.0)
    links = weights.mT @ plan
    links.diagonal(dim1=-2, dim2=-1).zero_()
    degree = links.sum(-1)
    held = torch.zeros_like(problem.b, dtype=torch.bool).scatter_(-1, problem.b.argmax(-1, keepdim=True), True)
    held |= (problem.b == 0) | (degree <= 0)
    scale = degree.masked_fill(held, 1.0).rsqrt()
    free = (~held).to(links.dtype)
    matrix = -links * (scale * free).unsqueeze(-1) * (scale * free).unsqueeze(-2)
    matrix.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    factor, info = torch.linalg.cholesky_ex(matrix)
    shift = 1e-14
    while bool((info > 0).any()):  # rounding: almost separate groups of points
        matrix.diagonal(dim1=-2, dim2=-1).add_(shift * (info > 0).unsqueeze(-1))
        factor, info = torch.linalg.cholesky_ex(matrix)
        shift *= 100
    solved = torch.cholesky_solve((residual * scale * free).unsqueeze(-1), factor).squeeze(-1)
    return solved * scale * free


class State:
    """Where Newton's iteration stands: the columns' scaling v and what follows from it, rows being exact."""

    def __init__(self, problem: Problem, v: Tensor) -> None:
        exponent = v.unsqueeze(-2) - problem.kernel
        top = exponent.amax(-1, keepdim=True).nan_to_num(neginf=0.0)
        weights = exponent.sub_(top).exp_()
        sums = weights.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        self.v = v
        self.u = problem.log_a - (top + sums.log()).squeeze(-1)
        self.plan = weights.mul_(problem.a.unsqueeze(-1) / sums)
        self.columns = self.plan.sum(-2)
        self.residual = problem.b - self.columns
        self.error = self.residual.abs().sum(-1)
        terms = torch.cat((problem.a * self.u.nan_to_num(neginf=0), problem.b * v.nan_to_num(neginf=0)), -1)
        self.value, self.rounding = terms.sum(-1), SLACK * (1 + terms.abs().sum(-1))

    def pick(self, index: Tensor) -> "State":
        """The states of these indices."""
        chosen = object.__new__(State)
        for name, value in vars(self).items():
            setattr(chosen, name, value[index])
        return chosen

    def put(self, index: Tensor, other: "State") -> None:
        """Write ``other``'s states over those of these indices."""
        for name, value in vars(self).items():
            value[index] = getattr(other, name)


Direction = Callable[[Problem, State], Tensor]
"""Newton's direction (B, m) for the columns' scaling at a state."""


def step(problem: Problem, state: State, direction: Tensor, index: Tensor | None = None) -> Tensor:
    """One Armijo step in place, by halving; gives a mask (B,) of the problems for which no length was acceptable."""
    direction = direction.masked_fill(problem.b == 0, 0.0)
    slope = (state.residual * direction).sum(-1)
    # No optimal potential is farther away than the costs differ; a longer step is a near-singular system's.
    reach = problem.kernel.masked_fill(problem.kernel.isposinf(), 0.0).amax((-2, -1)) + 50.0
    length = (reach / direction.abs().amax(-1)).clamp_max(1.0)
    pending = torch.arange(len(slope), device=slope.device)[slope > 0]
    failed = slope <= 0
    for _ in range(HALVINGS):
        if not len(pending):
            break
        part = problem if len(pending) == len(slope) else problem.pick(pending)
        old = state if len(pending) == len(slope) else state.pick(pending)
        promised = length[pending] * slope[pending]
        trial = State(part, old.v + length[pending, None] * direction[pending])
        good = trial.value - old.value >= ARMIJO * promised
        good |= (promised <= old.rounding) & (trial.error < old.error)
        if bool(good.all()):
            state.put(pending, trial)
            return failed
        state.put(pending[good], trial.pick(good))
        pending = pending[~good]
        length = length / 2
    failed[pending] = True
    return failed


def newton(
    problem: Problem, v: Tensor, tolerance: float, most: int, direction: Direction
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Newton steps on a batch from the columns' scaling v: u, v, error and the most steps that a problem took."""
    state = State(problem, v)
    index = torch.arange(len(v), device=v.device)
    result = [state.u.clone(), state.v.clone(), state.error.clone()]
    failures = torch.zeros_like(index)
    done = 0
    while True:
        for stored, value in zip(result, (state.u, state.v, state.error), strict=True):
            stored[index] = value
        open_ = (state.error > tolerance) & (failures < 3)
        if done >= most or not bool(open_.any()):
            return *result, done
        if not bool(open_.all()):
            problem, state, index, failures = problem.pick(open_), state.pick(open_), index[open_], failures[open_]
        failed = step(problem, state, direction(problem, state))
        failures = torch.where(failed, failures + 1, 0)
        done += 1
        if bool(failed.any()):  # half a sweep of Sinkhorn always climbs
            part = problem.pick(failed)
            old = state.pick(failed)
            state.put(failed, State(part, part.log_b - torch.logsumexp(old.u.unsqueeze(-1) - part.kernel, -2)))


def sinkhorn_newton(
    a: Tensor | None,
    b: Tensor | None,
    cost: Tensor,
    reg: float,
    *,
    tolerance: float = 1e-9,
    sinkhorn_iterations: int = 20,
    newton_iterations: int = 100,
    density: float | None = None,
    f: Tensor | None = None,
    g: Tensor | None = None,
) -> EntropicPlan:
    check_number("tolerance", tolerance, above=0)
    problem = Problem.create(a, b, cost, reg)
    v = first_scaling(problem, f, g)
    u, v, error, swept = sweeps(problem, row_scaling(problem, v), v, tolerance, sinkhorn_iterations)
    u, v, error, done = newton(
        problem, v, tolerance, newton_iterations, lambda p, s: dense_direction(p, s.plan, s.columns, s.residual)
    )
    return solution(problem, u, v, error, tolerance, {"sinkhorn": swept, "newton": done})
