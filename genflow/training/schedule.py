"""The learning rate over a run."""

import math

from torch.optim import Optimizer

from genflow.training.recipe import ScheduleSection

__all__ = ["lr_factor", "scale_lr"]


def lr_factor(schedule: ScheduleSection, step: int, progress: float) -> float:
    """The factor on the peak rate for the step after ``step`` done ones, ``progress`` in [0, 1] through the budget."""
    warmup = min(1.0, (step + 1) / schedule.warmup_steps) if schedule.warmup_steps else 1.0
    if schedule.decay == "constant":
        return warmup
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return warmup * (schedule.final + (1 - schedule.final) * cosine)


def scale_lr(optimizer: Optimizer, peak: float, factor: float) -> None:
    """Give each group ``factor`` of its own peak rate, or of ``peak`` where it has none."""
    for group in optimizer.param_groups:
        group["lr"] = group.get("initial_lr", peak) * factor
