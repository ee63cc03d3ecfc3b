"""How long a step may be: the stability of multistep rules on the linear test equation, found by running them."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from genflow.models import from_function
from genflow.paths import LinearPath
from genflow.solvers import create_solver

STEPS = 1000
SIZES = np.geomspace(0.05, 20, 2500)  # a quarter of a per cent apart


def longest_step(angle: float, name: str, **options: object) -> float:
    """The first of ``SIZES`` for which ``x' = x + z x`` in exact steps, ``z = -size exp(i angle)``, does not decay.

    All sizes run at once, as samples of one batch.
    """
    times = np.linspace(1, 0.5, STEPS + 1)
    # time runs down: what decays on the way grows with t
    rates = torch.from_numpy(SIZES * np.exp(1j * angle) * STEPS / 0.5).unsqueeze(1)

    def velocity(x: Tensor, t: float) -> Tensor:
        return torch.view_as_real(rates * torch.view_as_complex(x))

    model = from_function(velocity, LinearPath(), "velocity")
    x = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(len(SIZES), 1, 2).contiguous()
    solver = create_solver(name, frame="velocity", **options)
    solver.start(model.path, times)
    for i, t in enumerate(solver.evaluations):
        x = solver.step(x, model.predict(x, float(t)), i)
    decays = (x.flatten(1).norm(dim=1) <= 1).numpy()  # False where there is NaN
    return float(SIZES[np.argmin(decays)])


@pytest.mark.parametrize(("order", "interval"), [(1, 2.0), (2, 1.0), (3, 6 / 11), (4, 3 / 10)])
def test_adams_bashforth_has_the_textbook_interval(order: int, interval: float) -> None:
    assert longest_step(0, "ab", order=order) == pytest.approx(interval, rel=0.01)
    assert longest_step(0, "ghvb", order=order) == pytest.approx(interval, rel=0.01)


@pytest.mark.parametrize("beta", [0.3, 0.6, 0.9])
def test_momentum_of_the_first_order_in_closed_form(beta: float) -> None:
    """``v' = (1 - b) v + b y``, ``x' = x + h v``: stable as long as ``b z > -2 (2 - b)``."""
    expected = 2 * (2 - beta) / beta
    assert longest_step(0, "ghvb", order=beta) == pytest.approx(expected, rel=0.01)
    assert longest_step(0, "hb", order=1, beta=beta) == pytest.approx(expected, rel=0.01)


def test_the_interval_widens_as_the_order_falls() -> None:
    """GHVB goes from Adams-Bashforth to Adams-Bashforth, momentum between them."""
    found = [longest_step(0, "ghvb", order=order) for order in (4.0, 3.7, 3.3, 3.0, 2.7, 2.3, 2.0, 1.5, 1.0, 0.7)]
    assert all(1.05 * before < after for before, after in itertools.pairwise(found)), found


@pytest.mark.parametrize("order", [2, 3, 4])
def test_the_region_widens_as_heavy_ball_s_beta_falls(order: int) -> None:
    """Along the real axis and off it."""
    for angle in (0.0, 0.5, 1.0):
        found = [longest_step(angle, "hb", order=order, beta=beta) for beta in (1.0, 0.9, 0.8)]
        assert all(1.02 * before < after for before, after in itertools.pairwise(found)), (angle, found)
