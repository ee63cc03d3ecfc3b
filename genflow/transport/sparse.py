"""Newton's direction for one large problem: conjugate gradients on the whole Hessian, with a sparsified one as guide.

The sparsified Hessian (the plan's largest entries, each row's and column's largest always among them) is factored
and preconditions conjugate gradients on the exact one, whose products cost as much as half a Sinkhorn sweep. So a
fixed sparsity cannot stall the iteration: it costs inner iterations, and when these are many the density is doubled.
"""

import math

import scipy.sparse
import torch
from torch import Tensor

from genflow.transport.problem import Problem
from genflow.transport.state import State, laplacian_factor, laplacian_solve

__all__ = ["START_ENTRIES", "SparseDirection", "largest_entries"]

START_ENTRIES = 15
"""Entries a row to begin with."""
INNER = 12
"""Inner iterations after which the factor is renewed or, when it was new, its density doubled."""
MOST_INNER = 60
MOST_EXACT = 1e-4
"""Least relative residual asked of the inner iteration: near the solution rounding leaves no smaller one."""
SAMPLE = 1 << 18


def largest_entries(plan: Tensor, share: float) -> Tensor:
    """A mask (n, m) of about ``share`` of the entries, the largest, with each row's and column's largest among them.

    The cut is read off an even sample of at most SAMPLE entries: ranking millions would cost more than the rest.
    """
    rows, columns = plan.shape
    flat = plan.flatten()
    stride = max(1, len(flat) // SAMPLE)
    while math.gcd(stride, columns) > 1:  # or the sample would see some columns only
        stride += 1
    sample = flat[::stride]
    count = min(len(sample), max(1, round(share * len(sample))))
    mask = plan >= sample.topk(count, sorted=False).values.min()
    mask[torch.arange(rows, device=plan.device), plan.argmax(1)] = True
    mask[plan.argmax(0), torch.arange(columns, device=plan.device)] = True
    return mask & (plan > 0)


class SparseDirection:
    """A direction (1, m) at a state of one problem; keeps its factor and its ``share`` of entries from step to step."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.inner = 0
        self.factors = 0
        self._factor: tuple[Tensor, Tensor] | None = None

    def __call__(self, problem: Problem, state: State) -> Tensor:
        fresh = self._factor is None
        if fresh:
            self.renew(problem, state)
        tolerance = max(MOST_EXACT, min(0.1, float(state.error)))
        direction, taken, met = self.solve(problem, state, tolerance)
        while not met and (self.share < 1 or not fresh):
            if fresh:
                self.share = min(1.0, 2 * self.share)
            self.renew(problem, state)
            fresh = True
            direction, taken, met = self.solve(problem, state, tolerance)
        if taken > INNER:
            self._factor = None
            if fresh:
                self.share = min(1.0, 2 * self.share)
        return direction

    def renew(self, problem: Problem, state: State) -> None:
        """Factor the sparsified Hessian at this state.

        With the diagonal blocks exact, what was dropped remains in the diagonal only; here it also comes back off
        the diagonal, as the product of its row sums: the constant vector stays the only null one, and
        pieces into which the kept entries may fall hang together as strongly as they should.
        """
        plan, a = state.plan[0], problem.a[0]
        mask = largest_entries(plan, self.share)
        dropped = plan.masked_fill(mask, 0.0)
        index = mask.nonzero().cpu().numpy()
        inverse = torch.where(a > 0, 1 / a, 0.0)
        kept = scipy.sparse.csr_matrix((plan[mask].cpu().numpy(), (index[:, 0], index[:, 1])), shape=tuple(plan.shape))
        scaled = scipy.sparse.diags_array(inverse.cpu().numpy()) @ kept
        links = torch.from_numpy((kept.T @ scaled).toarray()).to(plan.device)
        lost = dropped.sum(0) + torch.from_numpy(kept.T @ (dropped.sum(1) * inverse).cpu().numpy()).to(plan.device)
        if float(lost.sum()) > 0:
            links.addr_(lost, lost, alpha=1 / float(lost.sum()))
        self._factor = laplacian_factor(links.unsqueeze(0), problem.b)
        self.factors += 1

    def solve(self, problem: Problem, state: State, tolerance: float) -> tuple[Tensor, int, bool]:
        """Preconditioned conjugate gradients: the direction, iterations taken, whether the tolerance was met."""
        plan, a = state.plan[0], problem.a[0]
        inverse = torch.where(a > 0, 1 / a, 0.0)
        residual = state.residual[0]
        goal = tolerance * float(residual.norm())
        x = torch.zeros_like(residual)
        guide = laplacian_solve(self._factor, residual.unsqueeze(0))[0]
        p, product = guide, float(residual @ guide)
        for taken in range(1, MOST_INNER + 1):
            image = state.columns[0] * p - plan.mT @ (inverse * (plan @ p))
            curvature = float(p @ image)
            if not curvature > 0:
                return x.unsqueeze(0), taken, False
            x = x + (product / curvature) * p
            residual = residual - (product / curvature) * image
            self.inner += 1
            if float(residual.norm()) <= goal:
                return x.unsqueeze(0), taken, True
            guide = laplacian_solve(self._factor, residual.unsqueeze(0))[0]
            before, product = product, float(residual @ guide)
            p = guide + (product / before) * p
        return x.unsqueeze(0), MOST_INNER, False
