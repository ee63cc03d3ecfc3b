"""Generalised Heavy Ball (GHVB): momentum of any real order."""

import math

from genflow.errors import check_number
from genflow.solvers.multistep import Multistep

__all__ = ["GHVB"]


class GHVB(Multistep):
    """Generalised Heavy Ball (Wizadwongsa et al. 2024, arXiv 2307.11118), one evaluation a step, in any frame.

    Order r is k = ceil(r) slopes and a momentum beta = r - k + 1: ``v_n = (1 - beta) v_{n-1} + beta y_n``, and the v's
    are combined so that the order stays. As r goes from k - 1 to k the rule goes from Adams-Bashforth of order k - 1
    to that of order k, and its region of stability shrinks.

    Args:
        order: a real number in (0, 5]. 1.9 (default) came within 3 % of order 2 on the shipped model and is much more
            stable under large guidance.
        frame: ``epsilon``, ``velocity``, ``denoised`` (see :mod:`genflow.solvers.frames`); ``auto`` is velocity, the
            best at few steps where it was measured.
        coefficients: ``published``, the paper's, for uniform grids and a momentum that has settled (second order at
            most otherwise); or ``matched``, of order k on any grid and from the first step.
        startup: ``multistep``, ``heun`` or ``rk4``; see :class:`~genflow.solvers.multistep.Multistep`.

    Raises:
        InputError: an option that is not allowed.
    """

    name = "ghvb"
    option_names = ("order", *Multistep.option_names)

    def __init__(
        self,
        order: float = 1.9,
        frame: str = "auto",
        coefficients: str = "published",
        startup: str = "multistep",
    ) -> None:
        super().__init__(frame, coefficients, startup)
        self.order = check_number("order", order, above=0, at_most=5)
        self.depth = math.ceil(order)
        self.history_beta = order - self.depth + 1
