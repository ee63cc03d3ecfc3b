"""Update rules for the probability-flow ODE of a Gaussian path: one class a file, no knowledge of models."""

from typing import Any

from genflow.errors import InputError, check_choice, nearest
from genflow.solvers.adams_bashforth import AdamsBashforth
from genflow.solvers.base import Solver, check_times, combine
from genflow.solvers.dpm_solver import DPMSolverPP
from genflow.solvers.euler import Euler
from genflow.solvers.frames import FRAMES, Frame, choose_frame
from genflow.solvers.ghvb import GHVB
from genflow.solvers.hb import HB
from genflow.solvers.heun import Heun
from genflow.solvers.runge_kutta import RungeKutta4

__all__ = [
    "FRAMES",
    "GHVB",
    "HB",
    "SOLVERS",
    "AdamsBashforth",
    "DPMSolverPP",
    "Euler",
    "Frame",
    "Heun",
    "RungeKutta4",
    "Solver",
    "check_times",
    "choose_frame",
    "combine",
    "create_solver",
]

SOLVERS: dict[str, type[Solver]] = {
    cls.name: cls for cls in (Euler, Heun, RungeKutta4, AdamsBashforth, DPMSolverPP, HB, GHVB)
}
"""Every solver by its name."""


def create_solver(name: str, **options: Any) -> Solver:
    """The solver called ``name``; raises InputError for a name or an option it does not know."""
    cls = SOLVERS[check_choice("solver", name, SOLVERS)]
    for option in options:
        if option not in cls.option_names:
            raise InputError(
                f"solver {name!r}: option {option!r} is not known{nearest(option, cls.option_names)}; "
                f"allowed: {', '.join(cls.option_names) or 'none'}"
            )
    return cls(**options)
