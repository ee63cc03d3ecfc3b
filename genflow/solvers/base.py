"""The solver contract: what an update rule owns, and what a scheduler or a loop may ask of it."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from genflow.errors import InputError
from genflow.paths import Path, working_dtype
from genflow.prediction import Prediction

__all__ = ["Solver", "check_times", "combine"]


def check_times(times: np.ndarray) -> np.ndarray:
    """``times`` as float64; raises InputError unless two or more fall strictly within [0, 1]."""
    times = np.asarray(times, dtype=np.float64)
    if times.ndim != 1 or len(times) < 2:
        raise InputError(f"times: shape {times.shape}; allowed: one dimension, two times or more")
    if not (np.isfinite(times).all() and times[0] <= 1 and times[-1] >= 0 and (np.diff(times) < 0).all()):
        raise InputError(f"times: got {times.tolist()}; allowed: strictly falling from at most 1 to at least 0")
    return times


def combine(a: float, x: Tensor, b: float, y: Tensor) -> Tensor:
    """``a x + b y`` with host scalars; a term of weight 0 is left out, so that it cannot spoil the other."""
    if a == 0:
        return b * y
    if b == 0:
        return a * x
    return (b * y).add_(x, alpha=a)


class Solver(ABC):
    """An update rule along a fixed schedule, one instance for one run.

    ``start`` computes every scalar on the host in float64; ``step`` is a few tensor operations and never waits for
    the device. The caller asks the network at ``evaluations[i]``, hands the prediction to ``step`` with the same
    ``i``, and passes the state it gets back to the next evaluation. A run may begin at any ``i`` that begins a step.

    Attributes:
        name: the name in ``SOLVERS``.
        order: the order of convergence; of a rule with options, the order asked for.
        stochastic: whether ``step`` takes noise.
        option_names: the constructor's options, for ``create_solver`` and configurations.
        path, times: what ``start`` was given.
        evaluations: float64 times at which the network is asked, in order.
        step_of: for every evaluation, the index n of the step ``times[n] -> times[n + 1]`` it belongs to.
    """

    name: ClassVar[str]
    order: float
    stochastic: ClassVar[bool] = False
    option_names: ClassVar[tuple[str, ...]] = ()

    path: Path
    times: np.ndarray
    evaluations: np.ndarray
    step_of: np.ndarray

    def start(self, path: Path, times: np.ndarray) -> None:
        """Prepare for a run along ``times``, N + 1 falling times in [0, 1]; forgets all history.

        Raises InputError for times that do not fall strictly or lie outside [0, 1], and for a stochastic rule on a
        path whose noise is not Gaussian.
        """
        if self.stochastic and path.noise_law != "Gaussian":
            raise InputError(
                f"solver: {self.name!r} adds Gaussian noise, and that of {path!r} is {path.noise_law}; "
                "allowed there: a deterministic solver"
            )
        self.path, self.times = path, check_times(times)
        self._prepare()

    @abstractmethod
    def _prepare(self) -> None:
        """Set ``evaluations``, ``step_of`` and the scalars from ``path`` and ``times``; forget history."""

    @abstractmethod
    def _step(self, x: Tensor, prediction: Prediction, i: int, noise: Tensor | None) -> Tensor:
        """The update itself; ``x`` is float32 at least."""

    def draws(self, i: int) -> bool:
        """Whether evaluation ``i`` uses noise; a stochastic rule may have a last step without."""
        return self.stochastic

    def step(self, x: Tensor, prediction: Prediction, i: int, noise: Tensor | None = None) -> Tensor:
        """The state for evaluation ``i + 1`` (after the last one: the result), in ``x``'s dtype and float32 at least.

        ``x`` is the state at evaluation ``i`` and ``prediction`` the model's answer to it, both in the coordinates of
        ``path``; ``noise`` is standard normal in ``x``'s shape, wanted where ``draws(i)``. Raises InputError for an
        ``i`` outside the run, or where noise is missing.
        """
        if not 0 <= i < len(self.evaluations):
            raise InputError(f"step: evaluation {i} is outside the run; allowed: 0 to {len(self.evaluations) - 1}")
        if noise is None and self.draws(i):
            raise InputError(f"noise: None; solver {self.name!r} needs standard normal noise in the state's shape")
        return self._step(x.to(working_dtype(x)), prediction, i, noise)

    def to_config(self) -> dict[str, Any]:
        """The solver's name and options, JSON-safe; ``create_solver(**config)`` makes it again."""
        return {"name": self.name, **{option: getattr(self, option) for option in self.option_names}}
