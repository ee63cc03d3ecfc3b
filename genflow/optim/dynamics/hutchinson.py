"""Hutchinson's estimate of a trace. Hutchinson, Communications in Statistics 19 (1990)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from genflow.errors import check_number
from genflow.optim.dynamics.operators import Operator, as_operator, checked, start_vector

__all__ = ["Estimate", "trace"]


class Estimate(NamedTuple):
    """A mean over random probes.

    value: the mean.
    error: its standard error; None from a single probe, which shows no spread.
    """

    value: float
    error: float | None

    @classmethod
    def of(cls, samples: list[float]) -> "Estimate":
        """From independent samples."""
        mean = math.fsum(samples) / len(samples)
        if len(samples) == 1:
            return cls(mean, None)
        variance = math.fsum((sample - mean) ** 2 for sample in samples) / (len(samples) - 1)
        return cls(mean, math.sqrt(variance / len(samples)))


def trace(
    operator: Operator | Tensor, *, probes: int = 16, generator: torch.Generator | None = None, square: bool = False
) -> Estimate:
    """The trace of H, or of its square (the squared Frobenius norm), from products with random signs.

    Args:
        operator: a symmetric operator, or a matrix.
        probes: products spent.
        generator: of the signs; seed 0 by default.
        square: estimate the trace of :math:`H^2`, at the same cost.

    Raises:
        InputError: fewer than one probe.
        NonFiniteError: a product with NaN or infinity.
    """
    operator = as_operator(operator)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    samples = []
    for _ in range(int(check_number("probes", probes, at_least=1, integer=True))):
        probe = start_vector(operator, generator, "signs")
        product = checked(operator(probe), "trace")
        samples.append(float(product @ product if square else product @ probe))
    return Estimate.of(samples)
