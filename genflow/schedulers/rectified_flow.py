"""Rectified flow's samplers on any Gaussian path: Euler, Heun, Runge-Kutta, and the stochastic ones."""

from typing import Any

from diffusers.schedulers.scheduling_utils import SchedulerMixin  # diffusers looks the base class up in this module

from genflow.errors import InputError, check_choice
from genflow.schedulers.base import PathScheduler, register_scheduler
from genflow.solvers import Solver, create_solver

__all__ = ["RectifiedFlowScheduler"]

SOLVERS = {  # name: evaluations a step, as pipelines count them
    "euler": 1,
    "heun": 2,
    "rk4": 4,
    "curved-euler": 1,
    "overshooting": 1,
    "refresh": 1,
    "stable-refresh": 1,
    "stochastic-curved-euler": 1,
}


class RectifiedFlowScheduler(PathScheduler, SchedulerMixin):
    """Rectified flow's ODE (Liu et al. 2023, arXiv 2209.03003), and the same ODE of any other Gaussian path.

    Args:
        solver: ``euler`` (default; one evaluation a step, DDIM on beta schedules), ``heun`` (second order; N steps
            are 2 N - 1 evaluations, as in Karras et al. 2022, algorithm 1) or ``rk4`` (fourth order; 4 N - 1).
            ``overshooting``, ``refresh``, ``stable-refresh`` and ``stochastic-curved-euler`` are the stochastic
            samplers of lqiang67/rectified-flow, one evaluation a step, with noise from ``step``'s ``generator``.
            ``curved-euler`` is theirs without noise, and Euler here.
        solver_options: the solver's own options, such as ``{"overshoot": 2.0}``; see :mod:`genflow.solvers`.
        **config: the keys of any diffusers scheduler (see :class:`~genflow.schedulers.base.PathScheduler`); without
            any, a flow with timesteps of 1000 sigma and no shift.

    Raises:
        InputError: an unknown solver, option or key, a prediction type or a value that the family does not allow.

    Example:
        ``pipe.scheduler = RectifiedFlowScheduler.from_config(pipe.scheduler.config, solver="heun")``
    """

    @register_scheduler
    def __init__(self, solver: str = "euler", solver_options: dict[str, Any] | None = None) -> None:
        self.order = SOLVERS[check_choice("solver", solver, SOLVERS)]
        self.make_solver()  # refuse bad options now

    def make_solver(self) -> Solver:
        """See :class:`PathScheduler`."""
        options = self.config.solver_options
        if options is not None and not isinstance(options, dict):
            raise InputError(f"solver_options: got {options!r}; allowed: a dictionary of the solver's options")
        return create_solver(self.config.solver, **(options or {}))
