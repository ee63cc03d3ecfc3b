"""Sinkhorn-Newton-Sparse: a few Sinkhorn sweeps, then Newton steps with a sparsified Hessian of the dual.

Tang and others, "Accelerating Sinkhorn Algorithm with Sparse Newton Iterations" (ICLR 2024). The dual's Hessian is
``[[diag(P 1), P], [P^T, diag(P^T 1)]] / reg`` up to its sign. Here the rows are made exact after every step (half a
Sinkhorn sweep, at the price of evaluating the plan), as in Tang and Qiu, "Safe and Sparse Newton Method for
Entropic-Regularized Optimal Transport" (NeurIPS 2024), so that Newton's system is the Schur complement
``diag(P^T 1) - P^T diag(1 / a) P`` on the columns: the Laplacian of a graph, half as large.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from genflow.errors import check_number
from genflow.transport.problem import EntropicPlan, FallbackWarning, Problem, solution
from genflow.transport.sparse import START_ENTRIES, SparseDirection
from genflow.transport.state import State, dense_direction
from genflow.transport.sweeps import column_scaling, first_scaling, row_scaling, sweeps

__all__ = ["sinkhorn_newton"]

ARMIJO = 1e-4
HALVINGS = 30
STALLED = 3
"""Steps in a row without any acceptable length after which a problem is left to Sinkhorn's sweeps."""
EASY_SPAN = 50.0
"""Largest ``cost / reg`` at which Newton's iteration begins; smaller regularizations are reached from there."""
COOLING = 4.0
LOOSE = 1e-2
"""Marginal error at which an intermediate regularization is left."""
BETWEEN = 2
"""Sinkhorn sweeps at an intermediate regularization."""
RATE = 5
"""Last sweeps of the first stage, whose errors tell how fast it converges."""
EASY_SWEEPS = 64
"""The first stage goes on where that promises the tolerance within so many more: a Newton step of 500 to 2,000 columns
takes as long as 80 to 100 sweeps on a CPU."""
DENSE_COLUMNS = 512
"""Up to here the whole Hessian is factored, in batches; on one CPU thread both ways took as long at 600 columns."""

Direction = Callable[[Problem, State], Tensor]
"""Newton's direction (B, m) for the columns' scaling at a state."""


def armijo_step(problem: Problem, state: State, direction: Tensor) -> tuple[State, Tensor]:
    """The state after one step, its length halved until it pays, and a mask (B,) of problems where none did."""
    direction = direction.nan_to_num(0.0, 0.0, 0.0).masked_fill(problem.b == 0, 0.0)
    slope = (state.residual * direction).sum(-1)
    # No optimal scaling is farther away than the costs differ; a longer step is a near-singular system's.
    length = ((problem.span + EASY_SPAN) / direction.abs().amax(-1)).clamp_max(1.0)
    failed = ~(slope > 0)
    pending = (~failed).nonzero().squeeze(-1)
    for halving in range(HALVINGS):
        if not len(pending):
            break
        whole = len(pending) == len(slope)
        part, old = (problem, state) if whole else (problem.pick(pending), state.pick(pending))
        trial = State(part, old.v + length[pending, None] * direction[pending])
        promised = length[pending] * slope[pending]
        good = trial.value - old.value >= ARMIJO * promised
        good |= (promised <= old.rounding) & (trial.error < old.error)
        if whole and bool(good.all()):
            return trial, failed
        if halving == 0:
            state = state.copy()
        state.put(pending[good], trial.pick(good))
        pending = pending[~good]
        length = length / 2
    failed[pending] = True
    return state, failed


def newton(
    problem: Problem, v: Tensor, tolerance: float, most: int, direction: Direction
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Newton steps on a batch from the columns' scaling v: u, v, error and the most steps that a problem took."""
    state = State(problem, v)
    index = torch.arange(len(v), device=v.device)
    result = (state.u.clone(), state.v.clone(), state.error.clone())
    failures = torch.zeros_like(index)
    done = 0
    while True:
        for stored, value in zip(result, (state.u, state.v, state.error), strict=True):
            stored[index] = value
        going = (state.error > tolerance) & (failures < STALLED)
        if done >= most or not bool(going.any()):
            return *result, done
        if not bool(going.all()):
            problem, state, index, failures = problem.pick(going), state.pick(going), index[going], failures[going]
        state, failed = armijo_step(problem, state, direction(problem, state))
        failures = torch.where(failed, failures + 1, 0)
        done += 1
        if bool(failed.any()):  # Sinkhorn's half sweep always climbs
            part, old = problem.pick(failed), state.pick(failed)
            state.put(failed.nonzero().squeeze(-1), State(part, column_scaling(part, old.u)))


def annealing(problem: Problem) -> list[float]:
    """Factors on the regularization, falling to 1, from the first at which the problem is easy."""
    factors = [1.0]
    while float(problem.span.max()) / factors[-1] > EASY_SPAN:
        factors.append(factors[-1] * COOLING)
    return factors[::-1]


def first_stage(problem: Problem, v: Tensor, tolerance: float, most: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """``most`` sweeps, and up to EASY_SWEEPS more where they are about to arrive; as :func:`sweeps`."""
    tail = min(RATE, most)
    u, v, before, done = sweeps(problem, v, tolerance, most - tail)
    u, v, error, more = sweeps(problem, v, tolerance, tail)
    done += more
    going = error > tolerance
    shrinking = (error[going] / before[going]).log()
    if not bool(going.any()) or not bool((shrinking < 0).all()):
        return u, v, error, done
    needed = float((tail * (tolerance / error[going]).log() / shrinking).max())
    if needed <= EASY_SWEEPS:
        u, v, error, more = sweeps(problem, v, tolerance, int(1.25 * needed) + 1)  # the last modes are the slowest
        done += more
    return u, v, error, done


def descend(
    problem: Problem, v: Tensor, factors: list[float], tolerance: float, sinkhorn_iterations: int,
    newton_iterations: int, direction: Direction,
) -> tuple[Tensor, Tensor, Tensor, dict[str, int]]:  # fmt: skip
    """Both stages at one regularization after another: u, v, error and the iterations of both."""
    counts = {"sinkhorn": 0, "newton": 0}
    v = v / factors[0]
    for factor, following in zip(factors, [*factors[1:], None], strict=True):
        level = problem.scaled(factor)
        goal, most = (tolerance, sinkhorn_iterations) if following is None else (max(LOOSE, tolerance), BETWEEN)
        stage = first_stage if following is None and newton_iterations else sweeps
        u, v, error, swept = stage(level, v, goal, most)
        counts["sinkhorn"] += swept
        if bool((error > goal).any()):
            u, v, error, steps = newton(level, v, goal, newton_iterations, direction)
            counts["newton"] += steps
        if following is not None:
            v = v * (factor / following)
    return u, v, error, counts


def sinkhorn_newton(
    a: Tensor | None,
    b: Tensor | None,
    cost: Tensor,
    reg: float,
    *,
    tolerance: float = 1e-9,
    sinkhorn_iterations: int = 20,
    newton_iterations: int = 100,
    max_iterations: int = 1000,
    density: float | None = None,
    f: Tensor | None = None,
    g: Tensor | None = None,
) -> EntropicPlan:
    """Entropic optimal transport by Sinkhorn-Newton-Sparse: what :func:`sinkhorn` gives, far sooner at small ``reg``.

    Where ``cost / reg`` goes beyond 50 the problem is first solved roughly (marginal error 1e-2) at regularizations
    4 times apart from an easy one downwards; potentials given to begin with replace that. A batch of problems with
    512 columns or fewer takes dense Newton steps together; larger ones take sparse ones, one problem after another on
    the CPU. On a GPU steps are dense.

    Args:
        a: masses (..., n), not negative; None for uniform ones of total 1. A zero mass gets no plan and ``-inf``.
        b: masses (..., m) of the same total, as for :func:`sinkhorn`.
        cost: (..., n, m), any real numbers; ``inf`` forbids a pair. Leading dimensions broadcast.
        reg: the entropy's weight in the cost's unit, above 0 (eta of the paper is ``1 / reg``).
        tolerance: L1 error of the marginals, as a share of the total mass, at which to stop.
        sinkhorn_iterations: sweeps of the first stage, 20 as in the paper, and more where their rate promises to arrive
            within another 64; 2 at each rougher regularization.
        newton_iterations: Newton steps at most at each regularization.
        max_iterations: sweeps at most after Newton's steps have stalled; each such fall-back warns.
        density: share of the plan's entries in the sparsified Hessian, in (0, 1], doubled as often as it proves too
            small; 1 for dense steps. None chooses by size: dense up to 512 columns, from there 15 entries a row.
        f: potential (..., n) to begin with, in the cost's unit; ``g`` is derived from it.
        g: potential (..., m) to begin with; goes before ``f``.

    Raises:
        InputError: shapes that do not fit, negative masses, totals that differ, a mass with no allowed partner, a
            ``reg`` so small that float64 cannot hold ``cost / reg``.

    Warns:
        UnconvergedWarning: the tolerance was not reached; ``converged`` and ``marginal_error`` say where.
        FallbackWarning: Newton's steps stalled and Sinkhorn's sweeps went on.
    """
    check_number("tolerance", tolerance, above=0)
    for name, value in (
        ("sinkhorn_iterations", sinkhorn_iterations),
        ("newton_iterations", newton_iterations),
        ("max_iterations", max_iterations),
    ):
        check_number(name, value, at_least=0, integer=True)
    if density is not None:
        check_number("density", density, above=0, at_most=1)
    given = Problem.create(a, b, cost, reg)
    v = first_scaling(given, f, g)
    turned = given.b.shape[-1] > given.a.shape[-1]  # the Hessian is as large as there are columns
    problem, v = (given.turned(), row_scaling(given, v)) if turned else (given, v)
    factors = annealing(problem) if f is None and g is None else [1.0]
    limits = (factors, tolerance, sinkhorn_iterations, newton_iterations)

    dense = problem.b.shape[-1] <= DENSE_COLUMNS or problem.b.device.type != "cpu"
    if density == 1 or (density is None and dense):
        u, v, error, counts = descend(problem, v, *limits, dense_direction)
        details = {"density": [1.0] * len(v), "levels": len(factors)}
    else:
        share = min(1.0, START_ENTRIES / problem.b.shape[-1]) if density is None else density
        one = [torch.tensor([item], device=v.device) for item in range(len(v))]
        directions = [SparseDirection(share) for _ in one]
        parts = [descend(problem.pick(i), v[i], *limits, way) for i, way in zip(one, directions, strict=True)]
        u, v, error = (torch.cat(values) for values in list(zip(*parts, strict=True))[:3])
        counts = {name: max(part[3][name] for part in parts) for name in ("sinkhorn", "newton")}
        details = {"density": [way.share for way in directions], "levels": len(factors)}
        details |= {"inner": max(way.inner for way in directions), "factors": max(way.factors for way in directions)}

    if bool((error > tolerance).any()) and max_iterations > 0:
        stopped = float(error.max())
        u, v, error, swept = sweeps(problem, v, tolerance, max_iterations)
        counts["sinkhorn"] += swept
        warnings.warn(
            f"Newton's steps stalled at a marginal error of {stopped:.3g}; {swept} Sinkhorn sweeps went on from there "
            f"to {float(error.max()):.3g}",
            FallbackWarning,
            stacklevel=2,
        )
    u, v = (v, u) if turned else (u, v)
    return solution(given, u, v, error, tolerance, counts, **details)
