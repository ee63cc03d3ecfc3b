"""How many network evaluations a scheduler's steps take, of genflow's and of diffusers' alike."""

import bisect
import copy
from typing import Any

from genflow.errors import InputError, check_number

__all__ = ["count_evaluations", "steps_within"]


def count_evaluations(scheduler: Any, steps: int) -> int:
    """How often a pipeline calls the network in ``steps`` steps: once for every timestep of the run.

    The two halves of classifier-free guidance count as one evaluation. The scheduler is left as it is.

    Raises:
        InputError: steps below 1, or the scheduler's own refusal of so many.
    """
    check_number("steps", steps, at_least=1, integer=True)
    trial = copy.deepcopy(scheduler)
    # any shift will do to count; pipelines compute their own
    options = {"mu": 1.0} if trial.config.get("use_dynamic_shifting") else {}
    try:
        trial.set_timesteps(int(steps), **options)
    except InputError:
        raise
    except (ValueError, TypeError, IndexError, AssertionError) as error:  # a diffusers scheduler's own check
        message = " ".join(str(error).split())
        raise InputError(f"steps: {type(scheduler).__name__} cannot take {steps} ({message})") from error
    return len(trial.timesteps)


def steps_within(scheduler: Any, evaluations: int) -> int:
    """The most steps that take at most ``evaluations`` network evaluations.

    Raises:
        InputError: evaluations below 1, or fewer than one step takes.
    """
    check_number("evaluations", evaluations, at_least=1, integer=True)
    steps = bisect.bisect_right(
        range(1, int(evaluations) + 1), evaluations, key=lambda count: count_evaluations(scheduler, count)
    )
    if steps == 0:
        least = count_evaluations(scheduler, 1)
        raise InputError(f"evaluations: {evaluations}; one step of {type(scheduler).__name__} takes {least}")
    return steps
