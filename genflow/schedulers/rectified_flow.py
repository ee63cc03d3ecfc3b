"""Deterministic sampling along the probability-flow ODE: Euler and Heun on any Gaussian path."""

from diffusers.schedulers.scheduling_utils import SchedulerMixin  # diffusers looks the base class up in this module

from genflow.errors import check_choice
from genflow.schedulers.base import PathScheduler, register_scheduler
from genflow.solvers import Solver, create_solver

__all__ = ["RectifiedFlowScheduler"]

SOLVERS = {"euler": 1, "heun": 2}  # name: evaluations a step, as pipelines count them


class RectifiedFlowScheduler(PathScheduler, SchedulerMixin):
    """Rectified flow's ODE (Liu et al. 2023, arXiv 2209.03003), and the same ODE of any other Gaussian path.

    Args:
        solver: ``euler`` (default; one evaluation a step, DDIM on beta schedules) or ``heun`` (second order; N steps
            are 2 N - 1 evaluations, as in Karras et al. 2022, algorithm 1).
        **config: the keys of any diffusers scheduler (see :class:`~genflow.schedulers.base.PathScheduler`); without
            any, a flow with timesteps of 1000 sigma and no shift.

    Raises:
        InputError: an unknown solver or key, a prediction type or a value that the family does not allow.

    Example:
        ``pipe.scheduler = RectifiedFlowScheduler.from_config(pipe.scheduler.config, solver="heun")``
    """

    @register_scheduler
    def __init__(self, solver: str = "euler") -> None:
        self.order = SOLVERS[check_choice("solver", solver, SOLVERS)]

    def make_solver(self) -> Solver:
        """See :class:`PathScheduler`."""
        return create_solver(self.config.solver)
