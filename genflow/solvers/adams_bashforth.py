"""Adams-Bashforth's rules in any frame."""

from genflow.errors import check_flag, check_number
from genflow.solvers.multistep import Multistep

__all__ = ["AdamsBashforth"]


class AdamsBashforth(Multistep):
    """Orders 1 to 5, one evaluation a step.

    In the epsilon frame with published coefficients this is PLMS without its special start (Liu et al. 2022), and with
    matched ones the linear multistep rule of k-diffusion; order 1 is DDIM, and Euler on a rectified flow.

    Args:
        order: number of slopes, 1 to 5; 2 by default.
        frame: ``epsilon``, ``velocity``, ``denoised`` (see :mod:`genflow.solvers.frames`); ``auto`` is velocity, the
            best at few steps where it was measured.
        coefficients: ``published``, those of a uniform grid, which on others give second order at most; or
            ``matched``, which keep the order on any grid.
        startup: ``multistep``, ``heun`` or ``rk4``; see :class:`~genflow.solvers.multistep.Multistep`. The first caps
            the order at 2, the second at 3.
        corrector: correct each step by Adams-Moulton's rule, of one order more, once the slope at its end is known. The
            next step needs that slope anyway: there is no evaluation more.

    Raises:
        InputError: an option that is not allowed.
    """

    name = "ab"
    option_names = ("order", *Multistep.option_names, "corrector")

    def __init__(
        self,
        order: int = 2,
        frame: str = "auto",
        coefficients: str = "published",
        startup: str = "multistep",
        corrector: bool = False,
    ) -> None:
        super().__init__(frame, coefficients, startup)
        self.corrector = check_flag("corrector", corrector)
        self.order = self.depth = int(check_number("order", order, at_least=1, at_most=5, integer=True))
