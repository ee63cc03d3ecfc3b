"""Whatever the masses, costs and regularization: no NaN, an honest error, and a plan with no negative mass."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genflow.errors import InputError
from genflow.transport import EntropicPlan, sinkhorn, sinkhorn_newton


@st.composite
def problems(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """Masses with zeros and tiny ones, costs of any sign and scale, tied or forbidden, and any reg that fits them."""
    n, m = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    batch = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def masses(count: int) -> torch.Tensor:
        mass = torch.rand(*batch, count, generator=rng, dtype=torch.float64) ** draw(st.sampled_from([0, 1, 50]))
        mass = mass * (torch.rand(*batch, count, generator=rng) >= draw(st.sampled_from([0.0, 0.5])))
        mass[..., 0] += mass.sum(-1) == 0
        return mass / mass.sum(-1, keepdim=True)

    cost = torch.randn(*batch, n, m, generator=rng, dtype=torch.float64)
    if draw(st.booleans()):
        cost = cost.round()
    scale = 10.0 ** draw(st.integers(-12, 12))
    cost = cost * scale
    cost[torch.rand(cost.shape, generator=rng) < draw(st.sampled_from([0.0, 0.2]))] = torch.inf
    return masses(n), masses(m), cost, scale * 10.0 ** draw(st.integers(-13, 8))


def solve(solver, a, b, cost, reg, **options) -> EntropicPlan | None:
    """The result, or None where the input was refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            return solver(a, b, cost, reg, **options)
        except InputError:
            return None


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        (sinkhorn, {"max_iterations": 200}),
        (sinkhorn_newton, {"max_iterations": 20, "newton_iterations": 20}),
        (sinkhorn_newton, {"max_iterations": 20, "newton_iterations": 20, "density": 0.05}),
    ],
    ids=["sinkhorn", "dense", "sparse"],
)
@settings(max_examples=50, deadline=None)
@given(problem=problems())
def test_never_nan_and_the_error_is_the_plans(solver, options, problem):
    a, b, cost, reg = problem
    result = solve(solver, a, b, cost, reg, **options)
    if result is None:
        return
    assert not (result.f.isnan() | result.f.isposinf()).any()
    assert not (result.g.isnan() | result.g.isposinf()).any()
    assert torch.equal(result.f.isneginf(), a == 0) or float(a[a > 0].min()) < 1e-90
    plan = result.plan
    assert not plan.isnan().any()
    assert (plan >= 0).all()
    span = float(cost[cost.isfinite()].abs().max()) / reg if cost.isfinite().any() else 0
    if span < 1e8:  # beyond, rounding of f + g - cost shows
        error = (plan.sum(-1) - a).abs().sum(-1) + (plan.sum(-2) - b).abs().sum(-1)
        torch.testing.assert_close(error, result.marginal_error, rtol=1e-4, atol=1e-13 + 1e-14 * span)
    assert torch.equal(result.converged, result.marginal_error <= 1e-9)


@settings(max_examples=40, deadline=None)
@given(problem=problems())
def test_both_solvers_find_one_plan(problem):
    a, b, cost, reg = problem
    first, second = (
        solve(solver, a, b, cost, reg, tolerance=1e-11, max_iterations=500) for solver in (sinkhorn, sinkhorn_newton)
    )
    assert (first is None) == (second is None)
    if first is not None and bool((first.converged & second.converged).all()):
        # Plans of one problem may differ where hardly any mass can tell; their costs and marginals do not.
        torch.testing.assert_close(first.plan, second.plan, rtol=0, atol=1e-5)
