"""RectifiedFlowScheduler's solvers: evaluations, options, and agreement with the plain loop."""

import numpy as np
import pytest
import torch

from genflow.errors import InputError
from genflow.models import from_function
from genflow.sampling import sample
from genflow.schedulers import RectifiedFlowScheduler, create_scheduler
from genflow.schedulers.rectified_flow import SOLVERS
from genflow.solvers import create_solver


def network(x, t):
    return torch.tanh(x) - t * 0.3


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_plain_loop_makes_the_same_samples(solver):
    """One implementation of every rule: scheduler and loop call the same."""
    scheduler = RectifiedFlowScheduler(solver=solver, shift=2.0)
    scheduler.set_timesteps(6)
    model = from_function(lambda x, t, **_: network(x, t), scheduler.path, "flow_prediction")
    x = torch.randn(3, 2, 4, 4)
    times = scheduler.make_solver()
    times.start(scheduler.path, scheduler.family.times(6))
    loop = sample(
        model, x, times.times, create_solver(solver), generators=[torch.Generator().manual_seed(s) for s in range(3)]
    )
    generators = [torch.Generator().manual_seed(s) for s in range(3)]
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(network(x, float(scheduler.times[i])), t, x, generator=generators).prev_sample
    torch.testing.assert_close(x, loop, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_step_but_the_last_has_order_evaluations(solver):
    """Pipelines cut a schedule at multiples of ``order``."""
    scheduler = RectifiedFlowScheduler(solver=solver)
    scheduler.set_timesteps(5)
    run = scheduler.make_solver()
    run.start(scheduler.path, scheduler.family.times(5))
    counts = np.bincount(run.step_of)
    assert set(counts[:-1]) == {scheduler.order}
    assert counts[-1] == max(1, scheduler.order - 1)


def test_options_reach_the_solver_and_survive_saving(tmp_path):
    scheduler = create_scheduler("overshooting", None, solver_options={"overshoot": 2.5})
    scheduler.save_pretrained(tmp_path)
    again = RectifiedFlowScheduler.from_pretrained(tmp_path)
    assert again.make_solver().overshoot == 2.5
    assert again.config.solver == "overshooting"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "rk45"}, "did you mean 'rk4'"),
        ({"solver": "euler", "solver_options": {"overshoot": 1.0}}, "option 'overshoot' is not known"),
        ({"solver": "overshooting", "solver_options": {"overshoot": -1.0}}, "overshoot: got -1.0"),
        ({"solver": "refresh", "solver_options": 3}, "solver_options: got 3"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        RectifiedFlowScheduler(**options)
