"""Subspaces of a matrix in which FRUGAL keeps optimizer state. Zmushko et al., arXiv 2411.07837, section 3 and
appendix A; each is chosen anew every few steps, from a seed or from the gradient."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["SUBSPACES", "Basis", "Columns", "Entries", "RandomBasis", "Rows", "Subspace", "SvdBasis", "count"]


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
    def lift(self, like: Tensor, chosen: Tensor, values: Tensor) -> Tensor:
        """The matrix, shaped as ``like``, that has coordinates ``values`` in the part and nothing outside."""


class _Entries(Subspace):
    """A part that consists of entries: these can be written over."""

    @abstractmethod
    def put_(self, x: Tensor, chosen: Tensor, values: Tensor) -> None:
        """Write ``values`` into the part of ``x``, a contiguous matrix."""

    def lift(self, like: Tensor, chosen: Tensor, values: Tensor) -> Tensor:
        self.put_(x := like.new_zeros(like.shape), chosen, values)
        return x


class _Lines(_Entries):
    """Whole rows or columns, drawn without replacement."""

    dim: int

    def choose(self, grad: Tensor, density: float, generator: torch.Generator) -> Tensor:
        total = grad.shape[self.dim]
        drawn = torch.randperm(total, generator=generator)[: count(total, density)]
        return drawn.sort().values.to(grad.device)

    def take(self, x: Tensor, chosen: Tensor) -> Tensor:
        return x.index_select(self.dim, chosen)

    def put_(self, x: Tensor, chosen: Tensor, values: Tensor) -> None:
        x.index_copy_(self.dim, chosen, values)


class Columns(_Lines):
    """Columns: inputs of a Linear, kernel positions of a convolution flattened to (out, rest)."""

    dim = 1


class Rows(_Lines):
    """Rows: outputs."""

    dim = 0


class Entries(_Entries):
    """Single entries, drawn without replacement (RandK); kept as int32, a byte a weight at density 1/4."""

    def choose(self, grad: Tensor, density: float, generator: torch.Generator) -> Tensor:
        drawn = torch.randperm(grad.numel(), generator=generator)[: count(grad.numel(), density)]
        return drawn.sort().values.to(grad.device, torch.int32 if grad.numel() < 2**31 else torch.int64)

    def take(self, x: Tensor, chosen: Tensor) -> Tensor:
        return x.flatten().index_select(0, chosen)

    def put_(self, x: Tensor, chosen: Tensor, values: Tensor) -> None:
        x.view(-1).index_copy_(0, chosen.long(), values)


class Basis(Subspace):
    """A few directions of the shorter side, as orthonormal columns."""

    @staticmethod
    def _left(x: Tensor) -> bool:
        return x.shape[0] < x.shape[1]

    def take(self, x: Tensor, chosen: Tensor) -> Tensor:
        return chosen.T @ x if self._left(x) else x @ chosen

    def lift(self, like: Tensor, chosen: Tensor, values: Tensor) -> Tensor:
        return chosen @ values if self._left(like) else values @ chosen.T

    def residual(self, grad: Tensor, chosen: Tensor, values: Tensor) -> Tensor:
        """``grad`` less its part, whose coordinates are ``values``.

        What is only rounding becomes zero: its sign would be of full size.
        """
        rest = grad - self.lift(grad, chosen, values)
        noise = 4 * max(grad.shape) * torch.finfo(grad.dtype).eps * grad.abs().amax()
        return torch.where(rest.abs() > noise, rest, 0)


class SvdBasis(Basis):
    """The leading singular vectors of the gradient at hand (GaLore's choice)."""

    def choose(self, grad: Tensor, density: float, generator: torch.Generator) -> Tensor:
        left, _, right = torch.linalg.svd(grad, full_matrices=False)
        rank = count(min(grad.shape), density)
        return left[:, :rank].contiguous() if self._left(grad) else right[:rank].T.contiguous()


class RandomBasis(Basis):
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
