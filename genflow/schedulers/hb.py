"""Multistep rules with Heavy Ball momentum, and the same rules without it, as a diffusers scheduler."""

from diffusers.schedulers.scheduling_utils import SchedulerMixin  # diffusers looks the base class up in this module

from genflow.schedulers.base import PathScheduler, register_scheduler
from genflow.solvers import HB, Solver

__all__ = ["HBScheduler"]


class HBScheduler(PathScheduler, SchedulerMixin):
    """Heavy Ball momentum around Adams-Bashforth or DPM-Solver++; with ``beta = 1`` those rules themselves.

    One evaluation a step, unless ``startup`` asks for more in the first ones. All options are those of
    :class:`genflow.solvers.HB`.

    Args:
        order: of the rule inside.
        beta: weight of the new slope, in (0, 1].
        around: ``ab`` or ``dpm++``.
        variant: ``heavy-ball`` or ``nesterov``.
        frame: ``auto``, ``epsilon``, ``velocity`` or ``denoised``.
        coefficients: ``published`` or ``matched``.
        startup: ``multistep``, ``heun`` or ``rk4``; the last two are for runs from noise: image-to-image counts entries
            of ``timesteps``, of which they put more at the start, and so would begin with more noise than asked.
        corrector: with ``beta = 1``: each step is corrected once the slope at its end is known, at no evaluation more.
        **config: the keys of any diffusers scheduler (see :class:`~genflow.schedulers.base.PathScheduler`).

    Raises:
        InputError: an unknown key or a value that is not allowed.

    Example:
        ``pipe.scheduler = HBScheduler.from_config(pipe.scheduler.config, around="dpm++", beta=0.8)``
    """

    @register_scheduler
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
        self.make_solver()

    def make_solver(self) -> Solver:
        """See :class:`PathScheduler`."""
        return HB(**{name: self.config[name] for name in HB.option_names})
