"""Update rules for the probability-flow ODE of a Gaussian path: one class a file, no knowledge of models."""

from typing import Any

from genflow.errors import InputError, check_choice, nearest
from genflow.solvers.base import Solver, check_times, combine
from genflow.solvers.euler import Euler
from genflow.solvers.frames import FRAMES, Frame
from genflow.solvers.heun import Heun

__all__ = ["FRAMES", "SOLVERS", "Euler", "Frame", "Heun", "Solver", "check_times", "combine", "create_solver"]

SOLVERS: dict[str, type[Solver]] = {cls.name: cls for cls in (Euler, Heun)}
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
