"""The density of a spectrum by stochastic Lanczos quadrature.

Ubaru, Chen and Saad, "Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature", SIAM J. Matrix Anal. Appl. 38
(2017); for Hessians of networks Ghorbani, Krishnan and Xiao, arXiv 1901.10159.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genflow.errors import InputError, check_number
from genflow.optim.dynamics.hutchinson import Estimate
from genflow.optim.dynamics.krylov import lanczos
from genflow.optim.dynamics.operators import Operator, as_operator, start_vector

__all__ = ["Spectrum", "slq"]


@dataclass(frozen=True)
class Spectrum:
    """Quadrature nodes and weights of the spectral density, a set for each probe.

    size: number of eigenvalues.
    nodes: float64 (k,) for each probe, ascending.
    weights: float64 (k,) for each probe; they sum to 1.
    products: matrix-vector products spent.
    """

    size: int
    nodes: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    products: int = 0

    @property
    def largest(self) -> float:
        """The largest node: a lower bound of the largest eigenvalue, and close to it where it stands apart."""
        return max(float(nodes[-1]) for nodes in self.nodes)

    @property
    def smallest(self) -> float:
        """The smallest node: an upper bound of the smallest eigenvalue."""
        return min(float(nodes[0]) for nodes in self.nodes)

    def mean(self, function: Callable[[Tensor], Tensor]) -> Estimate:
        """The mean of ``function`` over the eigenvalues, with its standard error over the probes."""
        pairs = zip(self.nodes, self.weights, strict=True)
        return Estimate.of([float(weights @ function(nodes)) for nodes, weights in pairs])

    def moment(self, order: int) -> Estimate:
        """The mean of the eigenvalues' power ``order``; for a probe exact up to order 2 k - 1."""
        return self.mean(lambda nodes: nodes**order)

    def trace(self) -> Estimate:
        """The sum of the eigenvalues."""
        value, error = self.moment(1)
        return Estimate(self.size * value, None if error is None else self.size * error)

    def density(self, grid: Tensor, width: float | None = None) -> Tensor:
        """The density at ``grid`` (n,), each node smoothed by a normal of standard deviation ``width``: float64 (n,).

        It integrates to 1. ``width`` is a hundredth of the spectrum's extent by default.
        """
        if width is None:
            width = max(self.largest - self.smallest, abs(self.largest), 1e-30) / 100
        check_number("width", width, above=0)
        grid = grid.to("cpu", torch.float64)
        total = torch.zeros_like(grid)
        for nodes, weights in zip(self.nodes, self.weights, strict=True):
            distance = (grid[:, None] - nodes) / width
            total += (-distance.square() / 2).exp() @ weights
        return total / (len(self.nodes) * width * math.sqrt(2 * math.pi))

    def to_json(self) -> dict[str, Any]:
        """Lists and numbers alone; :meth:`from_json` reads them."""
        return {
            "size": self.size,
            "nodes": [nodes.tolist() for nodes in self.nodes],
            "weights": [weights.tolist() for weights in self.weights],
            "products": self.products,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Spectrum":
        """What :meth:`to_json` wrote.

        Raises:
            InputError: a key is missing, or nodes and weights do not fit.
        """
        try:
            nodes = tuple(torch.tensor(row, dtype=torch.float64) for row in values["nodes"])
            weights = tuple(torch.tensor(row, dtype=torch.float64) for row in values["weights"])
            result = cls(int(values["size"]), nodes, weights, int(values.get("products", 0)))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"spectrum: cannot be read ({error!r}); allowed: what to_json gives") from error
        if not nodes or [len(row) for row in nodes] != [len(row) for row in weights]:
            raise InputError("spectrum: nodes and weights do not fit; allowed: what to_json gives")
        return result


def slq(
    operator: Operator | Tensor,
    *,
    steps: int = 30,
    probes: int = 4,
    generator: torch.Generator | None = None,
) -> Spectrum:
    """Estimate the spectrum from ``probes`` runs of ``steps`` Lanczos steps, each from random signs.

    Args:
        operator: a symmetric operator, or a matrix.
        steps: nodes a probe; the ends of the spectrum need few, separated bulks more.
        probes: more make the weights surer: their error falls as the root of probes times size.
        generator: of the signs; seed 0 by default.

    Raises:
        InputError: a number below 1.
        NonFiniteError: a product with NaN or infinity.
    """
    operator = as_operator(operator)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    all_nodes, all_weights = [], []
    for _ in range(int(check_number("probes", probes, at_least=1, integer=True))):
        nodes, vectors = lanczos(operator, start_vector(operator, generator, "signs"), steps).eigen()
        all_nodes.append(nodes)
        all_weights.append(vectors[0].square())
    products = sum(len(nodes) for nodes in all_nodes)
    return Spectrum(operator.size, tuple(all_nodes), tuple(all_weights), products)
