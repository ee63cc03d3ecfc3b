"""Sinkhorn's iteration in the logarithmic domain, batched, with matrix products where they are safe."""

import torch
from torch import Tensor

from genflow.errors import check_number
from genflow.transport.problem import EntropicPlan, Problem, solution

__all__ = ["column_scaling", "first_scaling", "row_scaling", "sinkhorn", "sweeps"]

BUDGET = 60.0
"""How far scalings may drift (natural logarithm) from the plan they multiply: what underflowed stays nothing."""
NOTHING = 1e-200
"""Entries of the plan below it are 0: nothing even after a drift of BUDGET on both sides, but slow in products."""
CHECK_EVERY = 10


def row_scaling(problem: Problem, v: Tensor) -> Tensor:
    """The logarithmic row scaling (B, n) that makes the rows' sums exact; -inf for a zero mass."""
    sums = torch.logsumexp(v.unsqueeze(-2) - problem.kernel, -1)
    return (problem.log_a - sums).masked_fill(problem.a == 0, -torch.inf)  # all its pairs may be forbidden: inf - inf


def column_scaling(problem: Problem, u: Tensor) -> Tensor:
    """The logarithmic column scaling (B, m) that makes the columns' sums exact; -inf for a zero mass."""
    sums = torch.logsumexp(u.unsqueeze(-1) - problem.kernel, -2)
    return (problem.log_b - sums).masked_fill(problem.b == 0, -torch.inf)


def plan_of(problem: Problem, u: Tensor, v: Tensor) -> Tensor:
    """The plan (B, n, m) of logarithmic scalings; with exact rows no entry is above its row's mass."""
    plan = (v.unsqueeze(-2) - problem.kernel).add_(u.unsqueeze(-1)).exp_()
    return torch.threshold_(plan, NOTHING, 0.0)


def movement(new: Tensor, old: Tensor) -> Tensor:
    """The largest change of each problem's scalings (B,); zero masses (-inf both) do not move."""
    return (new - old).nan_to_num(nan=0.0).abs().amax(-1)


def sweeps(problem: Problem, u: Tensor, v: Tensor, tolerance: float, most: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """At most ``most`` sweeps on a batch from rows that are exact; gives u, v, the L1 error of columns and the count.

    Half a sweep is non-expansive in the supremum norm, so no later sweep moves the scalings further than the last one
    did: while that bound times the sweeps stays inside BUDGET, sweeps are two products with a fixed plan, and only
    then is the exponent taken again. Far from the solution (small ``reg``) every sweep is a log-sum-exp.
    """
    error = torch.full_like(problem.a[:, 0], torch.inf)
    result = [u.clone(), v.clone(), error]
    index = torch.arange(len(u), device=u.device)
    done, step = 0, torch.inf
    while True:
        plan = plan_of(problem, u, v)
        columns = plan.sum(-2)
        error = (columns - problem.b).abs().sum(-1)
        for stored, value in zip(result, (u, v, error), strict=True):
            stored[index] = value
        open_ = error > tolerance
        if done >= most or not bool(open_.any()):
            return *result, done
        if not bool(open_.all()):
            problem, u, v, plan, index = problem.pick(open_), u[open_], v[open_], plan[open_], index[open_]
        count = min(most - done, int(BUDGET / step) if step > 0 else CHECK_EVERY)
        if count < 2:
            new = column_scaling(problem, u)
            step = float(movement(new, v).max())
            v = new
            new = row_scaling(problem, v)
            step, u = max(step, float(movement(new, u).max())), new
            done += 1
            continue
        v, step, used = scaled_sweeps(problem, plan, v, tolerance, min(count, 10 * CHECK_EVERY), step)
        u = row_scaling(problem, v)
        done += used


def scaled_sweeps(
    problem: Problem, plan: Tensor, v: Tensor, tolerance: float, count: int, step: float
) -> tuple[Tensor, float, int]:
    """``count`` sweeps or fewer as products with ``plan``, whose rows are exact: v, the last movement, sweeps done."""
    a, b = problem.a.unsqueeze(-1), problem.b.unsqueeze(-1)
    s, t = torch.ones_like(a), torch.ones_like(b)
    columns = plan.mT @ s
    for sweep in range(1, count + 1):
        # A zero mass has an empty row or column, where 0 / 0 is to be 0.
        before, t = t, (b / columns).nan_to_num(nan=0.0)
        s = (a / (plan @ t)).nan_to_num(nan=0.0)
        columns = plan.mT @ s
        if sweep % CHECK_EVERY == 0 or sweep == count:
            error = (t * columns - b).abs().sum(-2)
            if bool((error <= tolerance).all()):
                break
    drift = (t / before).log().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).abs().max()
    return v + t.squeeze(-1).log(), min(step, float(drift)), sweep


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
    u, v, error, done = sweeps(problem, row_scaling(problem, v), v, tolerance, max_iterations)
    return solution(problem, u, v, error, tolerance, {"sinkhorn": done, "newton": 0})


def first_scaling(problem: Problem, f: Tensor | None, g: Tensor | None) -> Tensor:
    """The column scaling that potentials to begin with stand for."""
    if f is None or g is not None:
        return problem.start("g", g)
    return column_scaling(problem, problem.start("f", f))
