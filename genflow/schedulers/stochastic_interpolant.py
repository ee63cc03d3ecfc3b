"""Sampling by the reverse-time SDE of a Gaussian path, as SiT does, for any diffusers network."""

import numpy as np
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # diffusers looks the base class up in this module

from genflow.errors import InputError, check_choice, check_number
from genflow.schedulers.base import PathScheduler, register_scheduler
from genflow.solvers import SOLVERS, Solver, create_solver

__all__ = ["StochasticInterpolantScheduler"]

_ORDERS = {"sde-euler": 1, "sde-heun": 2, "sde-exponential": 1, "euler": 1, "heun": 2}


class StochasticInterpolantScheduler(PathScheduler, SchedulerMixin):
    """One-sided stochastic interpolants (Ma et al. 2024, SiT, arXiv 2401.08740) on any path, with any network.

    N steps of ``sde-euler`` and ``sde-exponential`` are exactly N network evaluations, the last step included, and
    the grid has N intervals (SiT's ``num_steps`` counts grid points, of which the last is reached by the last step:
    its 250 are 250 evaluations here too). ``sde-heun`` takes 2 evaluations a step and 1 in the last, 2 N - 1 in all,
    as diffusers' Heun scheduler does; ``timesteps`` has an entry for each.

    Noise comes from ``step``'s ``generator``: one, or one an image, so that an image does not depend on its batch.

    Args:
        diffusion: the coefficient D(t): ``constant``, ``sbdm``, ``sigma`` (default; SiT's command line), ``linear``,
            ``decreasing`` or ``increasing-decreasing``; see :mod:`genflow.solvers.diffusion`.
        norm: its factor; 1 by default. 0 is the ODE.
        last_step: of ``sde-euler`` and ``sde-heun``: ``tweedie`` (default), ``mean`` (SiT's default), ``euler``, or
            None for an ordinary last step.
        last_step_size: the time at which the last step begins; the steps before share the rest of the way. None
            (default) keeps the schedule's own; SiT's default is 0.04, for 250 steps. Given timesteps are kept.
        solver: ``sde-exponential`` (default; exact for a constant prediction of the data, stable with few steps and
            large D, and needs no last step of its own: ``last_step`` is not used), ``sde-euler`` (Euler-Maruyama,
            SiT's), ``sde-heun``, or ``euler`` and ``heun`` for the ODE, which leave the options above unused. On the
            shipped Fashion-MNIST model at 20 evaluations (FD of 256 images, evaluate/quality.py) the three SDE rules
            gave 0.61, 1.33 and 0.64; Euler-Maruyama with ``last_step="mean"`` 1.48, with ``sbdm`` 2.72.
        frame: the solver's ``frame``; None for its default. With ``time`` in ``sde-euler`` the drift is integrated as
            SiT does on curved paths.
        **config: the keys of any diffusers scheduler (see :class:`~genflow.schedulers.base.PathScheduler`), or those
            of :class:`~genflow.schedulers.InterpolantFamily` for SiT's own networks: ``interpolant="GVP",
            reversed_time=True``.

    Raises:
        InputError: an unknown name or key, or a value out of range.

    Example:
        ``pipe.scheduler = StochasticInterpolantScheduler.from_config(pipe.scheduler.config, diffusion="sbdm")``
    """

    @register_scheduler
    def __init__(
        self,
        diffusion: str = "sigma",
        norm: float = 1.0,
        last_step: str | None = "tweedie",
        last_step_size: float | None = None,
        solver: str = "sde-exponential",
        frame: str | None = None,
    ) -> None:
        self.order = _ORDERS[check_choice("solver", solver, _ORDERS)]
        if last_step_size is not None:
            check_number("last_step_size", last_step_size, above=0, below=1)
        create_solver("sde-euler", diffusion=diffusion, norm=norm, last_step=last_step)  # refuse bad values now
        self.make_solver()

    def make_solver(self) -> Solver:
        """See :class:`PathScheduler`."""
        config = self.config
        options = {"diffusion": config.diffusion, "norm": config.norm, "last_step": config.last_step}
        if config.frame is not None:
            options["frame"] = config.frame
        known = SOLVERS[config.solver].option_names
        if "frame" in options and "frame" not in known:
            raise InputError(f"frame: {config.frame!r}; solver {config.solver!r} has none, leave it out")
        return create_solver(config.solver, **{key: value for key, value in options.items() if key in known})

    def arrange(self, times: np.ndarray) -> np.ndarray:
        """Move the steps before the last so that they end at ``last_step_size``."""
        size = self.config.last_step_size
        if size is None or len(times) < 3:  # a single step is the last one
            return times
        first, last = times[0], times[-2]
        if not times[-1] < size < first:
            raise InputError(f"last_step_size: {size:g}; allowed in this run: between {times[-1]:g} and {first:g}")
        times = times.copy()
        times[1:-2] = first - (first - times[1:-2]) * ((first - size) / (first - last))
        times[-2] = size
        return times
