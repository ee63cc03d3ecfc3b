"""Symmetric operators on flat vectors, and the way between flat vectors and lists of parameters."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from genflow.errors import InputError, NonFiniteError

__all__ = ["Operator", "as_operator", "checked", "flatten", "scaled", "start_vector", "unflatten"]


class Operator:
    """A symmetric matrix that is known by its products."""

    def __init__(
        self,
        apply: Callable[[Tensor], Tensor],
        size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """``apply`` maps a vector (size,) to a vector (size,); dtype and device are those of the vectors."""
        self.apply = apply
        self.size, self.dtype, self.device = size, dtype, torch.device(device)

    def __call__(self, vector: Tensor) -> Tensor:
        return self.apply(vector)


def as_operator(matrix: Operator | Tensor) -> Operator:
    """An operator, or a symmetric matrix (n, n) as one.

    Raises:
        InputError: a tensor that is not square.
    """
    if not isinstance(matrix, Tensor):
        return matrix
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"operator: got a tensor of shape {tuple(matrix.shape)}; allowed: a square matrix")
    return Operator(lambda vector: matrix @ vector, len(matrix), matrix.dtype, matrix.device)


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """One vector (size,) of all entries, in order; entries of a tensor stand in row-major order of its shape."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of :func:`flatten`: views of ``vector`` in the shapes of ``like``."""
    parts = vector.split([tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


def scaled(operator: Operator, scale: Tensor, diagonal: Tensor | None = None) -> Operator:
    r"""The symmetric operator :math:`S^{1/2} (H + W) S^{1/2}`, which has the eigenvalues of :math:`S (H + W)`.

    Args:
        operator: H.
        scale: diagonal of S (size,), nonnegative.
        diagonal: diagonal of W (size,); none by default.
    """
    root = scale.sqrt()

    def apply(vector: Tensor) -> Tensor:
        inner = root * vector
        product = operator(inner)
        if diagonal is not None:
            product = product + diagonal * inner
        return root * product

    return Operator(apply, operator.size, operator.dtype, operator.device)


def start_vector(operator: Operator, generator: torch.Generator | None, kind: str = "normal") -> Tensor:
    """A random vector (size,): standard normal, or of random signs (``kind="signs"``).

    It is drawn on the generator's device, so that a generator on the host gives the same vector on every device.
    Without a generator one with seed 0 is used: results repeat.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    shape = (operator.size,)
    if kind == "signs":
        drawn = torch.randint(0, 2, shape, generator=generator, device=generator.device) * 2 - 1
    else:
        drawn = torch.randn(shape, generator=generator, device=generator.device)
    return drawn.to(operator.device, operator.dtype)


def checked(product: Tensor, what: str) -> Tensor:
    """``product`` if it is finite.

    Raises:
        NonFiniteError: NaN or infinity in it.
    """
    if not torch.isfinite(product).all():
        raise NonFiniteError(f"{what}: a matrix-vector product holds NaN or infinity")
    return product
