"""Polyak's Heavy Ball (HB) momentum around a multistep rule."""

from genflow.errors import InputError, check_choice, check_flag, check_number
from genflow.solvers.multistep import Multistep

__all__ = ["AROUND", "HB"]

AROUND = {"ab": (1, 5), "dpm++": (2, 3)}
"""The rules momentum goes around, with their lowest and highest order."""
VARIANTS = ("heavy-ball", "nesterov")


class HB(Multistep):
    """Heavy Ball around Adams-Bashforth or DPM-Solver++ (Wizadwongsa et al. 2024, arXiv 2307.11118, section 4).

    With s_n the slope that the rule around which it goes would step with, ``v_n = (1 - beta) v_{n-1} + beta s_n`` and
    the step is made with v_n. Momentum widens the region of stability as beta falls, at the price of the order, which
    is 1 for every beta below 1; GHVB keeps it.

    Args:
        order: of the rule inside: 1 to 5 for ``ab``, 2 or 3 for ``dpm++``; 2 by default.
        beta: the weight of the new slope, in (0, 1]; 1 is no momentum. The paper uses 0.8 and 0.9
            (default).
        around: ``ab`` or ``dpm++``. Around the latter the first-order steps leave the momentum alone, as published.
        variant: ``heavy-ball``, or ``nesterov``, which steps with ``(1 - beta) v_n + beta s_n``.
        frame: as for Adams-Bashforth; ``dpm++`` has the denoised frame alone, and ``auto`` is that.
        coefficients: ``published`` or ``matched``, of the rule inside.
        startup: ``multistep``, ``heun`` or ``rk4``; see :class:`~genflow.solvers.multistep.Multistep`.
        corrector: as for Adams-Bashforth; without momentum only.

    Raises:
        InputError: an option that is not allowed.
    """

    name = "hb"
    option_names = ("order", "beta", "around", "variant", *Multistep.option_names, "corrector")

    def __init__(
        self,
        order: int = 2,
        beta: float = 0.9,
        around: str = "ab",
        variant: str = "heavy-ball",
        frame: str = "auto",
        coefficients: str = "published",
        startup: str = "multistep",
        corrector: bool = False,
    ) -> None:
        super().__init__(frame, coefficients, startup)
        least, most = AROUND[check_choice("around", around, AROUND)]
        self.order = self.depth = int(check_number("order", order, at_least=least, at_most=most, integer=True))
        self.beta = self.output_beta = check_number("beta", beta, above=0, at_most=1)
        self.variant = check_choice("variant", variant, VARIANTS)
        self.nesterov = variant == "nesterov"
        self.around = self.rule = around
        self.corrector = check_flag("corrector", corrector)
        if corrector and beta < 1:
            raise InputError(f"corrector: True with beta={beta:g}; allowed: with beta=1, without momentum")
        if around == "dpm++":
            if frame not in ("auto", "denoised"):
                raise InputError(f"frame: {frame!r} with around='dpm++'; allowed: denoised or auto")
            self.least_momentum = 2
