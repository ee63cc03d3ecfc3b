"""Update rules for the probability-flow ODE and SDEs of a Gaussian path: one class a file, no knowledge of models."""

from typing import Any

from genflow.registry import create_by_name
from genflow.solvers.adams_bashforth import AdamsBashforth
from genflow.solvers.base import Solver, check_times, combine
from genflow.solvers.curved_euler import CurvedEuler, StochasticCurvedEuler
from genflow.solvers.diffusion import DIFFUSIONS, Diffusion
from genflow.solvers.dpm_solver import DPMSolverPP
from genflow.solvers.euler import Euler
from genflow.solvers.frames import FRAMES, Frame, choose_frame
from genflow.solvers.ghvb import GHVB
from genflow.solvers.hb import HB
from genflow.solvers.heun import Heun
from genflow.solvers.overshooting import Overshooting
from genflow.solvers.refresh import NoiseRefresh
from genflow.solvers.runge_kutta import RungeKutta4
from genflow.solvers.sde_base import LAST_STEPS
from genflow.solvers.sde_euler import SDEEuler
from genflow.solvers.sde_exponential import SDEExponential
from genflow.solvers.sde_heun import SDEHeun
from genflow.solvers.stable_refresh import StableRefresh

__all__ = [
    "DIFFUSIONS",
    "FRAMES",
    "GHVB",
    "HB",
    "LAST_STEPS",
    "SOLVERS",
    "AdamsBashforth",
    "CurvedEuler",
    "DPMSolverPP",
    "Diffusion",
    "Euler",
    "Frame",
    "Heun",
    "NoiseRefresh",
    "Overshooting",
    "RungeKutta4",
    "SDEEuler",
    "SDEExponential",
    "SDEHeun",
    "Solver",
    "StableRefresh",
    "StochasticCurvedEuler",
    "check_times",
    "choose_frame",
    "combine",
    "create_solver",
]

_STOCHASTIC = (SDEEuler, SDEHeun, SDEExponential, NoiseRefresh, StableRefresh, Overshooting, StochasticCurvedEuler)

SOLVERS: dict[str, type[Solver]] = {
    cls.name: cls
    for cls in (Euler, CurvedEuler, Heun, RungeKutta4, AdamsBashforth, DPMSolverPP, HB, GHVB, *_STOCHASTIC)
}
"""Every solver by its name."""


def create_solver(name: str, **options: Any) -> Solver:
    """The solver called ``name``; raises InputError for a name or an option it does not know."""
    return create_by_name("solver", name, SOLVERS, options)
