"""Costs between points, exact assignment, and Wasserstein distances between sample sets."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from genflow.errors import InputError, check_number
from genflow.transport.newton import sinkhorn_newton
from genflow.transport.problem import as_float64

__all__ = ["exact_assignment", "pairwise_cost", "wasserstein"]


def pairwise_cost(x: Tensor, y: Tensor, p: float = 2) -> Tensor:
    """Euclidean distances to the power ``p`` between x (..., n, *shape) and y (..., m, *shape): (..., n, m).

    Points of more than one dimension (images) are given as (n, *shape) and (m, *shape); with exactly three
    dimensions the first is a batch of sets (B, n, d). Computed in float64; squared distances as a difference
    of norms after centring, good to about 1e-15 of the largest.
    """
    check_number("p", p, above=0)
    x, y = flat_points("x", x), flat_points("y", y)
    if x.ndim != y.ndim or x.shape[-1] != y.shape[-1] or (x.ndim == 3 and x.shape[0] != y.shape[0]):
        raise InputError(f"x, y: got {tuple(x.shape)} and {tuple(y.shape)}; allowed: (n, d) and (m, d), or batches")
    if p == 2:
        middle = x.mean(-2, keepdim=True)
        x, y = x - middle, y - middle
        squares = x.square().sum(-1).unsqueeze(-1) + y.square().sum(-1).unsqueeze(-2) - 2 * x @ y.mT
        return squares.clamp_min(0.0)
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").pow(p)


def flat_points(argument: str, points: Tensor) -> Tensor:
    points = as_float64(argument, points)
    if points.ndim < 2 or 0 in points.shape:
        raise InputError(
            f"{argument}: got shape {tuple(points.shape)}; allowed: (n, d), (B, n, d) or images (n, C, H, W)"
        )
    return points if points.ndim <= 3 else points.flatten(1)


def exact_assignment(cost: Tensor) -> Tensor:
    """The column (..., n), int64, that each row of a square cost (..., n, n) is given in the cheapest matching.

    scipy's ``linear_sum_assignment`` (exact, cubic at worst) one after another over the batch, on the CPU; the result
    is on the cost's device. ``inf`` forbids a pair. With fewer rows than columns every row gets its own column.

    Raises:
        InputError: more rows than columns, NaN or -inf, or pairs forbidden so that no matching is left.
    """
    value = as_float64("cost", cost)
    if value.ndim < 2 or 0 in value.shape or value.shape[-2] > value.shape[-1]:
        raise InputError(f"cost: got shape {tuple(value.shape)}; allowed: (..., n, m) with 1 <= n <= m")
    if bool((value.isnan() | value.isneginf()).any()):
        raise InputError("cost: got NaN or -inf; allowed: finite numbers, and inf for a forbidden pair")
    device = cost.device if isinstance(cost, Tensor) else value.device
    matrices = value.reshape(-1, *value.shape[-2:]).cpu().numpy()
    try:
        columns = [torch.from_numpy(linear_sum_assignment(matrix)[1]) for matrix in matrices]
    except ValueError:
        raise InputError("cost: infinite so often that no matching is left; allowed: one finite matching") from None
    return torch.stack(columns).reshape(value.shape[:-1]).to(device)


def wasserstein(x: Tensor, y: Tensor, p: float = 2, reg: float | None = None, *, tolerance: float = 1e-6) -> float:
    """The Wasserstein-p distance ``(min <P, |x - y|^p>)^(1/p)`` between two sets of equally weighted samples.

    Exact, by assignment, for sets of one size (cubic at worst) and without ``reg``. With ``reg`` (in the unit of
    ``|x - y|^p``) the plan is the entropic one, whose cost is above the exact one by at most
    ``reg * log(min(n, m))``; the entropy itself is not counted.

    Args:
        x: samples (n, *shape).
        y: samples (m, *shape); m may differ from n when ``reg`` is given.
        p: the power, at least 1 (below, it is not a distance).
        reg: the entropy's weight; None for the exact distance.
        tolerance: marginal error at which the entropic solver stops.

    Raises:
        InputError: shapes that do not fit, or sizes that differ without ``reg``.
    """
    check_number("p", p, at_least=1)
    cost = pairwise_cost(x, y, p)
    if cost.ndim != 2:
        raise InputError(f"x, y: got {cost.shape[0]} sets each; allowed: one set each, (n, d)")
    if reg is not None:
        value = sinkhorn_newton(None, None, cost, reg, tolerance=tolerance).value
    elif cost.shape[0] == cost.shape[1]:
        value = cost.gather(-1, exact_assignment(cost).unsqueeze(-1)).mean()
    else:
        raise InputError(f"reg: got None for {cost.shape[0]} and {cost.shape[1]} samples; allowed: a number above 0")
    return float(value) ** (1 / p)
