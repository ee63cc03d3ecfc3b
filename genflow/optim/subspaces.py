"""Subspaces of a matrix in which FRUGAL keeps optimizer state. Zmushko et al., arXiv 2411.07837, section 3 and
appendix A; each is chosen anew every few steps, from a seed or from the gradient."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["SUBSPACES", "Columns", "Entries", "RandomBasis", "Rows", "Subspace", "SvdBasis", "count"]


def count(total: int, density: float) -> int:
    """How many of ``total`` make up ``density``: rounded, and at least one unless ``density`` is zero."""
    return max(1, round(total * density)) if density > 0 else 0


class Subspace(ABC):
    """A way to choose part of a matrix. ``chosen`` is a tensor that says which part; it goes into the state."""

    @abstractmethod
    def choose(self, grad: Tensor, density: float, generator: torch.Generator) -> Tensor:
        """The part for a gradient of shape (rows, columns); random choices come from ``generator`` (on the CPU)."""

    @abstractmethod
    def take(self, x: Tensor, chosen: Tensor) -> Tensor:
        """The coordinates of ``x`` in the part."""

    @abstractmethod
    def without(self, x: Tensor, chosen: Tensor) -> Tensor:
        """A new matrix: ``x`` less its part."""

    def residual(self, grad: Tensor, chosen: Tensor) -> Tensor:
        """As :meth:`without`, for a gradient: what is only rounding is zero, for its sign would be of full size."""
        return self.without(grad, chosen)

    @abstractmethod
    def put_(self, x: Tensor, chosen: Tensor, values: Tensor) -> None:
        """Put the matrix with coordinates ``values`` into ``x``: entries are replaced, bases added to the rest."""


class _Lines(Subspace):
    """Whole rows or columns, drawn without replacement."""

    dim: int

    def choose(self, grad: Tensor, density: float, generator: torch.Generator) -> Tensor:
        total = grad.shape[self.dim]
        drawn = torch.randperm(total, generator=generator)[: count(total, density)]
        return drawn.sort().values.to(grad.device)

    def take(self, x: Tensor, chosen: Tensor) -> Tensor:
        return x.index_select(self.dim, chosen)

    def without(self, x: Tensor, chosen: Tensor) -> Tensor:
        return x.index_fill(self.dim, chosen, 0)

    def put_(self, x: Tensor, chosen: Tensor, values: Tensor) -> None:
        x.index_copy_(self.dim, chosen, values)


class Columns(_Lines):
    """Columns: inputs of a Linear, kernel positions of a convolution flattened to (out, rest)."""

    dim = 1


class Rows(_Lines):
    """Rows: outputs."""

    dim = 0


class Entries(Subspace):
    """Single entries, drawn without replacement (RandK); kept as int32, a byte a weight at density 1/4."""

    def choose(self, grad: Tensor, density: float, generator: torch.Generator) -> Tensor:
        drawn = torch.randperm(grad.numel(), generator=generator)[: count(grad.numel(), density)]
        return drawn.sort().values.to(grad.device, torch.int32 if grad.numel() < 2**31 else torch.int64)

    def take(self, x: Tensor, chosen: Tensor) -> Tensor:
        return x.flatten().index_select(0, chosen)

    def without(self, x: Tensor, chosen: Tensor) -> Tensor:
        return x.flatten().index_fill(0, chosen.long(), 0).view(x.shape)

    def put_(self, x: Tensor, chosen: Tensor, values: Tensor) -> None:
        x.view(-1).index_copy_(0, chosen.long(), values)


class _Basis(Subspace):
    """A few directions of the shorter side, as orthonormal columns."""

    @staticmethod
    def _left(x: Tensor) -> bool:
        return x.shape[0] < x.shape[1]

    def take(self, x: Tensor, chosen: Tensor) -> Tensor:
        return chosen.T @ x if self._left(x) else x @ chosen

    def _lift(self, x: Tensor, chosen: Tensor, values: Tensor) -> Tensor:
        return chosen @ values if self._left(x) else values @ chosen.T

    def without(self, x: Tensor, chosen: Tensor) -> Tensor:
        return x - self._lift(x, chosen, self.take(x, chosen))

    def residual(self, grad: Tensor, chosen: Tensor) -> Tensor:
        rest = self.without(grad, chosen)
        noise = 4 * max(grad.shape) * torch.finfo(grad.dtype).eps * grad.abs().amax()
        return torch.where(rest.abs() > noise, rest, 0)

    def put_(self, x: Tensor, chosen: Tensor, values: Tensor) -> None:
        x.add_(self._lift(x, chosen, values))


class SvdBasis(_Basis):
    """The leading singular vectors of the gradient at hand (GaLore's choice)."""

    def choose(self, grad: Tensor, density: float, generator: torch.Generator) -> Tensor:
        left, _, right = torch.linalg.svd(grad, full_matrices=False)
        rank = count(min(grad.shape), density)
        return left[:, :rank].contiguous() if self._left(grad) else right[:rank].T.contiguous()


class RandomBasis(_Basis):
    """Random directions: the orthonormal factor of a Gaussian matrix."""

    def choose(self, grad: Tensor, density: float, generator: torch.Generator) -> Tensor:
        side = min(grad.shape)
        normal = torch.randn(side, count(side, density), generator=generator, dtype=torch.float64)
        return torch.linalg.qr(normal).Q.to(grad.device, grad.dtype)


SUBSPACES: dict[str, Subspace] = {
    "columns": Columns(),
    "rows": Rows(),
    "entries": Entries(),
    "svd": SvdBasis(),
    "random": RandomBasis(),
}
"""By name. ("blocks", whole tensors, is no part of a matrix: :class:`genflow.optim.FRUGAL` does it.)"""
