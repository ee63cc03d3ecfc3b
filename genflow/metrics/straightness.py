"""How straight a flow's trajectories are: what one Euler step gets wrong, where, and how sharply they bend."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genflow.errors import InputError

__all__ = ["Straightness", "measure_straightness"]


@dataclass(frozen=True)
class Straightness:
    """What :func:`measure_straightness` found; means are over samples and dimensions.

    Attributes:
        straightness: ``S = int E |(Z1 - Z0) - v(Z_t, t)|^2 dt`` (Liu et al. 2023, arXiv 2209.03003, section 2.1); 0
            where every trajectory is straight and of constant speed, when one Euler step is exact.
        curvature: ``int E |dv/dt|^2 dt``, the acceleration along the trajectories.
        detour: length of the trajectories over the distance of their ends; 1 where they are straight, at any speed; NaN
            where nothing moved.
        profile: the integrand of S at every time, float64 ``(T,)``.
        times: those times, float64 ``(T,)``.
    """

    straightness: float
    curvature: float
    detour: float
    profile: Tensor
    times: Tensor


def measure_straightness(times: np.ndarray | Tensor, states: Tensor, velocities: Tensor) -> Straightness:
    """Straightness of trajectories that a solver went along.

    Integrals are trapezoid sums over the given times; dividing by the interval makes them means over time, which for
    a whole run from 0 to 1 are the integrals themselves.

    Args:
        times: the flow's times, strictly rising or falling, ``(T,)``.
        states: where each sample was, ``(T, B, ...)``.
        velocities: the flow's velocity there with respect to ``times``, in the same shape.

    Raises:
        InputError: shapes that do not fit, fewer than two times, times that do not run one way, values that are NaN
            or infinite.
    """
    times = torch.as_tensor(times, dtype=torch.float64).cpu()
    if times.ndim != 1 or len(times) < 2 or not (bool((times.diff() > 0).all()) or bool((times.diff() < 0).all())):
        raise InputError(f"times: got {times.tolist()}; allowed: two or more, strictly rising or falling")
    if states.shape != velocities.shape or states.ndim < 2 or len(states) != len(times) or states.numel() == 0:
        raise InputError(
            f"states and velocities: shapes {tuple(states.shape)} and {tuple(velocities.shape)}; allowed: one shape "
            f"({len(times)}, B, ...)"
        )
    for name, values in (("states", states), ("velocities", velocities)):
        if not bool(torch.isfinite(values).all()):
            raise InputError(f"{name}: got NaN or infinity; allowed: finite values")
    span = float(times[-1] - times[0])
    chord = (states[-1] - states[0]) / span
    # one time after the other, so that no second copy of everything is made
    profile = torch.stack([_mean_square(chord - velocity) for velocity in velocities])
    bends = torch.stack([_mean_square(after - before) for before, after in itertools.pairwise(velocities)])
    length = sum(float(_length(after - before)) for before, after in itertools.pairwise(states))
    distance = float(_length(states[-1] - states[0]))
    return Straightness(
        straightness=float(torch.trapezoid(profile, times) / span),
        curvature=float((bends / times.diff().abs()).sum() / abs(span)),
        detour=length / distance if distance > 0 else math.nan,
        profile=profile,
        times=times,
    )


def _mean_square(values: Tensor) -> Tensor:
    values = values.to(torch.promote_types(values.dtype, torch.float32))  # half precision overflows
    return values.square().mean().cpu().double()


def _length(differences: Tensor) -> Tensor:
    """The summed lengths of ``(B, ...)``."""
    differences = differences.to(torch.promote_types(differences.dtype, torch.float32))
    return differences.flatten(1).norm(dim=1).sum().cpu().double()
