"""PFGM++ sampling: EDM's schedule and solver, started from a Student-t prior."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # diffusers looks the base class up in this module
from torch import Tensor

from genflow.errors import InputError
from genflow.schedulers.base import PathScheduler, register_scheduler
from genflow.solvers import Solver, create_solver

__all__ = ["PFGMPlusPlusScheduler"]


class PFGMPlusPlusScheduler(PathScheduler, SchedulerMixin):
    """PFGM++ (Xu et al., ICML 2023, arXiv 2302.04265) for a network trained with its noise.

    The sampler is EDM's (Karras et al. 2022, algorithm 1; 18 steps were the paper's for 32x32 images) on
    ``dx/dsigma = (x - D(x, sigma)) / sigma``: levels from sigma_max = 80 to sigma_min = 0.002 with rho 7, and a last
    Euler step to 0. What differs is the noise. A pipeline that draws standard normal latents itself and multiplies
    them by ``init_noise_sigma`` is handed ``latents=scheduler.path.noise(normal, generator)``; a loop of one's own
    starts from :meth:`prior`; genflow's ImagePipeline does so by itself. ``add_noise`` (image to image) likewise takes
    the path's noise. With D = inf all this is EDM, bit for bit.

    Args:
        solver: any solver's name; ``heun`` (default) makes 2 N - 1 evaluations in N steps. Stochastic ones add Gaussian
            noise, which is consistent with D = inf alone.
        solver_options: the solver's own options.
        **config: the keys of any scheduler, and ``D``: a number > 0 or "inf", 128 where the config has none. Without
            any, the paper's: sigma_min, sigma_max, sigma_data and rho of EDM. On beta schedules and flows the
            network is taken to have been trained with this noise on their own path.

    Raises:
        InputError: an unknown solver, option or key, a value out of range, a stochastic solver with finite D.

    Example:
        ``pipe.scheduler = PFGMPlusPlusScheduler.from_config(pipe.scheduler.config, D=2048)``
    """

    family_defaults: ClassVar[dict[str, Any]] = {"D": 128.0}

    @register_scheduler
    def __init__(self, solver: str = "heun", solver_options: dict[str, Any] | None = None) -> None:
        solver = self.make_solver()
        solver.start(self.path, np.linspace(1.0, 0.0, 9))
        self.order = int(np.bincount(solver.step_of)[-2])  # of a step past any start-up, and not to t = 0

    def make_solver(self) -> Solver:
        """See :class:`PathScheduler`."""
        options = self.config.solver_options
        if options is not None and not isinstance(options, dict):
            raise InputError(f"solver_options: got {options!r}; allowed: a dictionary of the solver's options")
        return create_solver(self.config.solver, **(options or {}))

    def prior(self, normal: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None = None) -> Tensor:
        """The state a run starts from, ``init_noise_sigma`` times the path's noise, float32 at least.

        Args:
            normal: standard normal ``(B, ...)``.
            generator: one, or one an image, for the chi-squared draw of each; None for torch's own.
        """
        return self.path.noise(normal, generator) * self.init_noise_sigma
