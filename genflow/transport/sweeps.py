"""Sinkhorn's iteration in the logarithmic domain, batched, with matrix products where they are safe."""

import torch
from torch import Tensor

from genflow.errors import check_number
from genflow.transport.problem import EntropicPlan, Problem, solution

__all__ = ["balanced", "column_scaling", "first_scaling", "row_scaling", "sinkhorn", "sweeps"]

BUDGET = 60.0
"""How far scalings may drift (natural logarithm) from the plan they multiply: what underflowed stays nothing."""
NOTHING = 1e-150
"""Entries of the plan below it are 0: nothing even after a drift of BUDGET on both sides, but denormal in products,
which makes these ten times slower."""
CHECK_EVERY = 10
AT_ONCE = 100
"""Sweeps with one plan at most."""


def row_scaling(problem: Problem, v: Tensor) -> Tensor:
    """The logarithmic row scaling (B, n) that makes the rows' sums exact; -inf for a zero mass."""
    sums = torch.logsumexp(v.unsqueeze(-2) - problem.kernel, -1)
    return (problem.log_a - sums).masked_fill(problem.a == 0, -torch.inf)  # all its pairs may be forbidden: inf - inf


def column_scaling(problem: Problem, u: Tensor) -> Tensor:
    """The logarithmic column scaling (B, m) that makes the columns' sums exact; -inf for a zero mass."""
    sums = torch.logsumexp(u.unsqueeze(-1) - problem.kernel, -2)
    return (problem.log_b - sums).masked_fill(problem.b == 0, -torch.inf)


def balanced(problem: Problem, v: Tensor) -> tuple[Tensor, Tensor]:
    """Row scalings u (B, n) that make the rows' sums exact, and the plan (B, n, m): one exponential an entry.

    No entry can be above its row's mass, whatever the rounding of large exponents.
    """
    exponent = v.unsqueeze(-2) - problem.kernel
    top = exponent.amax(-1, keepdim=True).nan_to_num(neginf=0.0)
    weights = exponent.sub_(top).exp_()
    sums = weights.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    plan = torch.threshold_(weights.mul_(problem.a.unsqueeze(-1) / sums), NOTHING, 0.0)
    return problem.log_a - (top + sums.log()).squeeze(-1), plan


def sweeps(problem: Problem, v: Tensor, tolerance: float, most: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """At most ``most`` sweeps on a batch from column scalings v: u, v, the L1 error of the columns and the count.

    Half a sweep is non-expansive in the supremum norm, so no later sweep moves the scalings further than the first
    one. While that bound times the sweeps stays inside BUDGET, sweeps are two products with a fixed plan, and only
    then are exponentials taken again; further away (small ``reg``) every sweep is a log-sum-exp.
    """
    index = torch.arange(len(v), device=v.device)
    result = (torch.empty_like(problem.a), v.clone(), torch.empty_like(problem.a[:, 0]))
    done = 0
    while True:
        u, plan = balanced(problem, v)
        columns = plan.sum(-2)
        error = (columns - problem.b).abs().sum(-1)
        for stored, value in zip(result, (u, v, error), strict=True):
            stored[index] = value
        going = error > tolerance
        if done >= most or not bool(going.any()):
            return *result, done
        if not bool(going.all()):
            problem, index = problem.pick(going), index[going]
            u, v, plan, columns = (value[going] for value in (u, v, plan, columns))
        drift = float((problem.log_b - columns.log()).nan_to_num(nan=0.0).abs().max())
        count = min(most - done, AT_ONCE, int(BUDGET / max(drift, 1e-3)))
        if count < 1:
            v = column_scaling(problem, u)
            done += 1
            continue
        s, t, error, used = product_sweeps(problem, plan, columns, tolerance, count)
        u, v = u + s, v + t
        done += used
        if done >= most or bool((error <= tolerance).all()):
            for stored, value in zip(result, (u, v, error), strict=True):
                stored[index] = value
            return *result, done


def product_sweeps(
    problem: Problem, plan: Tensor, columns: Tensor, tolerance: float, count: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """``count`` sweeps or fewer as products with ``plan``: logarithms of both scalings, the error, sweeps done."""
    a, b = problem.a.unsqueeze(-1), problem.b.unsqueeze(-1)
    columns = columns.unsqueeze(-1)
    for sweep in range(1, count + 1):
        # A zero mass has an empty row or column, where 0 / 0 is to be 0.
        t = (b / columns).nan_to_num(nan=0.0)
        s = (a / (plan @ t)).nan_to_num(nan=0.0)
        columns = plan.mT @ s
        if sweep % CHECK_EVERY == 0 or sweep == count:
            error = (t * columns - b).abs().sum(-2).squeeze(-1)
            if bool((error <= tolerance).all()):
                break
    return s.squeeze(-1).log(), t.squeeze(-1).log(), error, sweep


def sinkhorn(
    a: Tensor | None,
    b: Tensor | None,
    cost: Tensor,
    reg: float,
    *,
    tolerance: float = 1e-9,
    max_iterations: int = 10_000,
    f: Tensor | None = None,
    g: Tensor | None = None,
) -> EntropicPlan:
    """Entropic optimal transport by Sinkhorn's iteration, one problem or a batch of them.

    Minimises ``<P, cost> + reg * sum P (log P - 1)`` over plans with marginals ``a`` and ``b``. Users of POT:
    ``ot.sinkhorn(a, b, M, reg, method="sinkhorn_log")`` is ``sinkhorn(a, b, M, reg).plan``, with tensors in place of
    arrays, ``stopThr`` (L2, every 10 sweeps) named ``tolerance`` (L1) and ``numItermax`` named ``max_iterations``.

    Args:
        a: masses (..., n), not negative; None for uniform ones of total 1. A zero mass gets no plan and ``-inf``.
        b: masses (..., m) of the same total (to 1e-9 of it in float64, 1e-4 in narrower dtypes, whose rounding is
            made good by scaling ``b``).
        cost: (..., n, m), any real numbers; ``inf`` forbids a pair. Leading dimensions broadcast.
        reg: the entropy's weight in the cost's unit, above 0 (eta of the paper is ``1 / reg``).
        tolerance: L1 error of the marginals, as a share of the total mass, at which to stop.
        max_iterations: sweeps at most; both sides are updated in one.
        f: potential (..., n) to begin with, in the cost's unit; ``g`` is derived from it.
        g: potential (..., m) to begin with; goes before ``f``.

    Raises:
        InputError: shapes that do not fit, negative masses, totals that differ, a mass with no allowed partner, a
            ``reg`` so small that float64 cannot hold ``cost / reg``.

    Warns:
        UnconvergedWarning: the tolerance was not reached; ``converged`` and ``marginal_error`` say where.
    """
    check_number("tolerance", tolerance, above=0)
    check_number("max_iterations", max_iterations, at_least=0, integer=True)
    problem = Problem.create(a, b, cost, reg)
    v = first_scaling(problem, f, g)
    u, v, error, done = sweeps(problem, v, tolerance, max_iterations)
    return solution(problem, u, v, error, tolerance, {"sinkhorn": done, "newton": 0})


def first_scaling(problem: Problem, f: Tensor | None, g: Tensor | None) -> Tensor:
    """The column scaling that potentials to begin with stand for."""
    if f is None or g is not None:
        return problem.start("g", g)
    return column_scaling(problem, problem.start("f", f))
