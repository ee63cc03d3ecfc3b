"""f-divergences between a teacher and a student, as f-distill weighs them (Xu, Nie, Vahdat 2025, arXiv 2502.15681).

``D_f(p, q) = E_q[f(r)]`` with ``r = p / q``, p the teacher's density and q the student's. Moving the student's samples
x changes q, and with it D_f by ``d/dx (f(r) - r f'(r)) = -r f''(r) dr/dx``; since ``dr/dx = r (s_p - s_q)``,

    grad D_f = -E_q[h(r) (s_p - s_q) dx/dtheta],   h(r) = f''(r) r^2.

So a divergence is a weight on the gradient of variational score distillation, which is reverse-KL with ``h = 1``.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from genflow.errors import InputError, check_choice

__all__ = ["DIVERGENCES", "Divergence", "UserDivergence", "create_divergence"]

Function = Callable[[Tensor], Tensor]


class Divergence:
    """A convex f with its second derivative and weight, each a function of ``r = p / q`` > 0 of any shape.

    Attributes:
        name: its name in :data:`DIVERGENCES`, or ``user``.
        f: the function itself, ``f(1) = 0``; ``E_q[f(r)]`` is the divergence.
        f2: ``f''``.
        h: ``f''(r) r^2``, positive: the weight of the score difference.
    """

    def __init__(self, name: str, f: Function, f2: Function, h: Function) -> None:
        self.name, self.f, self.f2, self.h = name, f, f2, h

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class UserDivergence(Divergence):
    """The divergence of which ``f2`` is the second derivative; f is the one with ``f(1) = f'(1) = 0``.

    What f'(1) is makes no difference: ``E_q[r - 1] = 0``. f is found by quadrature, for reporting; training needs h
    alone. Example: ``UserDivergence(lambda r: r**-0.5)``, between forward-KL and Pearson's.

    Args:
        f2: takes a tensor of ratios and gives positive values in its shape (f is strictly convex).
        name: what reports call it.

    Raises:
        InputError: ``f2`` is not callable, or on ratios from 0.001 to 1000 it fails, has another shape, or is not
            positive and finite.
    """

    def __init__(self, f2: Function, name: str = "user") -> None:
        if not callable(f2):
            raise InputError(f"f2: got {type(f2).__name__}; allowed: a function of a tensor of ratios")
        probe = torch.logspace(-3, 3, 121, dtype=torch.float64)
        try:
            values = f2(probe)
        except Exception as error:
            raise InputError(f"f2: failed on a tensor of ratios ({type(error).__name__}: {error})") from error
        if not isinstance(values, Tensor) or values.shape != probe.shape:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InputError(
                f"f2: gave {got} for ratios of shape {tuple(probe.shape)}; allowed: a tensor of that shape"
            )
        bad = ~(torch.isfinite(values) & (values > 0))
        if bad.any():
            at = int(bad.nonzero()[0])
            raise InputError(
                f"f2: {values[at].item():g} at ratio {probe[at].item():g}; allowed: positive and finite (f is convex)"
            )
        super().__init__(name, self._integrated, f2, lambda r: f2(r) * r.square())

    def _integrated(self, r: Tensor) -> Tensor:
        """``integral from 1 to r of (r - s) f''(s) ds``, in ``u = log s / log r`` by 64 Gauss points."""
        nodes, weights = (torch.as_tensor(a, dtype=r.dtype, device=r.device) for a in _GAUSS)
        log_r = r.log()[..., None]
        s = torch.exp(log_r * nodes)
        return ((r[..., None] - s) * self.f2(s) * s * log_r * weights).sum(-1)


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_GAUSS = ((_NODES + 1) / 2, _WEIGHTS / 2)

DIVERGENCES: dict[str, Divergence] = {
    divergence.name: divergence
    for divergence in (
        # E_q[-log r] = KL(q, p)
        Divergence("reverse-kl", lambda r: -r.log(), lambda r: r**-2, torch.ones_like),
        # 2 KL((p + q) / 2, p)
        Divergence(
            "softened-reverse-kl",
            lambda r: (r + 1) * ((r + 1) / (2 * r)).log(),
            lambda r: 1 / (r.square() * (r + 1)),
            lambda r: 1 / (r + 1),
        ),
        # KL(p, m) + KL(q, m) with m = (p + q) / 2: twice Jensen-Shannon's
        Divergence(
            "js",
            lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
            lambda r: 1 / (r * (r + 1)),
            lambda r: r / (r + 1),
        ),
        # 1 - integral of sqrt(p q); FastGen's weight is sqrt(r), that of 4 times this
        Divergence("squared-hellinger", lambda r: 1 - r.sqrt(), lambda r: r**-1.5 / 4, lambda r: r.sqrt() / 4),
        # KL(p, q)
        Divergence("forward-kl", lambda r: r * r.log(), lambda r: 1 / r, lambda r: r),
        # KL(p, q) + KL(q, p)
        Divergence("jeffreys", lambda r: (r - 1) * r.log(), lambda r: 1 / r + r**-2, lambda r: r + 1),
        # integral of (p - q)^2 / p; FastGen's weight is 1 / r, that of half this
        Divergence("neyman", lambda r: (1 - r).square() / r, lambda r: 2 * r**-3, lambda r: 2 / r),
    )
}
"""Every named divergence. A constant factor makes no difference to training, which divides h by its mean."""


def create_divergence(divergence: str | Function | Divergence) -> Divergence:
    """One of :data:`DIVERGENCES` by name, or the divergence of a given second derivative; see :class:`UserDivergence`.

    Raises:
        InputError: an unknown name, or a function that is no second derivative of a convex function.
    """
    if isinstance(divergence, Divergence):
        return divergence
    if callable(divergence):
        return UserDivergence(divergence)
    return DIVERGENCES[check_choice("divergence", divergence, DIVERGENCES)]
