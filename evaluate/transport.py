"""Sinkhorn-Newton-Sparse on the paper's kinds of problem: iterations of both stages, error against time, a figure.

``python -m genflow.evaluate.transport [--sizes 500 --sizes 1000] [--eta 1200] [--json FILE] [--plot FILE]``.
"""

import math

import torch
from torch import Tensor

from genflow.errors import check_choice, check_number
from genflow.transport import pairwise_cost

__all__ = ["KINDS", "make_problem"]

KINDS = ("random", "histograms-l1", "histograms-l2", "points", "images")
"""Uniform random costs; two drawn strokes on a grid (like MNIST's digits) with l1 or squared l2 costs; squared
distances of a plane's points; squared distances of noise and data in 784 dimensions, as a coupling of images has."""


def make_problem(kind: str, size: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Masses a (n,), b (m,) and a cost (n, m) up to 1, float64, with n and m near ``size``; see KINDS.

    Histograms have ``size`` pixels, most of them empty: these zero masses stay in.
    """
    check_choice("kind", kind, KINDS)
    check_number("size", size, at_least=2, integer=True)
    draw = torch.Generator().manual_seed(seed)
    a = b = torch.full((size,), 1 / size, dtype=torch.float64)
    if kind == "random":
        return a, b, torch.rand(size, size, generator=draw, dtype=torch.float64)
    if kind.startswith("histograms"):
        side = round(math.sqrt(size))
        axis = torch.arange(side, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis)
        a, b = (stroke(grid, side, draw) for _ in range(2))
        cost = torch.cdist(grid, grid, p=1) if kind.endswith("l1") else pairwise_cost(grid, grid)
    else:
        dimensions = 2 if kind == "points" else 784
        x, y = (torch.randn(size, dimensions, generator=draw, dtype=torch.float64) for _ in range(2))
        # Data: three groups, narrower than the noise.
        y = 0.3 * y + 2 * torch.randn(3, dimensions, generator=draw, dtype=torch.float64)[torch.arange(size) % 3]
        cost = pairwise_cost(x, y)
    return a, b, cost / cost.max()


def stroke(grid: Tensor, side: int, draw: torch.Generator) -> Tensor:
    """Masses (side^2,) of a random smooth curve drawn with a pen: grey levels, exactly 0 away from it."""
    time = torch.linspace(0, 1, 50, dtype=torch.float64).unsqueeze(-1)
    curve = torch.full((50, 2), 0.5, dtype=torch.float64)
    for wave in (1, 2):
        weight, phase = torch.rand(2, 2, generator=draw, dtype=torch.float64)
        curve = curve + (0.1 + 0.25 * weight) / wave * torch.sin(2 * math.pi * (wave * time * 0.7 + phase))
    distance = torch.cdist(grid, curve.clamp(0.1, 0.9) * (side - 1)).amin(-1)
    grey = (1 - distance / (0.08 * side)).clamp_min(0.0)
    return grey / grey.sum()
