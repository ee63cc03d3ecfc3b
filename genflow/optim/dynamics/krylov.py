"""Lanczos' tridiagonal form with full reorthogonalization, and the end of a spectrum.

Golub and Van Loan, "Matrix Computations", 4th edition, section 10.3.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from genflow.errors import check_choice, check_number
from genflow.optim.dynamics.operators import Operator, as_operator, checked, start_vector

__all__ = ["Eigenvalue", "Tridiagonal", "lanczos", "largest_eigenvalue"]

_BREAKDOWN = 32  # times the precision of the vectors: what is left of a vector is rounding


class Tridiagonal(NamedTuple):
    """What k steps found: :math:`H Q^T = Q^T T + \\beta_k q_{k+1} e_k^T`.

    diagonal: of T, float64 on the host (k,).
    off_diagonal: of T, float64 on the host (k - 1,).
    residual: :math:`\\beta_k`, what the next step would divide by; 0 where the start vector spans no more.
    basis: Q (k, size), orthonormal rows.
    """

    diagonal: Tensor
    off_diagonal: Tensor
    residual: float
    basis: Tensor

    def eigen(self) -> tuple[Tensor, Tensor]:
        """Ritz values, ascending (k,), and the eigenvectors of T as columns (k, k), float64."""
        off = torch.diag(self.off_diagonal, 1)
        return torch.linalg.eigh(torch.diag(self.diagonal) + off + off.T)


def lanczos(operator: Operator | Tensor, start: Tensor, steps: int) -> Tridiagonal:
    """At most ``steps`` steps from ``start`` (size,); fewer where its Krylov space ends.

    One product and two orthogonalizations against all vectors so far a step; ``steps`` vectors are kept.

    Raises:
        InputError: fewer than one step, or a zero start.
        NonFiniteError: a product with NaN or infinity.
    """
    state = _Lanczos(as_operator(operator), start, steps)
    while state.extend():
        pass
    return state.result()


class _Lanczos:
    """The recurrence, one step a call."""

    def __init__(self, operator: Operator, start: Tensor, steps: int) -> None:
        check_number("steps", steps, at_least=1, integer=True)
        norm = check_number("start: norm", float(start.norm()), above=0)
        self.operator = operator
        self.rows = start.new_empty(min(int(steps), operator.size), operator.size)
        self.rows[0] = start / norm
        self.diagonal: list[float] = []
        self.residuals: list[float] = []

    def extend(self) -> bool:
        """One step; False where it was the last: all were taken, or the Krylov space ended."""
        count = len(self.diagonal) + 1
        basis = self.rows[:count]
        product = checked(self.operator(basis[-1]), "lanczos")
        size = float(product.norm())
        self.diagonal.append(float(product @ basis[-1]))
        for _ in range(2):  # once leaves errors of the size of what is taken away
            product = product - basis.T @ (basis @ product)
        norm = float(product.norm())
        scale = max(size, *self.residuals, 0.0)
        ended = count == self.operator.size or norm <= _BREAKDOWN * torch.finfo(product.dtype).eps * scale
        self.residuals.append(0.0 if ended else norm)
        if ended or count == len(self.rows):
            return False
        self.rows[count] = product / norm
        return True

    def result(self) -> Tridiagonal:
        count = len(self.diagonal)
        diagonal, residuals = (torch.tensor(row, dtype=torch.float64) for row in (self.diagonal, self.residuals))
        return Tridiagonal(diagonal, residuals[:-1], self.residuals[-1], self.rows[:count])


class Eigenvalue(NamedTuple):
    """An estimate of an eigenvalue.

    value: the estimate; for the largest eigenvalue a lower bound.
    error: some eigenvalue is within this of ``value`` (the norm of the residual H v - value v).
    products: matrix-vector products spent.
    vector: the unit vector (size,) that belongs to it.
    """

    value: float
    error: float
    products: int
    vector: Tensor


def largest_eigenvalue(
    operator: Operator | Tensor,
    *,
    steps: int = 30,
    tolerance: float = 1e-3,
    which: Literal["algebraic", "magnitude"] = "algebraic",
    method: Literal["lanczos", "power"] = "lanczos",
    generator: torch.Generator | None = None,
    start: Tensor | None = None,
) -> Eigenvalue:
    """The largest eigenvalue, or the one largest in magnitude.

    Args:
        operator: a symmetric operator, or a matrix.
        steps: at most so many products.
        tolerance: stop when the residual is below this times the estimate.
        which: "algebraic" is what stability asks for: curvature downwards is no reason to diverge.
        method: "lanczos" converges far faster and keeps ``steps`` vectors; "power" keeps two.
        generator: of the start vector; seed 0 by default.
        start: the start vector (size,) instead, such as an earlier estimate's.

    Raises:
        InputError: a number out of range, an unknown word.
        NonFiniteError: a product with NaN or infinity.
    """
    operator = as_operator(operator)
    check_number("steps", steps, at_least=1, integer=True)
    check_number("tolerance", tolerance, at_least=0)
    check_choice("which", which, ("algebraic", "magnitude"))
    check_choice("method", method, ("lanczos", "power"))
    start = start_vector(operator, generator) if start is None else start
    if method == "power":
        return _power(operator, start, steps, tolerance, which)
    state = _Lanczos(operator, start, steps)
    while True:
        going = state.extend()
        result = state.result()
        values, vectors = result.eigen()
        index = int((values.abs() if which == "magnitude" else values).argmax())
        value, error = float(values[index]), abs(result.residual * float(vectors[-1, index]))
        if not going or error <= tolerance * abs(value):
            vector = vectors[:, index].to(start) @ result.basis
            return Eigenvalue(value, error, len(values), vector / vector.norm())


def _power(operator: Operator, start: Tensor, steps: int, tolerance: float, which: str) -> Eigenvalue:
    """Power iteration on H; once that ended at a negative eigenvalue, on H minus it, where wanted."""
    start = start / start.norm()
    vector, shift = start, 0.0
    for count in range(1, steps + 1):
        product = checked(operator(vector), "power iteration")
        value = float(product @ vector)
        error = float((product - value * vector).norm())
        found = Eigenvalue(value, error, count, vector)
        if error <= tolerance * abs(value):
            if which == "magnitude" or shift or value >= 0:
                return found
            # no eigenvalue is larger in magnitude, so all of H - value I are nonnegative
            shift, vector = -value, start
            continue
        moved = product + shift * vector
        vector = moved / moved.norm().clamp_min(torch.finfo(moved.dtype).tiny)
    return found
