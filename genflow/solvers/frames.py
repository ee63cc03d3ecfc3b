"""Frames: the coordinates in which a solver integrates a Gaussian path's probability-flow ODE.

Scaled by the right factor, a path becomes a straight line in its clock: ``z = x / scale``, ``dz/du = y`` with y one
of the model's predictions. Over one step with y held constant this is ``x' = a x + b y``, the same step in every
frame (DDIM; Euler on a rectified flow); rules of higher order differ from frame to frame.

| frame    | scale         | clock u                 | y               | rest          |
|----------|---------------|-------------------------|-----------------|---------------|
| epsilon  | alpha         | sigma / alpha           | epsilon         | sigma         |
| velocity | alpha + sigma | sigma / (alpha + sigma) | flow_prediction | sigma         |
| denoised | sigma         | alpha / sigma           | sample          | alpha         |

On a linear path the velocity frame is the path itself: u = sigma, y = dx/du.
In the denoised frame multistep rules take y as a polynomial in log u, not in u (:mod:`genflow.solvers.multistep`).
"""

import math
from dataclasses import dataclass

import numpy as np

from genflow.errors import check_choice
from genflow.paths import EDMPath, Path, VPPath

__all__ = ["FRAMES", "Frame", "choose_frame", "near_noise"]


@dataclass(frozen=True)
class Frame:
    """One row of the table above.

    Attributes:
        name: what the frame is called.
        kind: the prediction kind y.
    """

    name: str
    kind: str

    def scale(self, path: Path, t: np.ndarray) -> np.ndarray:
        """The factor between x and z at times ``t``, float64. A step cannot start where it is 0."""
        if self.name == "epsilon":
            return path.alpha(t)
        if self.name == "denoised":
            return path.sigma(t)
        return path.alpha(t) + path.sigma(t)

    def clock(self, path: Path, t: np.ndarray) -> np.ndarray:
        """The variable u that y is integrated over, float64."""
        with np.errstate(divide="ignore"):
            return self._rest(path, t) / self.scale(path, t)

    def level(self, u: float) -> float:
        """The noise level at which the clock shows ``u``: what turns a clock into a time."""
        if self.name == "epsilon":
            return u
        top, bottom = (1.0, u) if self.name == "denoised" else (u, 1.0 - u)
        return top / bottom if bottom > 0 else math.inf

    def _rest(self, path: Path, t: np.ndarray) -> np.ndarray:
        return path.alpha(t) if self.name == "denoised" else path.sigma(t)

    def weights(self, path: Path, t: np.ndarray, t_next: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``(a, b)`` of ``x' = a x + b y`` from ``t`` to ``t_next``: ``a = scale'/scale``, ``b = rest' - a rest``."""
        with np.errstate(divide="ignore", invalid="ignore"):
            a = self.scale(path, t_next) / self.scale(path, t)
            return a, self._rest(path, t_next) - a * self._rest(path, t)


FRAMES: dict[str, Frame] = {
    "epsilon": Frame("epsilon", "epsilon"),
    "velocity": Frame("velocity", "flow_prediction"),
    "denoised": Frame("denoised", "sample"),
}


def near_noise(path: Path, t: float) -> bool:
    """Whether ``t`` is pure noise, or nearly: a cosine table begins at a level of 20,000, and the next is 40.

    The epsilon frame's clock makes one huge step of that, over which no mean of slopes is worth anything.
    """
    return bool(path.alpha(t) * 1000 <= path.sigma(t)) and not isinstance(path, EDMPath)


def choose_frame(name: str, path: Path) -> Frame:
    """The frame called ``name``; ``auto`` is epsilon on VP and EDM paths and velocity on others.

    Raises InputError for another name.
    """
    if check_choice("frame", name, ("auto", *FRAMES)) == "auto":
        name = "epsilon" if isinstance(path, (VPPath, EDMPath)) else "velocity"
    return FRAMES[name]
