"""Sampling of a distilled student: its answer at a level is an image, and between levels all noise is drawn anew."""

import itertools
from collections.abc import Sequence

import numpy as np
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # diffusers looks the base class up in this module

from genflow.errors import InputError, check_number
from genflow.schedulers.base import PathScheduler, register_scheduler
from genflow.solvers import Solver, StochasticCurvedEuler

__all__ = ["OneStepScheduler"]


class OneStepScheduler(PathScheduler, SchedulerMixin):
    """A student with one or a few levels ``t_1 > t_2 > ...``: ``x' = alpha(t') x0 + sigma(t') z`` with z fresh noise.

    The rule is consistency models' multistep sampling (Song et al. 2023, arXiv 2303.01469, algorithm 1) and DMD2's
    (Yin et al. 2024, arXiv 2405.14867, section 4.5). The last step gives x0 itself and draws nothing, so that a
    student of one level is one evaluation and no draw but the first noise. Further noise comes from ``step``'s
    ``generator``.

    Args:
        student_times: the student's levels as times of the path, falling, in (0, 1]; the first is told to the network
            with pure noise (on an EDM path with noise of the level's size). ``set_timesteps`` then takes up to as
            many steps as there are levels: the first so many, whose states are those of training. Sigmas from a
            pipeline say only their number; explicit timesteps are taken as they are. None (default): no levels of
            its own, and the config's schedule at any number of steps.
        **config: the keys of any diffusers scheduler (see :class:`~genflow.schedulers.base.PathScheduler`).

    Raises:
        InputError: levels that do not fall within (0, 1]; later, more steps than there are levels.

    Example:
        ``pipe.scheduler = OneStepScheduler.from_config(teacher.scheduler.config, student_times=[1.0, 0.5])``
    """

    @register_scheduler
    def __init__(self, student_times: Sequence[float] | None = None) -> None:
        if student_times is not None:
            self.register_to_config(student_times=_levels(student_times))

    def make_solver(self) -> Solver:
        """See :class:`PathScheduler`."""
        return StochasticCurvedEuler(replaced=1.0, reference_step=None)

    def arrange(self, times: np.ndarray) -> np.ndarray:
        """The student's first levels, as many as ``times`` has steps."""
        levels = self.config.student_times
        if levels is None:
            return times
        steps = len(times) - 1
        if steps > len(levels):
            raise InputError(
                f"num_inference_steps: {steps}, and this student was trained for {len(levels)}; "
                f"allowed: {'1' if len(levels) == 1 else f'1 to {len(levels)}'}"
            )
        return np.array([*levels[:steps], 0.0])


def _levels(values: Sequence[float]) -> list[float]:
    values = [float(check_number("student_times", value, above=0, at_most=1)) for value in values]
    if not values or any(a <= b for a, b in itertools.pairwise(values)):
        raise InputError(f"student_times: {values}; allowed: falling times in (0, 1], one at least")
    return values
