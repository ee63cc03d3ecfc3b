"""Guidance between a network and a scheduler of diffusers: where the run stands, and raw outputs in place of x0."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from genflow.errors import InputError
from genflow.guidance.base import Guidance
from genflow.schedulers.family import Family
from genflow.schedulers.reading import family_from_config

__all__ = ["RunClock", "family_of", "guided_output", "steps_of"]


def family_of(scheduler: Any) -> Family:
    """The family (path, prediction type, clock) of a scheduler, ours or diffusers'."""
    family = getattr(scheduler, "family", None)
    return family_from_config(scheduler.config) if family is None else family


def steps_of(scheduler: Any) -> np.ndarray:
    """The outer step of every evaluation of a scheduler, ours or diffusers', after ``set_timesteps``."""
    own = getattr(scheduler, "step_of", None)
    if own is not None:
        return np.asarray(own)
    evaluations = np.arange(len(scheduler.timesteps))
    stages = getattr(scheduler, "prk_timesteps", None)  # PNDM: Runge-Kutta steps of four, or a first step of two
    if stages is None:
        return evaluations // int(getattr(scheduler, "order", 1))
    if not len(stages):
        return np.maximum(evaluations - 1, 0)
    return np.where(evaluations < len(stages), evaluations // 4, evaluations - len(stages) + len(stages) // 4)


class RunClock:
    """A run's evaluations: for each, the path's time and the outer step, known on the host from the start.

    Args:
        scheduler: a scheduler after ``set_timesteps``.
        family: its family.
        timestep: what the network is first told, read (once) where the scheduler does not say where it begins.

    Attributes:
        times: the path's time at every evaluation of the schedule, float64.
        index: the evaluation that the run begins at; the caller counts on.
        steps: the outer step of every evaluation, 0 where the run begins.
        count: how many outer steps the run has.
    """

    def __init__(self, scheduler: Any, family: Family, timestep: Any = None) -> None:
        own = getattr(scheduler, "times", None)
        timesteps = scheduler.timesteps.detach().to("cpu", torch.float64).numpy()  # one copy a run
        self.times = np.asarray(family.time(timesteps) if own is None else own, dtype=np.float64)
        family.path.remember(self.times)
        steps = steps_of(scheduler)
        self.index = self._first(scheduler, timesteps, family.num_train_timesteps, timestep)
        self.steps = steps - steps[self.index]
        self.count = int(self.steps[-1]) + 1

    @staticmethod
    def _first(scheduler: Any, timesteps: np.ndarray, train: int, timestep: Any) -> int:
        """Where the run begins: what the scheduler says, else where the network's own timestep stands."""
        for name in ("step_index", "begin_index"):
            index = getattr(scheduler, name, None)
            if index is not None:
                return int(index)
        if timestep is None:
            return 0
        value = float(timestep.detach().max()) if isinstance(timestep, Tensor) else float(np.max(timestep))
        # networks are told t, t / N or 1 - t / N, in a dtype that may have rounded it; of equal ones the first counts
        off = [np.abs(timesteps - reading) for reading in (value, value * train, (1 - value) * train)]
        return int(min(off, key=np.min).argmin())

    @property
    def over(self) -> bool:
        """Whether every evaluation of the schedule has been."""
        return self.index >= len(self.times)


def guided_output(
    guidance: Guidance,
    family: Family,
    cond: Tensor,
    uncond: Tensor,
    network_input: Tensor,
    t: float,
    step: int,
    sign: float = 1.0,
) -> Tensor:
    """The raw network output that reads as the guided x0; ``cond`` where guidance does not act.

    ``cond`` and ``uncond`` are raw outputs for the same ``network_input`` (after ``scale_model_input``), all of one
    shape ``(B, ...)``; ``t`` is the path's time; ``sign`` is -1 for a network that answers with the negative. Computed
    in float32 at least, returned in ``cond``'s dtype. Raises InputError where the output does not determine x0.
    """
    level = family.path.noise_level(t)
    if not guidance.is_active(level, step):
        return cond
    a, b = _affine(family, t)
    b *= sign
    x = network_input.to(torch.promote_types(network_input.dtype, torch.float32))
    scale = family.input_scale(t)
    x = x if scale == 1 else x / scale
    base = x * a
    cond_x0, uncond_x0 = (torch.add(base, output, alpha=b) for output in (cond, uncond))
    guided = guidance(cond_x0, uncond_x0, x, level, step)
    return torch.sub(guided, base).mul_(1 / b).to(cond.dtype)


def _affine(family: Family, t: float) -> tuple[float, float]:
    """``(a, b)`` with ``x0 = a x + b output`` at time t, by asking the family at (1, 0) and at (0, 1)."""
    x, output = torch.eye(2, dtype=torch.float64)
    a, b = family.predict(output, x, t).x0.tolist()
    if b == 0:
        raise InputError(f"guidance: at t={t} the network's output says nothing of the data, as {family.path!r} has it")
    return a, b
