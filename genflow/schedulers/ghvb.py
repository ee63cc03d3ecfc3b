"""Generalised Heavy Ball momentum as a diffusers scheduler."""

from diffusers.schedulers.scheduling_utils import SchedulerMixin  # diffusers looks the base class up in this module

from genflow.schedulers.base import PathScheduler, register_scheduler
from genflow.solvers import GHVB, Solver

__all__ = ["GHVBScheduler"]


class GHVBScheduler(PathScheduler, SchedulerMixin):
    """GHVB of any real order (Wizadwongsa et al. 2024, arXiv 2307.11118).

    One evaluation a step, unless ``startup`` asks for more in the first ones. All options are those of
    :class:`genflow.solvers.GHVB`.

    Args:
        order: a real number in (0, 5], 1.9 by default; lower is more stable, as with few steps and much guidance.
        frame: ``auto``, ``epsilon``, ``velocity`` or ``denoised``.
        coefficients: ``published`` or ``matched``.
        startup: ``multistep``, ``heun`` or ``rk4``; the last two are for runs from noise: image-to-image counts entries
            of ``timesteps``, of which they put more at the start, and so would begin with more noise than asked.
        **config: the keys of any diffusers scheduler (see :class:`~genflow.schedulers.base.PathScheduler`).

    Raises:
        InputError: an unknown key or a value that is not allowed.

    Example:
        ``pipe.scheduler = GHVBScheduler.from_config(pipe.scheduler.config, order=1.8)``
    """

    @register_scheduler
    def __init__(
        self,
        order: float = 1.9,
        frame: str = "auto",
        coefficients: str = "published",
        startup: str = "multistep",
    ) -> None:
        self.make_solver()

    def make_solver(self) -> Solver:
        """See :class:`PathScheduler`."""
        return GHVB(**{name: self.config[name] for name in GHVB.option_names})
