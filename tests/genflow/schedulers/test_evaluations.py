"""Steps and evaluations of genflow's and diffusers' schedulers, before a run."""

from typing import ClassVar

import diffusers
import pytest

from genflow.errors import InputError
from genflow.schedulers import RectifiedFlowScheduler, count_evaluations, create_scheduler, steps_within


@pytest.mark.parametrize(
    ("name", "evaluations", "steps"),
    [
        ("euler", 7, 7),
        ("heun", 1, 1),
        ("heun", 6, 3),  # five evaluations; a fourth step would make it seven
        ("heun", 7, 4),
        ("FlowMatchHeunDiscreteScheduler", 6, 3),
        ("FlowMatchEulerDiscreteScheduler", 6, 6),
        ("DPMSolverMultistepScheduler", 6, 6),
    ],
)
def test_steps_within_evaluations(name, evaluations, steps):
    scheduler = create_scheduler(name, RectifiedFlowScheduler().config)
    assert steps_within(scheduler, evaluations) == steps
    assert count_evaluations(scheduler, steps) <= evaluations < count_evaluations(scheduler, steps + 1)


class _FourAStep:
    """As much of a scheduler as counting needs."""

    config: ClassVar[dict] = {}

    def set_timesteps(self, steps):
        self.timesteps = range(4 * steps)


def test_the_scheduler_is_left_as_it_is():
    scheduler = RectifiedFlowScheduler()
    scheduler.set_timesteps(3)
    count_evaluations(scheduler, 9)
    assert len(scheduler.timesteps) == 3


def test_pipelines_extra_evaluations_count():
    scheduler = diffusers.PNDMScheduler(skip_prk_steps=True)  # repeats its second step
    assert count_evaluations(scheduler, 5) == 6
    assert steps_within(scheduler, 6) == 5


def test_dynamic_shift_needs_no_mu_to_be_counted():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    assert count_evaluations(scheduler, 4) == 4


def test_refusals():
    with pytest.raises(InputError, match="evaluations: got 0"):
        steps_within(RectifiedFlowScheduler(), 0)
    with pytest.raises(InputError, match="DDIMScheduler cannot take 2000"):
        count_evaluations(diffusers.DDIMScheduler(), 2000)
    with pytest.raises(InputError, match="evaluations: 3; one step of _FourAStep takes 4"):
        steps_within(_FourAStep(), 3)
