"""Weights of multistep rules: how a short history of slopes makes the mean slope over the coming step.

All functions work in float64 on the host. A history is ``(y_n, y_{n-1}, ..., tail)``, newest first. Without momentum
the tail is the oldest slope itself; with momentum beta it is the decaying mean of that slope and all before it,
``v_m = (1 - beta) v_{m-1} + beta y_m`` with ``v = y`` at the first. A rule in terms of v_n, v_{n-1}, ... is the same
rule in terms of this history, and its weights stay bounded as beta falls to 0.
"""

from math import comb

import numpy as np

__all__ = ["ADAMS", "corrected", "decay_moments", "matched", "midpoint", "published", "step_moments"]

ADAMS = (1.0, 1 / 2, 5 / 12, 3 / 8, 251 / 720)
"""Weights of the backward differences in Adams-Bashforth's rule on a uniform grid; the orders 1 to 5."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)  # made once: that takes longer than a whole schedule's use
_NODES = (_NODES + 1) / 2


def published(order: int, beta: float = 1.0) -> np.ndarray:
    """GHVB's weights on a uniform grid, ``(order,)``; Adams-Bashforth's with ``beta = 1``.

    ``U = sum_{j<k} [gamma_j + ((1 - beta) / beta) gamma_{j-1}] nabla^j v_n`` (Wizadwongsa et al. 2024, table 1, in one
    formula), rewritten for the history ``(y_n, ..., y_{n-k+2}, v_{n-k+1})``. ``nabla v_n = beta (y_n - v_{n-1})``
    takes the division by beta away.
    """
    differences = [beta * ADAMS[j] + ((1 - beta) * ADAMS[j - 1] if j else 0.0) for j in range(order)]
    # beta times the weight of v_{n-j}
    scaled = [sum((-1) ** j * comb(m, j) * differences[m] for m in range(j, order)) for j in range(order)]
    if beta == 1:
        return np.array(scaled)
    decay = 1 - beta
    weights = [sum(scaled[j] * decay ** (i - j) for j in range(i + 1)) for i in range(order - 1)]
    return np.array([*weights, 1 - sum(weights)])


def step_moments(count: int, growth: float = 0.0) -> np.ndarray:
    """``(count,)`` means of ``tau^p`` over [0, 1] under the weight ``exp(growth tau)``, ``growth`` >= 0 and finite.

    With growth 0 they are 1 / (p + 1).
    """
    powers = np.arange(count)
    if growth == 0:
        return 1.0 / (powers + 1)
    if growth < 1:  # the recursion below would cancel
        values = _NODES ** powers[:, None] @ (_WEIGHTS * np.exp(growth * _NODES))
        return values / values[0]
    values = [-np.expm1(-growth) / growth]
    for p in range(1, count):
        values.append((1 - p * values[-1]) / growth)
    return np.array(values) / values[0]


def decay_moments(nodes: np.ndarray, beta: float, count: int) -> np.ndarray:
    """``(len(nodes), count)``: row m holds the decaying means at m of ``(q - nodes[m])^p``.

    The filter of the slopes, run on the monomials of the integration variable. Terms of one power have one sign, so
    nothing cancels.
    """
    rows = np.zeros((len(nodes), count))
    rows[:, 0] = 1.0
    for m in range(1, len(nodes)):
        rows[m, 1:] = (1 - beta) * _shift(rows[m - 1], nodes[m - 1] - nodes[m])[1:]
    return rows


def _shift(moments: np.ndarray, offset: float) -> np.ndarray:
    """Means of ``(q + offset)^p`` from those of ``q^p``."""
    count = len(moments)
    return np.array([sum(comb(p, i) * offset ** (p - i) * moments[i] for i in range(p + 1)) for p in range(count)])


def matched(nodes: np.ndarray, tail: np.ndarray, step: float, moments: np.ndarray) -> np.ndarray:
    """Weights that integrate every polynomial below degree k exactly over the coming step, ``(k,)``.

    Args:
        nodes: the integration variable at the k slopes, newest first; the tail's is where its mean ends.
        tail: ``decay_moments`` of the tail, k of them.
        step: the length of the coming step, in the same variable.
        moments: ``step_moments`` of it, k of them.
    """
    order = len(nodes)
    powers = np.arange(order)
    system = ((nodes - nodes[0]) / step)[None, :] ** powers[:, None]
    system[:, -1] = _shift(tail / float(step) ** powers, (nodes[-1] - nodes[0]) / step)
    size = np.abs(system).max(axis=1)  # far nodes make the rows differ by many powers of ten
    return np.linalg.solve(system / size[:, None], moments / size)


def corrected(nodes: np.ndarray, step: float, moments: np.ndarray) -> np.ndarray:
    """Adams-Moulton's weights: as :func:`matched`, for the step that ends at ``nodes[0]``, ``(k,)``.

    Args:
        nodes: the integration variable at k >= 2 slopes, newest first; the step runs from ``nodes[1]`` to ``nodes[0]``.
        step: its length.
        moments: ``step_moments`` of it, k of them.
    """
    powers = np.arange(len(nodes))
    system = ((nodes - nodes[1]) / step)[None, :] ** powers[:, None]
    size = np.abs(system).max(axis=1)
    return np.linalg.solve(system / size[:, None], moments / size)


def midpoint(nodes: np.ndarray, step: float, moments: np.ndarray) -> np.ndarray:
    """DPM-Solver++'s multistep weights (Lu et al. 2022b, algorithm 2 and its third-order extension), ``(1 to 3,)``.

    ``nodes`` is log(alpha/sigma), newest first. The second order takes the slope at the midpoint instead of the exact
    integral. The third order, as published and in every port, has half the exact weight on the second difference,
    which leaves it a rule of second order.
    """
    order = len(nodes)
    if order == 1:
        return np.ones(1)
    first = np.zeros(order)  # the slope between the two newest, for a unit step
    first[:2] = np.array([1.0, -1.0]) * step / (nodes[0] - nodes[1])
    weights = np.eye(order)[0]
    if order == 2:
        return weights + first / 2
    older = np.array([0.0, 1.0, -1.0]) * step / (nodes[1] - nodes[2])
    second = (first - older) * step / (nodes[0] - nodes[2])
    slope = first + second * (nodes[0] - nodes[1]) / step
    return weights + moments[1] * slope + moments[2] / 2 * second
