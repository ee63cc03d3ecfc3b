"""DPM-Solver++'s multistep rules."""

from genflow.errors import check_flag, check_number
from genflow.solvers.multistep import Multistep

__all__ = ["DPMSolverPP"]


class DPMSolverPP(Multistep):
    """DPM-Solver++ 2M and 3M (Lu et al. 2022, arXiv 2211.01095), one evaluation a step, in the denoised frame.

    x0 is a polynomial in log(alpha/sigma) and the exponential factor is integrated exactly. A last step to ``t = 0``
    is first order; with fewer than 15 steps the last one always is, and the one before it second, as in diffusers.

    Args:
        order: 2 (default) or 3.
        coefficients: ``published``: the midpoint rule for 2M, and for 3M the weights of every public port, which have
            half the exact weight on the second difference and so give second order; or ``matched``: the exact
            integral of the polynomial, of the full order on any grid.
        startup: ``multistep``, ``heun`` or ``rk4``; see :class:`~genflow.solvers.multistep.Multistep`.
        corrector: correct each step by the rule of one order more (UniC, Zhao et al. 2023, arXiv 2302.04867) once the
            prediction at its end is known. The next step needs that anyway: there is no evaluation more.

    Raises:
        InputError: an option that is not allowed.
    """

    name = "dpm++"
    rule = "dpm++"
    option_names = ("order", "coefficients", "startup", "corrector")

    def __init__(
        self, order: int = 2, coefficients: str = "published", startup: str = "multistep", corrector: bool = False
    ) -> None:
        super().__init__("denoised", coefficients, startup)
        self.corrector = check_flag("corrector", corrector)
        self.order = self.depth = int(check_number("order", order, at_least=2, at_most=3, integer=True))
