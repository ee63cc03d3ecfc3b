"""A saved pipeline as a map from noise to images: the solution of its ODE, guidance included."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from genflow.errors import InputError, check_number
from genflow.files import fingerprint
from genflow.guidance import GuidedModel, create_guidance
from genflow.metrics.distance import rms_distance
from genflow.paths import Path as GaussianPath
from genflow.pipelines import ImagePipeline, locate
from genflow.sampling import ProbabilityFlow, sample
from genflow.schedulers import Family, PathScheduler, create_scheduler
from genflow.solvers import FRAMES
from genflow.trajectory import sample_trajectory

__all__ = ["ODETeacher", "clock_times", "keeps_path"]

_FEW = (1, 2, 4)
_LOW = 0.002
_MANY = 8  # steps from which a pipeline's own sampler counts as a solution


class ODETeacher:
    """``image = teacher.solve(noise, labels)``, without randomness of its own.

    Attributes:
        pipeline: the pipeline, on ``device``, in float32.
        hash: its :func:`~genflow.files.fingerprint`.
        steps: of the solver.
        shape: of one noise and one image (latents where the pipeline has a VAE).
    """

    def __init__(
        self,
        model: str | Path,
        device: torch.device | str = "cpu",
        *,
        solver: str | None = None,
        solver_options: dict[str, Any] | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> None:
        """Load ``model``, a shipped model's name or a saved pipeline's folder.

        Args:
            solver, solver_options: a scheduler by name (``heun``, ``ghvb`` ...) with options; the pipeline's own where
                that is one of genflow's without noise, and Heun else.
            steps, guidance_scale: by default the pipeline's own. A pipeline that is made for fewer than 8 steps is
                solved by 16 steps of Heun unless told otherwise: its own would be no solution of the ODE.

        Raises:
            InputError: no such pipeline, a solver that is not genflow's or draws noise, noise that is not Gaussian.
        """
        folder = locate(model)
        self.hash = fingerprint(folder)
        self.pipeline = ImagePipeline.from_pretrained(folder).to(device)
        if self.pipeline.dtype != torch.float32:
            self.pipeline.to(torch.float32)
        self.pipeline.unet.to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self.device = torch.device(device)
        default_steps = self.pipeline.config.default_steps
        if solver is None and steps is None and default_steps < _MANY:
            solver, steps = "heun", 2 * _MANY
        self.scheduler = self._scheduler(solver, solver_options or {})
        family = self.scheduler.family
        if family.path.noise_law != "Gaussian":
            raise InputError(f"model: {str(model)!r} starts from {family.path.noise_law} noise; allowed: Gaussian")
        config = self.pipeline.config
        steps = default_steps if steps is None else steps
        self.steps = int(check_number("pairs.steps", steps, at_least=1, integer=True))
        self.times = self.scheduler.arrange(family.times(self.steps))
        self._prior = family.prior_std(float(self.times[0]))
        scale = config.default_guidance_scale if guidance_scale is None else guidance_scale
        self.guidance = None
        if self.pipeline.num_classes is not None and self.pipeline.null_label is not None:
            interval = config.default_guidance_interval
            options = {} if interval is None else {"interval": tuple(interval)}
            guidance = create_guidance("cfg", scale=check_number("pairs.guidance_scale", scale), **options)
            self.guidance = None if guidance.neutral else guidance
        elif guidance_scale not in (None, 1):
            raise InputError(
                f"pairs.guidance_scale: {guidance_scale}; allowed for a model without an unconditional class: 1"
            )
        channels, size = self.pipeline.unet.config.in_channels, self.pipeline.unet.config.sample_size
        if size is None:
            raise InputError(f"model: the network of {str(model)!r} does not tell its sample_size")
        self.shape = (channels, *(size if isinstance(size, (list, tuple)) else (size, size)))

    def _scheduler(self, name: str | None, options: dict[str, Any]) -> PathScheduler:
        own = self.pipeline.scheduler
        fits = isinstance(own, PathScheduler) and not own.make_solver().stochastic
        if name is None and fits and not options:
            return own
        if name is None:
            name = type(own).__name__ if fits else "heun"
        scheduler = create_scheduler(name, own.config, **options)
        if not isinstance(scheduler, PathScheduler) or scheduler.make_solver().stochastic:
            raise InputError(f"pairs.solver: {name!r}; allowed: a scheduler of genflow's that draws no noise")
        return scheduler

    @property
    def num_classes(self) -> int | None:
        """Of the pipeline; None where it knows no classes."""
        return self.pipeline.num_classes

    def labels(self, count: int, start: int = 0) -> Tensor | None:
        """All classes in turn, from row ``start`` on: int64 ``(count,)`` on the host, or None."""
        return None if self.num_classes is None else torch.arange(start, start + count) % self.num_classes

    def describe(self) -> dict[str, Any]:
        """What an image depends on beside its noise and label, JSON-safe."""
        solver = self.scheduler.make_solver()
        solver.start(self.scheduler.path, self.times)
        config = {key: value for key, value in self.scheduler.config.items() if not key.startswith("_")}
        return {
            "teacher": self.hash,
            "solver": type(self.scheduler).__name__,
            "config": config,
            "steps": self.steps,
            "evaluations": len(solver.evaluations),
            "guidance": None if self.guidance is None else self.guidance.to_config(),
        }

    def solve(self, noise: Tensor, labels: Tensor | None, after: Callable[[int], None] | None = None) -> Tensor:
        """The images ``(B, ...)``, float32, of standard normal ``noise`` ``(B, ...)`` on the teacher's device.

        ``after(n)`` is called after step n. Raises NonFiniteError where the network gives NaN or infinity.
        """
        return sample(
            self.pipeline.path_model(),
            noise * self._prior,
            self.times,
            self.scheduler.make_solver(),
            guidance=self.guidance,
            null_label=self.pipeline.null_label,
            callback=None if after is None else lambda step, *_: after(step),
            **self._conditioning(labels),
        )

    @torch.no_grad()
    def invert(self, images: Tensor, labels: Tensor | None, after: Callable[[int], None] | None = None) -> Tensor:
        """The noise that the ODE carries to ``images`` ``(B, ...)``, by ``steps`` Heun steps, even on its clock.

        The other arguments are as in :meth:`solve`. A network that predicts x0 or noise begins at noise level 0.002
        (Karras et al. 2022), since it does not tell a velocity at 0.
        """
        from torchdiffeq import odeint

        path, top = self.scheduler.path, float(self.times[0])
        exact = self.scheduler.family.prediction_type in ("flow_prediction", "v_prediction")
        low = 0.0 if exact and self.scheduler.family.name != "edm" else float(path.time(_LOW))
        times = clock_times(path, self.steps, top)[::-1].copy()
        times[0] = low
        model = self.pipeline.path_model()
        if self.guidance is not None:
            model = GuidedModel(model, self.guidance, self.pipeline.null_label)
            model.reset(self.steps)
        flow = ProbabilityFlow(model, low, top, self._conditioning(labels))
        grid = torch.as_tensor(flow.clock(times), dtype=torch.float64, device=images.device)
        start = images.float() * (float(path.alpha(low)) / flow.scale(low))
        calls = 0

        def slope(u: Tensor, z: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if after is not None and calls % 2 == 0:
                after(calls // 2 - 1)
            return flow(u, z)

        options = {"grid_constructor": lambda *_: grid}
        z = odeint(slope, start, grid[[0, -1]], method="heun2", options=options)[-1]
        return z.float() * (flow.scale(top) / self._prior)

    def _conditioning(self, labels: Tensor | None) -> dict[str, Any]:
        return {} if labels is None else {"class_labels": labels.to(self.device)}

    @torch.no_grad()
    def measure(self, count: int = 256, steps: int = 32, seed: int = 0, progress: bool = False) -> dict[str, Any]:
        """How straight the flow is, over ``count`` noises from ``seed`` and ``steps`` even Heun steps of its clock.

        Returns:
            ``straightness``, ``curvature`` and ``detour`` (:func:`genflow.metrics.measure_straightness`; None for NaN);
            ``transport_cost``, the mean square of noise minus image over samples and dimensions; ``few_step_error``,
            for 1, 2 and 4 Euler steps the root mean square distance of their images from the fine solution.
        """
        path, generator = self.scheduler.path, torch.Generator().manual_seed(seed)
        noise = torch.randn((count, *self.shape), generator=generator).to(self.device)
        options = {
            "guidance": self.guidance,
            "null_label": self.pipeline.null_label,
            **self._conditioning(self.labels(count)),
        }
        model, x = self.pipeline.path_model(), noise * self._prior
        with tqdm(total=steps, desc="straightness", delay=2, disable=not progress, leave=False) as bar:
            options["callback"] = lambda *_: bar.update()
            fine = sample_trajectory(model, x, clock_times(path, steps, float(self.times[0])), "heun", **options)
        del options["callback"]
        found = fine.straightness()
        errors = {}
        for few in _FEW:
            made = sample(model, x, clock_times(path, few, float(self.times[0])), "euler", **options)
            errors[str(few)] = float(rms_distance(made, fine.x).mean())
        return {
            "straightness": found.straightness,
            "curvature": found.curvature,
            "detour": found.detour if math.isfinite(found.detour) else None,  # nothing moved
            "transport_cost": float((noise - fine.x).square().mean()),
            "few_step_error": errors,
            "samples": count,
            "steps": steps,
            "seed": seed,
        }


def clock_times(path: GaussianPath, steps: int, start: float = 1.0) -> np.ndarray:
    """``steps + 1`` falling times of ``path``, from ``start`` to 0, even in ``u = sigma / (alpha + sigma)``."""
    first = float(FRAMES["velocity"].clock(path, np.array([start]))[0])
    clocks = np.linspace(first, 0.0, steps + 1)[1:-1]
    inner = np.asarray(path.time(clocks / (1 - clocks)), dtype=np.float64)
    return np.concatenate([[start], inner, [0.0]])


def keeps_path(family: Family) -> bool:
    """Whether a network of ``family`` can answer for a student's velocity at pure noise, so that both share a path.

    ``eps - x0`` is read from it there. A network of noise at the top of a beta schedule does not tell x0: its error
    would be divided by alpha, which is near 0.
    """
    return family.name == "edm" or family.prediction_type != "epsilon"
