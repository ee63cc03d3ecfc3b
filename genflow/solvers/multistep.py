"""The one kernel of every multistep rule: ``x' = a x + sum_j w_j y_j`` over a short history of one slope y.

A rule is a frame (what y is and how it is integrated), a depth (how many slopes), a momentum and a choice of
coefficients. In the epsilon and the velocity frame y is a polynomial in the frame's clock; in the denoised frame, as
in DPM-Solver++, it is a polynomial in log(alpha/sigma), integrated with the exact exponential weight.

Momentum stands in one of two places. *Before* the combination (GHVB) the slopes are averaged, which needs no more than
a decaying mean as the last entry of the history (:mod:`genflow.solvers.coefficients`). *After* it (HB) the combined
slope of the step is averaged.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genflow.errors import check_choice
from genflow.prediction import Prediction
from genflow.solvers import coefficients as rules
from genflow.solvers.base import Solver, combine
from genflow.solvers.frames import FRAMES, choose_frame
from genflow.solvers.runge_kutta import HEUN2, RK4, Stage, advance_stage, stages

__all__ = ["COEFFICIENTS", "STARTUPS", "Multistep", "Row"]

COEFFICIENTS = ("published", "matched")
STARTUPS = {"multistep": None, "heun": HEUN2, "rk4": RK4}


class Row(NamedTuple):
    """One step: ``a x + b U`` with ``U = sum_j weights[j] history[j]``, or the slope ``kind`` itself (weights None)."""

    a: float
    b: float
    weights: tuple[float, ...] | None
    kind: str


class Multistep(Solver):
    """The kernel. Subclasses say the depth, the momentum and the published weights.

    One evaluation a step, but for the steps of a Runge-Kutta start. Before the history is long enough a rule of lower
    order stands in. From pure noise, where the clock is infinite, and to ``t = 0`` the step is first order (DDIM); it
    is the same in every frame and ends in the predicted data itself. An evaluation out of turn, such as the first of
    an image-to-image run, starts a new history there.

    Args:
        frame: ``epsilon``, ``velocity`` or ``denoised`` (see :mod:`genflow.solvers.frames`), or ``auto``.
        coefficients: ``published``, the paper's, or ``matched``, exact on any grid for polynomials below the depth.
        startup: how the first steps are made while the history fills: ``multistep``, by lower orders; ``heun`` or
            ``rk4``, by that rule, with 2 or 4 evaluations a step, so that the start does not limit the order.
    """

    option_names: tuple[str, ...] = ("frame", "coefficients", "startup")

    depth: int
    history_beta: float = 1.0  # momentum before the combination
    output_beta: float = 1.0  # and after it
    nesterov: bool = False
    least_momentum: int = 1  # steps of a lower order than this leave the momentum after the combination alone
    final_lower = True
    keep_noise = False
    tail_lower = False

    def __init__(self, frame: str, coefficients: str, startup: str) -> None:
        self.frame = check_choice("frame", frame, ("auto", *FRAMES))
        self.coefficients = check_choice("coefficients", coefficients, COEFFICIENTS)
        self.startup = check_choice("startup", startup, STARTUPS)

    def published(self, nodes: np.ndarray, step: float, moments: np.ndarray) -> np.ndarray:
        """The published weights for slopes at ``nodes``, newest first; a rule for uniform grids ignores where."""
        return rules.published(len(nodes), self.history_beta)

    def _prepare(self) -> None:
        path, times = self.path, self.times
        frame = choose_frame(self.frame, path)
        start, end = times[:-1], times[1:]
        with np.errstate(divide="ignore"):
            clock = frame.clock(path, times)
            self._nodes = np.log(clock) if frame.name == "denoised" else clock
        self._kind, self._log = frame.kind, frame.name == "denoised"
        self._weights = frame.weights(path, start, end)
        self._first = 0 if np.isfinite(self._nodes[0]) else 1  # the first slope with a place on the clock
        self._orders = self._limit_orders(len(start))
        self._plan(frame, start.tolist(), end.tolist())
        self._tables: dict[int, list[Row]] = {}
        self._tails = None
        if self.coefficients == "matched" and self.history_beta < 1:
            self._tails = rules.decay_moments(self._nodes[self._first : -1], self.history_beta, self.depth)
        self._restart(0)

    def _limit_orders(self, steps: int) -> np.ndarray:
        """The highest order of every step."""
        orders = np.full(steps, self.depth)
        if self.tail_lower:
            orders = np.minimum(orders, np.arange(steps, 0, -1))
        if self.times[-1] == 0 and (self._log or self.final_lower):
            orders[-1] = 0  # the slope itself, without momentum
        return orders

    def _plan(self, frame, start, end) -> None:
        """Where the network is asked, and the stages of a Runge-Kutta start."""
        tableau = STARTUPS[self.startup]
        self._stages: dict[int, list[Stage]] = {}
        evaluations, owners, self._opens = [], [], []
        for n, (t, t_next) in enumerate(zip(start, end, strict=True)):
            times = [t]
            if tableau and n < self._first + self.depth - 1 and t_next > 0:
                times, self._stages[n] = stages(
                    tableau, FRAMES["velocity"] if n < self._first else frame, self.path, t, t_next
                )
            self._opens.append(len(evaluations))
            evaluations.extend(times)
            owners.extend([n] * len(times))
        self.evaluations, self.step_of = np.array(evaluations), np.array(owners)

    def _restart(self, i: int) -> None:
        """Forget everything; evaluation ``i`` comes next."""
        self._expected = i
        self._history: list[Tensor] = []
        self._momentum: Tensor | None = None
        self._slopes: list[Tensor] | None = None
        n = int(self.step_of[i])
        begin = n if self._opens[n] == i else n + 1
        if begin not in self._tables:
            self._tables[begin] = [self._row(m, begin) for m in range(begin, len(self.times) - 1)]
        self._begin, self._rows = begin, self._tables[begin]

    def _row(self, n: int, begin: int) -> Row:
        """The scalars of step ``n`` in a run that began with step ``begin``."""
        first = max(begin, 0 if self.keep_noise else self._first)
        order = min(self.depth, n - first + 1, int(self._orders[n]))
        if n < self._first:
            frame = FRAMES["denoised" if self._log else "velocity"]
            a, b = frame.weights(self.path, self.times[n], self.times[n + 1])
            return Row(float(a), float(b), None, frame.kind)
        a, b = (float(w[n]) for w in self._weights)
        if order < 1:
            return Row(a, b, None, self._kind)
        entries = min(self.depth, n - first + 1)
        nodes = self._nodes[n::-1][:order]
        step = float(self._nodes[n + 1] - self._nodes[n])
        moments = rules.step_moments(max(order, 3), step if self._log else 0.0)
        if self.coefficients == "published":
            weights = self.published(nodes, step, moments)
        else:
            weights = rules.matched(nodes, self._tail(n - order + 1, first, order), step, moments[:order])
        weights = rules.expand_tail(weights, self.history_beta, entries)
        return Row(a, b, tuple(weights.tolist()), self._kind)

    def _tail(self, m: int, first: int, order: int) -> np.ndarray:
        if self._tails is None:
            return np.eye(order)[0]
        if first == self._first:
            return self._tails[m - first, :order]
        return rules.decay_moments(self._nodes[first : m + 1], self.history_beta, order)[-1]

    def _step(self, x: Tensor, prediction: Prediction, i: int, noise: Tensor | None) -> Tensor:
        if i != self._expected:
            self._restart(i)
        self._expected = i + 1
        n = int(self.step_of[i])
        stage = i - self._opens[n]
        if stage == 0 and (n >= self._first or self.keep_noise):
            self._remember(prediction.to(self._kind))
        if n not in self._stages:
            return self._advance(x, prediction, self._rows[n - self._begin])
        if stage == 0:
            self._x, self._slopes = x, []
        if self._slopes is None:  # begun inside a start-up step
            a, b = FRAMES["denoised"].weights(self.path, self.evaluations[i], self.evaluations[i + 1])
            return combine(float(a), x, float(b), prediction.x0)
        plan = self._stages[n][stage]
        self._slopes.append(prediction.to(plan.kind))
        return advance_stage(plan, self._x, self._slopes)

    def _remember(self, slope: Tensor) -> None:
        history = self._history
        history.insert(0, slope)
        if len(history) > self.depth:
            oldest, last = history.pop(), history.pop()
            history.append(last if self.history_beta == 1 else torch.lerp(oldest, last, self.history_beta))

    def _advance(self, x: Tensor, prediction: Prediction, row: Row) -> Tensor:
        if row.weights is None:
            return combine(row.a, x, row.b, prediction.to(row.kind))
        order = len(row.weights)
        if self.output_beta == 1 or order < self.least_momentum:
            return _sum(row.a, x, [row.b * weight for weight in row.weights], self._history)
        slope = _sum(0.0, x, row.weights, self._history)
        if self._momentum is None:
            self._momentum = slope
        else:
            self._momentum = torch.lerp(self._momentum, slope, self.output_beta)
            slope = torch.lerp(self._momentum, slope, self.output_beta) if self.nesterov else self._momentum
        return combine(row.a, x, row.b, slope)


def _sum(a: float, x: Tensor, weights: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    """``a x + sum_j weights[j] terms[j]``; a term of weight 0 is left out."""
    pairs = [(w, y) for w, y in zip([a, *weights], [x, *terms], strict=True) if w != 0]
    weight, y = pairs[0]
    result = y * weight
    for weight, y in pairs[1:]:
        result.add_(y, alpha=weight)
    return result
