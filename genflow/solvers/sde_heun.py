"""Stochastic Heun for the reverse-time SDEs of a Gaussian path."""

import numpy as np
from torch import Tensor

from genflow.errors import InputError, check_choice
from genflow.prediction import Prediction
from genflow.solvers.base import combine
from genflow.solvers.frames import FRAMES, choose_frame, near_noise
from genflow.solvers.sde_base import SDESolver

__all__ = ["SDEHeun"]


class SDEHeun(SDESolver):
    """Weak order 2, two evaluations a step: an Euler-Maruyama step, then again with the mean of the drifts at its ends.

    Both halves of a step use one noise, of the variance that the trapezoid rule gives. A last step by ``last_step``,
    and one that ends at ``t = 0``, take one evaluation, so that N steps to clean data are 2 N - 1 evaluations, as in
    :class:`~genflow.solvers.Heun`, which this is, bit for bit, with norm 0 on a run to clean data. A first step where
    D is infinite is ``alpha' x0 + sigma' z``, x0 being the mean of its predictions at both ends: their covariance
    with z is what the variance of the data adds to that of x' at this order.

    Args:
        diffusion, norm, last_step: see :class:`~genflow.solvers.sde_base.SDESolver`.
        frame: that of the ODE part, as in :class:`~genflow.solvers.Heun`.
    """

    name = "sde-heun"
    order = 2
    option_names = (*SDESolver.option_names, "frame")

    def __init__(
        self, diffusion: str = "sigma", norm: float = 1.0, last_step: str | None = "tweedie", frame: str = "auto"
    ) -> None:
        super().__init__(diffusion, norm, last_step)
        self.frame = check_choice("frame", frame, ("auto", *FRAMES))

    def _prepare(self) -> None:
        path, t, t_next = self.path, self.times[:-1], self.times[1:]
        count = len(t)
        chosen = choose_frame(self.frame, path).name
        names = [chosen] * count
        if chosen == "epsilon" and near_noise(path, float(t[0])):
            names[0] = "velocity"
        if t_next[-1] == 0:
            names[-1] = "denoised"
        by_frame = {name: FRAMES[name].weights(path, t, t_next) for name in set(names)}
        h = t - t_next
        rate = self.coefficient.rate(path, t)
        rate_next = self.coefficient.rate(path, np.where(t_next > 0, t_next, t))
        sigma, sigma_next = path.sigma(t), path.sigma(t_next)
        single = np.zeros(count, dtype=bool)
        single[-1] = self.last_step is not None or t_next[-1] == 0
        self._kinds = [FRAMES[name].kind for name in names]
        self._ode, self._drift, self._noise = [], [], []
        self._fresh: float | None = None  # alpha', where the first step renews all noise
        for n, name in enumerate(names):
            a, b = (float(w[n]) for w in by_frame[name])
            self._ode.append((a, b))
            if np.isinf(rate[n]):
                self._fresh = path.alpha(float(t_next[n]))
                self._drift.append((0.0, 0.0))
                self._noise.append(path.sigma(float(t_next[n])))
                continue
            # D s h = -h rate sigma eps, carried to the end of a double step by the frame's factor a
            carry = 1.0 if single[n] else a
            self._drift.append((float(-carry * h[n] * rate[n] * sigma[n]), float(-h[n] * rate_next[n] * sigma_next[n])))
            first = 2 * h[n] * rate[n] * sigma[n] ** 2
            second = 2 * h[n] * rate_next[n] * sigma_next[n] ** 2
            self._noise.append(float(np.sqrt(first if single[n] else (a**2 * first + second) / 2)))
        if self.last_step is not None:
            self._noise[-1] = 0.0
        self._phases = [(n, half) for n in range(count) for half in range(1 if single[n] else 2)]
        self._single = single.tolist()
        self.evaluations = np.array([t_next[n] if half else t[n] for n, half in self._phases])
        self.step_of = np.array([n for n, _ in self._phases])
        self._begun: tuple[int, Tensor, Tensor, Tensor | None] | None = None

    def draws(self, i: int) -> bool:
        """See :meth:`Solver.draws`: the first half of a step draws for both."""
        n, half = self._phases[i]
        return half == 0 and self._noise[n] > 0

    def _step(self, x: Tensor, prediction: Prediction, i: int, noise: Tensor | None) -> Tensor:
        n, half = self._phases[i]
        if half:
            return self._correct(n, i, prediction)
        a, b = self._ode[n]
        last = n == len(self._ode) - 1 and self.last_step is not None
        if last and self.last_step == "tweedie":
            return prediction.x0
        shift = self._noise[n] * noise.to(x.dtype) if self._noise[n] > 0 else None
        of_ode = last and self.last_step == "euler"
        if n == 0 and self._fresh is not None and not of_ode:
            if not self._single[n]:
                self._begun = (n, x, prediction.x0, shift)
            return self._renew(prediction.x0, shift)
        slope = prediction.to(self._kinds[n])
        result = combine(a, x, b, slope)
        drift = self._drift[n][0]
        if drift and not of_ode:
            result.add_(prediction.epsilon, alpha=drift)
        if shift is not None:
            result.add_(shift)
        if not self._single[n]:
            half_drift = prediction.epsilon * (drift / 2) if drift else None
            self._begun = (n, x, slope, _sum(half_drift, shift))
        return result

    def _renew(self, x0: Tensor, shift: Tensor | None) -> Tensor:
        result = self._fresh * x0
        return result if shift is None else result.add_(shift)

    def _correct(self, n: int, i: int, prediction: Prediction) -> Tensor:
        if self._begun is None or self._begun[0] != n:
            raise InputError(f"step: evaluation {i} ends a step of stochastic Heun that was not begun")
        _, x, first, shift = self._begun
        self._begun = None
        if n == 0 and self._fresh is not None:
            return self._renew((first + prediction.x0) / 2, shift)
        a, b = self._ode[n]
        result = combine(a, x, b / 2, first + prediction.to(self._kinds[n]))
        drift = self._drift[n][1]
        if drift:
            result.add_(prediction.epsilon, alpha=drift / 2)
        return result if shift is None else result.add_(shift)


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first.add_(second)
