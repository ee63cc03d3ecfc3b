"""The weights of multistep rules against published fractions, exact integrals and each other."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from genflow.solvers.coefficients import decay_moments, matched, midpoint, published, step_moments

F = Fraction

ADAMS_BASHFORTH = {
    1: [F(1)],
    2: [F(3, 2), F(-1, 2)],
    3: [F(23, 12), F(-16, 12), F(5, 12)],
    4: [F(55, 24), F(-59, 24), F(37, 24), F(-9, 24)],
    5: [F(1901, 720), F(-2774, 720), F(2616, 720), F(-1274, 720), F(251, 720)],
}


def paper(k: int, b: F) -> list[F]:
    """GHVB's weights of v_n, v_{n-1}, ... as the paper's table prints them, one line a k."""
    if k == 1:
        return [F(1)]
    if k == 2:
        return [w / (2 * b) for w in (2 + b, -(2 - b))]
    if k == 3:
        return [w / (12 * b) for w in (18 + 5 * b, -(24 - 8 * b), 6 - b)]
    if k == 4:
        return [w / (24 * b) for w in (46 + 9 * b, -(78 - 19 * b), 42 - 5 * b, -(10 - b))]
    return [
        w / (720 * b)
        for w in (
            1650 + 251 * b,
            -(3420 - 646 * b),
            2880 - 264 * b,
            -(1380 - 106 * b),
            270 - 19 * b,
        )
    ]


def history_weights(combination: list[F], b: F) -> list[F]:
    """The same rule for (y_n, ..., y_{n-k+2}, v_{n-k+1}): every v is written out by its own recursion."""
    k = len(combination)
    result = [F(0)] * k
    for j, weight in enumerate(combination):  # v_{n-j} = sum_i b (1-b)^(i-j) y_{n-i} + (1-b)^(k-1-j) v_{n-k+1}
        for i in range(j, k - 1):
            result[i] += weight * b * (1 - b) ** (i - j)
        result[k - 1] += weight * (1 - b) ** (k - 1 - j)
    return result


@pytest.mark.parametrize("k", range(1, 6))
@pytest.mark.parametrize("b", [F(1), F(7, 10), F(1, 3), F(1, 50)])
def test_published_weights_are_the_papers_five_sets(k: int, b: F) -> None:
    assert sum(paper(k, b)) == 1
    expected = [float(w) for w in history_weights(paper(k, b), b)]
    np.testing.assert_allclose(published(k, float(b)), expected, rtol=1e-12, atol=1e-12)
    if b == 1:
        assert paper(k, b) == ADAMS_BASHFORTH[k]


def test_published_weights_stay_bounded_as_beta_falls() -> None:
    """GHVB of order k - 1 + beta goes to Adams-Bashforth of order k - 1 on the newest slopes and the first."""
    for k in range(2, 6):
        assert np.abs(published(k, 1e-9)).max() < 20
        np.testing.assert_allclose(published(k, 1 - 1e-9), published(k), atol=1e-7)


@given(
    steps=st.lists(st.floats(0.2, 5.0), min_size=6, max_size=6),
    order=st.integers(1, 5),
    beta=st.floats(0.05, 1.0),
    growth=st.sampled_from([0.0, 1.0]),
    falling=st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_matched_weights_integrate_polynomials(
    steps: list, order: int, beta: float, growth: float, falling: bool
) -> None:
    """By definition: the filtered history of q^p gives the mean of q^p over the step, under its weight."""
    nodes = np.cumsum([0.0, *steps]) * (-1 if falling and not growth else 1) + 2.0
    past, step = nodes[:-1], nodes[-1] - nodes[-2]
    n = len(past) - 1
    tail = decay_moments(past, beta, order)[n - order + 1]
    weights = matched(past[n - order + 1 :][::-1], tail, step, step_moments(order, growth * step))
    for power in range(order):
        values = (past - past[-1]) ** power
        v = values[0]
        for m in range(1, n - order + 2):
            v = (1 - beta) * v + beta * values[m]
        history = [*values[n - order + 2 :][::-1], v]
        weight = lambda tau: np.exp(growth * step * (tau - 1))  # noqa: E731
        exact = quad(lambda tau: (tau * step) ** power * weight(tau), 0, 1, epsabs=1e-13)[0]  # noqa: B023
        exact /= quad(weight, 0, 1, epsabs=1e-13)[0]
        size = np.abs(weights * history).max() + abs(exact) + 1
        assert np.dot(weights, history) == pytest.approx(exact, abs=1e-9 * size)


@given(growth=st.floats(0.0, 30.0))
@settings(deadline=None, max_examples=40)
def test_step_moments(growth: float) -> None:
    expected = [quad(lambda x, p=p: x**p * np.exp(growth * (x - 1)), 0, 1, epsabs=1e-14)[0] for p in range(5)]
    np.testing.assert_allclose(step_moments(5, growth), np.array(expected) / expected[0], rtol=1e-11)


@pytest.mark.parametrize("order", range(1, 6))
@pytest.mark.parametrize("beta", [1.0, 0.7, 0.4])
def test_matched_becomes_published_on_a_long_uniform_grid(order: int, beta: float) -> None:
    nodes = np.arange(80.0)
    tail = decay_moments(nodes, beta, order)[79 - order + 1]
    weights = matched(nodes[::-1][:order], tail, 1.0, step_moments(order))
    np.testing.assert_allclose(weights, published(order, beta), rtol=1e-9, atol=1e-9)
    tail = decay_moments(nodes[:5], beta, order)[5 - order]
    early = matched(nodes[:5][::-1][:order], tail, 1.0, step_moments(order))
    settled = beta == 1 or order == 1
    assert np.allclose(early, published(order, beta), atol=1e-3) == settled  # a young mean is another one


def test_midpoint_is_dpm_solver_pp() -> None:
    """2M takes 1 + 1/(2 r) and -1/(2 r); 3M falls short of the exact integral by half the second difference."""
    weights = midpoint(np.array([3.0, 2.0]), 0.5, step_moments(3, 0.5))
    np.testing.assert_allclose(weights, [1.25, -0.25])
    nodes, step = np.array([3.0, 2.2, 1.0]), 0.7
    moments = step_moments(3, step)
    exact = matched(nodes, np.eye(3)[0], step, moments)
    second = step**2 * np.array([1 / (0.8 * 2.0), -1 / (0.8 * 1.2), 1 / (1.2 * 2.0)])
    np.testing.assert_allclose(exact - midpoint(nodes, step, moments), moments[2] / 2 * second, rtol=1e-12)
