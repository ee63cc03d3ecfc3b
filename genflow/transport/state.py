"""Where Newton's iteration stands on the dual, and the linear algebra of its Hessian: the Laplacian of a graph."""

from collections.abc import Callable

import torch
from torch import Tensor

from genflow.transport.problem import Problem
from genflow.transport.sweeps import balanced

__all__ = ["State", "dense_direction", "laplacian_factor", "laplacian_solve"]

SLACK = 1e-13
"""Relative rounding of the dual's value: below it the marginal error alone judges a step."""


class State:
    """Where Newton's iteration stands: the columns' scaling v and what follows from it, rows being exact."""

    def __init__(self, problem: Problem, v: Tensor) -> None:
        self.v = v
        self.u, self.plan = balanced(problem, v)
        self.columns = self.plan.sum(-2)
        self.residual = problem.b - self.columns
        self.error = self.residual.abs().sum(-1)
        terms = torch.cat((problem.a * self.u.nan_to_num(neginf=0), problem.b * v.nan_to_num(neginf=0)), -1)
        self.value, self.rounding = terms.sum(-1), SLACK * (1 + terms.abs().sum(-1))

    def copy(self) -> "State":
        """A state that may be written to."""
        return self._with(Tensor.clone)

    def pick(self, index: Tensor) -> "State":
        """The states of these indices (or of a mask)."""
        return self._with(lambda value: value[index])

    def _with(self, change: Callable[[Tensor], Tensor]) -> "State":
        changed = object.__new__(State)
        for name, value in vars(self).items():
            setattr(changed, name, change(value))
        return changed

    def put(self, index: Tensor, other: "State") -> None:
        """Write ``other``'s states over those of these indices."""
        for name, value in vars(self).items():
            value[index] = getattr(other, name)


def laplacian_factor(links: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky's factor (B, m, m) of the Laplacian of ``links`` (overwritten), and its scale (B, m), 0 where held.

    The diagonal is summed from the off-diagonal entries, which has no cancellation where a column sits almost alone
    in one row. The null direction is removed by holding the heaviest column; a column without links is held too.
    """
    links.diagonal(dim1=-2, dim2=-1).zero_()
    degree = links.sum(-1)
    held = torch.zeros_like(b, dtype=torch.bool).scatter_(-1, b.argmax(-1, keepdim=True), True)
    held |= (b == 0) | (degree <= 0)
    scale = degree.masked_fill(held, 1.0).rsqrt().masked_fill(held, 0.0)
    matrix = links.mul_(-scale.unsqueeze(-1)).mul_(scale.unsqueeze(-2))
    matrix.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    factor, info = torch.linalg.cholesky_ex(matrix)
    shift = 1e-14
    while bool((info > 0).any()):  # rounding: almost separate groups of points
        matrix.diagonal(dim1=-2, dim2=-1).add_(shift * (info > 0).unsqueeze(-1))
        factor, info = torch.linalg.cholesky_ex(matrix)
        shift *= 100
    return factor, scale


def laplacian_solve(factor: tuple[Tensor, Tensor], residual: Tensor) -> Tensor:
    """The solution (B, m) for a right-hand side of sum 0, up to a constant."""
    matrix, scale = factor
    return torch.cholesky_solve((residual * scale).unsqueeze(-1), matrix).squeeze(-1) * scale


def dense_direction(problem: Problem, state: State) -> Tensor:
    """Newton's direction (B, m) with the whole Hessian, for a batch."""
    weights = state.plan / problem.a.masked_fill(problem.a == 0, 1.0).unsqueeze(-1)
    return laplacian_solve(laplacian_factor(weights.mT @ state.plan, problem.b), state.residual)
