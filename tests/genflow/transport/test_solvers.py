"""Both solvers against closed forms, against POT, and against themselves in other clothes."""

import math

import ot
import pytest
import torch

from genflow.errors import InputError
from genflow.evaluate.transport import make_problem
from genflow.transport import (
    FallbackWarning,
    UnconvergedWarning,
    exact_assignment,
    pairwise_cost,
    sinkhorn,
    sinkhorn_newton,
)

SOLVERS = [sinkhorn, sinkhorn_newton]
solvers = pytest.mark.parametrize("solve", SOLVERS)


def l1_error(result, a, b):
    return (result.plan.sum(-1) - a).abs().sum(-1) + (result.plan.sum(-2) - b).abs().sum(-1)


def close(first, second, tolerance=1e-10):
    """Equal, infinite entries in the same places."""
    torch.testing.assert_close(first, second, rtol=0, atol=tolerance)


@solvers
@pytest.mark.parametrize("reg", [3.0, 0.2, 0.01])
def test_two_by_two_is_a_quadratic_equation(solve, reg):
    a, b = torch.tensor([0.3, 0.7], dtype=torch.float64), torch.tensor([0.6, 0.4], dtype=torch.float64)
    cost = torch.tensor([[0.0, 1.1], [0.4, 0.2]], dtype=torch.float64)
    plan = solve(a, b, cost, reg, tolerance=1e-13).plan
    # P11 P22 / (P12 P21) is fixed by the cost; one unknown is left by the marginals. Cross-multiplied, with s its
    # inverse: s x (1 - a - b + x) = (a - x) (b - x).
    s = math.exp((cost[0, 0] + cost[1, 1] - cost[0, 1] - cost[1, 0]) / reg)
    first, second = float(a[0]), float(b[0])
    p, q, r = s - 1, s * (1 - first - second) + first + second, -first * second
    x = 2 * -r / (q + math.sqrt(q * q - 4 * p * r))
    assert float(plan[0, 0]) == pytest.approx(x, abs=1e-11)


@solvers
def test_gaussians_on_a_line_have_the_known_covariance(solve):
    # The plan of N(0, s^2) and N(0, t^2) is Gaussian with precision -2 / reg off the diagonal, so its covariance c
    # solves c reg = 2 (s^2 t^2 - c^2). Sums over a fine grid are exact for Gaussians.
    s, t, reg = 1.0, 0.6, 0.5
    x, y = torch.linspace(-8, 8, 161, dtype=torch.float64), torch.linspace(-5, 5, 141, dtype=torch.float64)
    a, b = (torch.exp(-(grid**2) / (2 * std**2)) for grid, std in ((x, s), (y, t)))
    a, b = a / a.sum(), b / b.sum()
    plan = solve(a, b, pairwise_cost(x[:, None], y[:, None]), reg, tolerance=1e-12).plan
    covariance = float(x @ plan @ y)
    assert covariance == pytest.approx((math.sqrt(reg**2 + 16 * s**2 * t**2) - reg) / 4, abs=1e-8)


@solvers
def test_a_huge_regularization_gives_the_independent_plan(solve, random_problem):
    a, b, cost = random_problem(9, 7)
    close(solve(a, b, cost, 1e9, tolerance=1e-12).plan, a[:, None] * b, 1e-9)


def test_a_tiny_regularization_gives_the_best_assignment():
    _, _, cost = make_problem("random", 60)
    result = sinkhorn_newton(None, None, cost, 1e-5)
    assert result.converged
    close(result.plan.argmax(-1), exact_assignment(cost), 0)
    exact = float(cost.gather(-1, exact_assignment(cost).unsqueeze(-1)).mean())
    assert exact - 1e-9 <= float(result.value) <= exact + 1e-5 * math.log(60)


@solvers
def test_potentials_and_plan_are_those_of_pot(solve, paper_problem):
    a, b, cost = paper_problem
    reg = 1 / 40
    rows, columns = a > 0, b > 0  # POT divides by masses of zero
    inner = (a[rows], b[columns], cost[rows][:, columns])
    plan, log = ot.sinkhorn(
        *(value.numpy() for value in inner),
        reg,
        method="sinkhorn_log",
        stopThr=1e-15,
        numItermax=4000,
        log=True,
        warn=False,
    )
    result = solve(a, b, cost, reg, tolerance=1e-12)
    assert float(result.marginal_error) <= 1e-12
    assert float(l1_error(result, a, b)) <= 3e-12
    f, g = (reg * torch.from_numpy(log[name]) for name in ("log_u", "log_v"))
    close(result.f[rows], f + g.mean(), 1e-8)
    close(result.g[columns], g - g.mean(), 1e-8)
    close(result.plan[rows][:, columns], torch.from_numpy(plan), 1e-11)


def test_small_regularizations_reach_1e_12_in_few_steps(paper_problem):
    a, b, cost = paper_problem
    result = sinkhorn_newton(a, b, cost, 1 / 1200, tolerance=1e-12)
    assert result.converged
    assert float(l1_error(result, a, b)) <= 3e-12
    assert result.iterations["sinkhorn"] <= 30
    assert result.iterations["newton"] <= 30


def test_newton_takes_tens_where_sinkhorn_takes_thousands(kind):
    a, b, cost = make_problem(kind, 100)
    with pytest.warns(UnconvergedWarning, match="marginal error"):
        slow = sinkhorn(a, b, cost, 1 / 20_000, max_iterations=3000)
    assert slow.iterations == {"sinkhorn": 3000, "newton": 0}
    assert not slow.converged
    assert sum(sinkhorn_newton(a, b, cost, 1 / 20_000).iterations.values()) < 80


@solvers
def test_a_constant_in_the_cost_moves_only_f(solve, random_problem):
    a, b, cost = random_problem(12, 10)
    plain, moved = (solve(a, b, cost + shift, 0.05, tolerance=1e-12) for shift in (0.0, 7.0))
    close(moved.f, plain.f + 7)
    close(moved.g, plain.g)
    assert float(plain.g.mean()) == pytest.approx(0, abs=1e-12)


@solvers
def test_the_unit_of_cost_and_mass_carries_over(solve, random_problem):
    a, b, cost = random_problem(12, 10)
    plain = solve(a, b, cost, 0.05, tolerance=1e-12)
    scaled = solve(3 * a, 3 * b, 1e6 * cost, 0.05e6, tolerance=1e-12)
    close(scaled.plan, 3 * plain.plan)
    close(scaled.g / 1e6, plain.g)
    close(scaled.value / 3e6, plain.value)


@solvers
def test_order_does_not_matter(solve, random_problem):
    a, b, cost = random_problem(12, 10)
    plain = solve(a, b, cost, 0.02, tolerance=1e-12)
    rows, columns = torch.randperm(12), torch.randperm(10)
    mixed = solve(a[rows], b[columns], cost[rows][:, columns], 0.02, tolerance=1e-12)
    close(mixed.f, plain.f[rows])
    close(mixed.plan, plain.plan[rows][:, columns])


@solvers
def test_roles_may_be_exchanged(solve, random_problem):
    a, b, cost = random_problem(12, 10)
    plain, turned = (solve(*args, 0.02, tolerance=1e-12) for args in ((a, b, cost), (b, a, cost.mT)))
    close(turned.plan.mT, plain.plan)
    close(turned.g, plain.f - plain.f.mean())


@solvers
def test_a_batch_is_a_loop(solve, random_problem):
    a, b, cost = random_problem(14, 11, (2, 3))
    cost = cost * torch.tensor([1.0, 0.1, 3.0], dtype=torch.float64)[:, None, None]
    batch = solve(a, b, cost, 0.02, tolerance=1e-12)
    assert batch.f.shape == (2, 3, 14)
    assert batch.converged.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            one = solve(a[i, j], b[i, j], cost[i, j], 0.02, tolerance=1e-12)
            close(batch.f[i, j], one.f)
            close(batch.plan[i, j], one.plan)


@solvers
def test_masses_broadcast_over_a_batch_of_costs(solve, random_problem):
    a, _, cost = random_problem(8, 8, (3,))
    batch = solve(a[0], None, cost, 0.1, tolerance=1e-12)
    close(batch.plan[2], solve(a[0], torch.full((8,), 1 / 8), cost[2], 0.1, tolerance=1e-12).plan)


@solvers
@pytest.mark.parametrize("reg", [1.0, 0.01])
def test_zero_masses_are_as_if_left_out(solve, reg, random_problem):
    a, b, cost = random_problem(14, 12)
    a[:4], b[9:] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    whole = solve(a, b, cost, reg, tolerance=1e-12)
    part = solve(a[4:], b[:9], cost[4:, :9], reg, tolerance=1e-12)
    assert whole.f[:4].isneginf().all()
    assert whole.g[9:].isneginf().all()
    close(whole.f[4:], part.f)
    close(whole.plan[4:, :9], part.plan)
    assert float(whole.plan.sum()) == pytest.approx(1)


@solvers
def test_forbidden_pairs_get_nothing(solve, random_problem):
    a, _, cost = random_problem(16, 16)
    cost[torch.rand(16, 16) < 0.5] = torch.inf
    cost.fill_diagonal_(1.0)
    result = solve(a, a, cost, 0.05, tolerance=1e-12)
    assert result.converged
    assert (result.plan[cost.isinf()] == 0).all()
    large = solve(a, a, cost.nan_to_num(posinf=100.0), 0.05, tolerance=1e-12)
    close(result.plan, large.plan)
    close(result.value, large.value)


@solvers
def test_masses_that_cannot_be_matched_end_in_a_warning(solve):
    cost = torch.tensor([[0.0, torch.inf, torch.inf], [0.0, torch.inf, torch.inf], [0.0, 0.0, 0.0]])
    with pytest.warns((UnconvergedWarning, FallbackWarning)) as told:
        result = solve(None, None, cost, 0.1, max_iterations=200)
    assert "can be matched" in str(told[-1].message)
    assert not result.converged
    assert float(result.marginal_error) > 0.3
    assert not result.plan.isnan().any()


@solvers
@pytest.mark.parametrize("side", ["f", "g"])
def test_potentials_to_begin_with_save_the_work(solve, side, random_problem):
    a, b, cost = random_problem(12, 10)
    a[0] = 0
    a = a / a.sum()
    done = solve(a, b, cost, 0.02, tolerance=1e-12)
    again = solve(a, b, cost, 0.02, tolerance=1e-9, **{side: getattr(done, side)})
    assert sum(again.iterations.values()) <= 1
    close(again.f, done.f)


@solvers
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_other_dtypes_come_back_in_float64(solve, dtype):
    cost = (torch.rand(6, 5) * 4).to(dtype)
    result = solve(None, None, cost, 0.5)
    assert result.f.dtype == result.plan.dtype == torch.float64
    close(result.plan, solve(None, None, cost.double(), 0.5).plan)
    if dtype == torch.float32:  # a softmax in float32 has a total of 1 to its own rounding
        a, b = torch.rand(6).softmax(0), torch.rand(5).softmax(0)
        assert solve(a, b, cost, 0.5).converged


@solvers
def test_arrays_are_taken_and_no_graph_is_kept(solve):
    cost = torch.rand(6, 5, dtype=torch.float64)
    close(solve(None, None, cost.numpy(), 0.5).plan, solve(None, None, cost.requires_grad_(), 0.5).plan)


def test_without_newton_steps_sinkhorn_goes_on_and_says_so(random_problem):
    a, b, cost = random_problem(12, 10)
    with pytest.warns(FallbackWarning, match="Sinkhorn sweeps went on"):
        result = sinkhorn_newton(a, b, cost, 0.05, newton_iterations=0)
    assert result.converged
    assert result.iterations["newton"] == 0
    close(result.plan, sinkhorn(a, b, cost, 0.05).plan, 1e-8)


HALF = torch.full((2,), 0.5, dtype=torch.float64)
COST = torch.eye(2, dtype=torch.float64)


@solvers
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": torch.ones(2)}, "a, b: got totals 2 and 1"),
        ({"a": HALF * (1 + 1e-7)}, "equal totals"),
        ({"a": torch.ones(3) / 3}, r"a: got shape \(3,\); allowed: \(..., 2\)"),
        ({"a": torch.tensor([1.5, -0.5])}, "a: got a negative"),
        ({"a": torch.zeros(2), "b": torch.zeros(2)}, "all zero"),
        ({"a": HALF * torch.nan}, "a: got a negative, infinite or NaN mass"),
        ({"b": torch.rand(3, 2).softmax(-1), "cost": torch.rand(4, 2, 2)}, "broadcast together"),
        ({"cost": COST * torch.nan}, "cost: got NaN or -inf"),
        ({"cost": -torch.inf * torch.ones(2, 2)}, "cost: got NaN or -inf"),
        ({"cost": torch.ones(2)}, r"cost: got shape \(2,\)"),
        ({"cost": COST.to(torch.complex64)}, "cost: got torch.complex64"),
        ({"cost": "near"}, "cost: got str"),
        ({"cost": torch.tensor([[0.0, 1.0], [torch.inf, torch.inf]])}, r"infinite for every partner of a\[1\]"),
        ({"cost": torch.tensor([[0.0, torch.inf], [1.0, torch.inf]])}, r"infinite for every partner of b\[1\]"),
        ({"reg": 0.0}, "reg: got 0.0; allowed: a finite number > 0"),
        ({"reg": math.inf}, "reg: got inf"),
        ({"reg": 1e-20}, "reg: got 1e-20; allowed: at least 1e-12"),
        ({"tolerance": 0.0}, "tolerance: got 0.0"),
        ({"max_iterations": -1}, "max_iterations: got -1"),
        ({"g": torch.zeros(3)}, r"g: got shape \(3,\)"),
        ({"f": torch.tensor([0.0, torch.inf])}, "f: got NaN or inf"),
    ],
)
def test_bad_input_is_refused_by_name(solve, change, message):
    with pytest.raises(InputError, match=message):
        solve(**{"a": HALF, "b": HALF, "cost": COST, "reg": 1.0, **change})


def test_a_density_outside_its_range_is_refused():
    with pytest.raises(InputError, match="density: got 0"):
        sinkhorn_newton(HALF, HALF, COST, 1.0, density=0.0)
