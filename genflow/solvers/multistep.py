"""The one kernel of every multistep rule: ``x' = a x + sum_j w_j y_j`` over a short history of one slope y.

A rule is a frame (what y is and how it is integrated), a depth (how many slopes), a momentum and a choice of
coefficients. In the epsilon and the velocity frame y is a polynomial in the frame's clock; in the denoised frame, as
in DPM-Solver++, it is a polynomial in log(alpha/sigma), integrated with the exact exponential weight.

Momentum stands in one of two places. *Before* the combination (GHVB) the slopes are averaged, which needs no more than
a decaying mean as the last entry of the history (:mod:`genflow.solvers.coefficients`). *After* it (HB) the combined
slope of the step is averaged.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genflow.errors import check_choice
from genflow.prediction import Prediction
from genflow.solvers import coefficients as rules
from genflow.solvers.base import Solver, combine
from genflow.solvers.frames import FRAMES, Frame, near_noise
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

    One evaluation a step, but for the steps of a Runge-Kutta start. While the history is short a rule of lower order
    stands in. Two steps may be outside a frame's clock, and are first order, the same step in every frame: from pure
    noise (or nearly, in the epsilon frame), where the epsilon and the denoised frame have none, and to ``t = 0`` in
    the denoised frame, which gives the predicted data itself. To ``t = 0`` the other frames keep their order: on
    analytic data and on the shipped model that ended closer to the ODE's solution than a first-order step nearly
    everywhere. A slope at pure noise has no place on such a clock, so that matched coefficients leave it out;
    published ones, which know no clock, count it.

    An evaluation out of turn, such as the first of an image-to-image run, starts a new history there. Beginning inside
    a Runge-Kutta step goes on by first-order steps to its end.

    Args:
        frame: ``epsilon``, ``velocity`` or ``denoised`` (see :mod:`genflow.solvers.frames`), or ``auto``.
        coefficients: ``published``, the paper's, or ``matched``, exact on any grid for polynomials below the depth.
        startup: how the first steps are made while the history fills: ``multistep``, by lower orders; ``heun`` or
            ``rk4``, by that rule, with 2 or 4 evaluations a step, so that the start does not limit the order.
    """

    option_names: tuple[str, ...] = ("frame", "coefficients", "startup")

    depth: int
    rule: str = "ab"  # whose published weights: ab or dpm++
    history_beta: float = 1.0  # momentum before the combination
    output_beta: float = 1.0  # and after it
    nesterov: bool = False
    least_momentum: int = 1  # steps of fewer slopes than this leave the momentum after the combination alone
    corrector: bool = False  # correct a step once the slope at its end is known

    def __init__(self, frame: str, coefficients: str, startup: str) -> None:
        self.frame = check_choice("frame", frame, ("auto", *FRAMES))
        self.coefficients = check_choice("coefficients", coefficients, COEFFICIENTS)
        self.startup = check_choice("startup", startup, STARTUPS)

    def _prepare(self) -> None:
        auto = "denoised" if self.rule == "dpm++" else "velocity"
        frame = FRAMES[auto if self.frame == "auto" else self.frame]
        with np.errstate(divide="ignore"):
            clock = frame.clock(self.path, self.times)
            self._nodes = np.log(clock) if frame.name == "denoised" else clock
        self._log = frame.name == "denoised"
        self._kind = frame.kind
        self._weights = frame.weights(self.path, self.times[:-1], self.times[1:])
        outside = frame.name == "epsilon" and near_noise(self.path, float(self.times[0]))
        self._first = int(outside or not np.isfinite(self._nodes[0]))  # the first step that the clock knows
        self._counted = 0 if self.coefficients == "published" else self._first  # the first slope in the history
        self._tails: np.ndarray | None = None
        if self.coefficients == "matched" and self.history_beta < 1:
            self._tails = rules.decay_moments(self._nodes[self._first : -1], self.history_beta, self.depth)
        self._plan(frame)
        self._tables: dict[int, list[Row]] = {}
        self._restart(0)

    def _plan(self, frame: Frame) -> None:
        """Where the network is asked, and the stages of a Runge-Kutta start."""
        tableau = STARTUPS[self.startup]
        starting = self._first + self.depth - 1 if self.depth > 1 else 0
        self._stages: dict[int, list[Stage]] = {}
        evaluations, owners, self._opens = [], [], []
        for n, (t, t_next) in enumerate(zip(self.times[:-1].tolist(), self.times[1:].tolist(), strict=True)):
            asked = np.array([t])
            if tableau and n < starting and t_next > 0:
                on_clock = frame if n >= self._first else FRAMES["velocity"]
                asked, self._stages[n] = stages(tableau, on_clock, self.path, t, t_next)
            self._opens.append(len(evaluations))
            evaluations.extend(asked)
            owners.extend([n] * len(asked))
        self.evaluations, self.step_of = np.array(evaluations), np.array(owners)
        self._owners = owners

    def _restart(self, i: int) -> None:
        """Forget everything; evaluation ``i`` comes next. The first run from there makes its scalars."""
        self._expected = i
        self._history: list[Tensor] = []
        self._momentum: Tensor | None = None
        self._begun: Tensor | None = None  # the state at which a Runge-Kutta step began, and its slopes
        self._slopes: list[Tensor] = []
        n = self._owners[i]
        begin = n if self._opens[n] == i else n + 1
        if begin not in self._tables:
            rows = [self._row(m, begin) for m in range(begin, len(self.times) - 1)]
            self._tables[begin] = self._correct(rows, begin) if self.corrector else rows
        self._begin, self._rows = begin, self._tables[begin]

    def _row(self, n: int, begin: int) -> Row:
        """The scalars of step ``n`` in a run that began with step ``begin``."""
        if n < self._first:
            frame = FRAMES["denoised" if self._log else "velocity"]
            a, b = frame.weights(self.path, self.times[n], self.times[n + 1])
            return Row(float(a), float(b), None, frame.kind)
        a, b = (float(w[n]) for w in self._weights)
        if not np.isfinite(self._nodes[n + 1]):
            return Row(a, b, None, self._kind)
        first = max(begin, self._counted)
        count = min(self.depth, self._highest(n), n - first + 1)
        nodes = self._nodes[n - count + 1 : n + 1][::-1]
        step = float(self._nodes[n + 1] - self._nodes[n])
        moments = rules.step_moments(max(count, 3), step if self._log else 0.0)
        if self.coefficients == "matched":
            weights = rules.matched(nodes, self._tail(n - count + 1, first, count), step, moments[:count])
        elif self.rule == "dpm++":
            weights = rules.midpoint(nodes, step, moments)
        else:
            weights = rules.published(count, self.history_beta)
        return Row(a, b, tuple(weights.tolist()), self._kind)

    def _correct(self, rows: list[Row], begin: int) -> list[Row]:
        """Each step together with the correction of the one before it.

        With the slope y at its end that step would have been made by Adams-Moulton's rule, of one order more. What is
        missing, ``b (U_moulton - U)``, is a sum over the same history, and goes through the linear step as x does.
        """
        made = rows[:1]
        for n, (before, row) in enumerate(itertools.pairwise(rows), start=begin + 1):
            if before.weights is None or n - 1 in self._stages or n in self._stages or row.kind != before.kind:
                made.append(row)
                continue
            nodes = self._nodes[n - len(before.weights) : n + 1][::-1]
            nodes = nodes[np.isfinite(nodes)]
            if self.coefficients == "published" and self.rule == "ab":
                nodes = -np.arange(float(len(nodes)))
            step = float(nodes[0] - nodes[1])
            moments = rules.step_moments(len(nodes), step if self._log else 0.0)
            change = np.zeros(len(before.weights) + 1)
            change[: len(nodes)] = rules.corrected(nodes, step, moments)
            change[1:] -= before.weights
            total = change * (row.a * before.b / row.b)
            own = (1.0,) if row.weights is None else row.weights
            total[: len(own)] += own
            made.append(row._replace(weights=tuple(total.tolist())))
        return made

    def _highest(self, n: int) -> int:
        """The order that step ``n`` may have; DPM-Solver++ with fewer than 15 steps falls to 1 towards the end."""
        steps = len(self.times) - 1
        return steps - n if self.rule == "dpm++" and steps < 15 else self.depth

    def _tail(self, m: int, first: int, count: int) -> np.ndarray:
        """Moments of the history's last entry, a mean that ends with step ``m`` and began with step ``first``."""
        if self._tails is None:
            return np.eye(count)[0]
        if first == self._first:
            return self._tails[m - first, :count]
        return rules.decay_moments(self._nodes[first : m + 1], self.history_beta, count)[-1]

    def _step(self, x: Tensor, prediction: Prediction, i: int, noise: Tensor | None) -> Tensor:
        if i != self._expected:
            self._restart(i)
        self._expected = i + 1
        n = self._owners[i]
        stage = i - self._opens[n]
        if stage == 0 and n >= self._counted:
            self._remember(prediction.to(self._kind))
        if n not in self._stages:
            return self._advance(x, prediction, self._rows[n - self._begin])
        if stage == 0:
            self._begun, self._slopes = x, []
        if self._begun is None:
            a, b = FRAMES["denoised"].weights(self.path, self.evaluations[i], self.evaluations[i + 1])
            return combine(float(a), x, float(b), prediction.x0)
        plan = self._stages[n][stage]
        self._slopes.append(prediction.to(plan.kind))
        result = advance_stage(plan, self._begun, self._slopes)
        if stage + 1 == len(self._stages[n]):
            self._begun, self._slopes = None, []
        return result

    def _remember(self, slope: Tensor) -> None:
        history = self._history
        history.insert(0, slope)
        if len(history) > self.depth + self.corrector:
            oldest, last = history.pop(), history.pop()
            history.append(last if self.history_beta == 1 else torch.lerp(oldest, last, self.history_beta))

    def _advance(self, x: Tensor, prediction: Prediction, row: Row) -> Tensor:
        if row.weights is None:
            return combine(row.a, x, row.b, prediction.to(row.kind))
        if self.output_beta == 1 or len(row.weights) < self.least_momentum:
            return _sum(row.a, x, [row.b * weight for weight in row.weights], self._history[: len(row.weights)])
        slope = _sum(0.0, x, row.weights, self._history[: len(row.weights)])
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
