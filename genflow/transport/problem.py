"""One transport problem, or a batch of them, checked and put into the logarithmic float64 form that solvers work on."""

import warnings
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from genflow.errors import InputError, check_number

__all__ = ["EntropicPlan", "FallbackWarning", "Problem", "UnconvergedWarning", "solution"]

LARGEST = 1e12
"""Largest ``cost / reg``: beyond, rounding of the exponent alone changes the plan by more than 1e-4."""


class UnconvergedWarning(RuntimeWarning):
    """A solver stopped before it reached the tolerance; the message says where it stands."""


class FallbackWarning(RuntimeWarning):
    """Newton's steps stalled and Sinkhorn's sweeps went on; the message says where."""


@dataclass(frozen=True)
class EntropicPlan:
    """Entropic optimal transport solved: potentials, the plan ``exp((f + g - cost) / reg)`` and how it was reached.

    ``f`` (..., n) and ``g`` (..., m) are float64, in the cost's unit, and ``-inf`` where the mass is zero; the free
    constant between them is fixed by ``g``'s mean over positive masses being zero. ``marginal_error`` (...) is the
    L1 distance of the plan's marginals from those asked for, over the total mass. ``iterations`` counts Sinkhorn
    sweeps (both sides once) and Newton steps, for a batch the most that any problem took. ``converged`` (...) says
    whether the error is within the tolerance.
    """

    f: Tensor
    g: Tensor
    cost: Tensor = field(repr=False)
    reg: float
    marginal_error: Tensor
    iterations: dict[str, int]
    converged: Tensor
    details: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def plan(self) -> Tensor:
        """The plan (..., n, m), float64: mass sent from i to j; made on first use."""
        return torch.exp((self.f.unsqueeze(-1) + self.g.unsqueeze(-2) - self.cost) / self.reg)

    @property
    def value(self) -> Tensor:
        """The transport cost ``<plan, cost>`` (...) without the entropy; a forbidden pair (infinite cost) adds none."""
        return (self.plan * self.cost.nan_to_num(posinf=0.0)).sum((-2, -1))


@dataclass
class Problem:
    """A flat batch of B problems: masses of total 1, ``kernel = cost / reg`` (B, n, m) with its least entry at 0.

    Rows and columns without mass in any of the problems are left out; ``rows`` and ``columns`` say which are in.
    """

    a: Tensor
    b: Tensor
    kernel: Tensor
    log_a: Tensor
    log_b: Tensor
    cost: Tensor
    reg: float
    span: Tensor
    shift: Tensor
    total: Tensor
    shape: torch.Size
    rows: Tensor
    columns: Tensor

    @classmethod
    def create(cls, a: Tensor | None, b: Tensor | None, cost: Tensor, reg: float) -> "Problem":
        """Check the arguments of a solver and build the batch; raises InputError before any work."""
        check_number("reg", reg, above=0)
        cost = as_float64("cost", cost)
        if cost.ndim < 2 or 0 in cost.shape:
            raise InputError(f"cost: got shape {tuple(cost.shape)}; allowed: (..., n, m), none of them 0")
        if bool((cost.isnan() | cost.isneginf()).any()):
            raise InputError("cost: got NaN or -inf; allowed: finite numbers, and inf for a forbidden pair")
        n, m = cost.shape[-2:]
        a, exact_a = masses("a", a, n, cost.device)
        b, exact_b = masses("b", b, m, cost.device)
        try:
            batch = torch.broadcast_shapes(a.shape[:-1], b.shape[:-1], cost.shape[:-2])
        except RuntimeError:
            shapes = f"a {tuple(a.shape)}, b {tuple(b.shape)}, cost {tuple(cost.shape)}"
            raise InputError(f"a, b, cost: got {shapes}; allowed: batch dimensions that broadcast together") from None
        a, b = (mass.expand(*batch, mass.shape[-1]).reshape(-1, mass.shape[-1]) for mass in (a, b))
        cost = cost.expand(*batch, n, m).reshape(-1, n, m)
        total = a.sum(-1)
        check_totals(total, b.sum(-1), 1e-9 if exact_a and exact_b else 1e-4)
        a, b = a / total[:, None], b / b.sum(-1, keepdim=True)
        check_partners(a, b, cost)
        rows, columns = ((mass > 0).any(0).nonzero().squeeze(-1) for mass in (a, b))
        a, b = a[:, rows], b[:, columns]
        kernel = cost if len(rows) == n and len(columns) == m else cost[:, rows][:, :, columns]
        shift = kernel.amin((-2, -1))
        kernel = kernel - shift[:, None, None]
        farthest = kernel.masked_fill(kernel.isposinf(), 0.0).amax((-2, -1))
        if not float(farthest.max()) / reg <= LARGEST:
            least = float(farthest.max()) / LARGEST
            raise InputError(f"reg: got {reg:g}; allowed: at least {least:.3g} for costs that far apart, in float64")
        sizes = (farthest / reg, shift, total, torch.Size(batch), rows, columns)
        return cls(a, b, kernel.div_(reg), a.log(), b.log(), cost, reg, *sizes)

    def pick(self, index: Tensor) -> "Problem":
        """The problems of these indices, for going on with those that are not solved yet."""
        names = ("a", "b", "kernel", "log_a", "log_b", "span")
        return replace(self, **{name: getattr(self, name)[index] for name in names})

    def scaled(self, factor: float) -> "Problem":
        """The same costs with ``factor`` times the regularization."""
        return self if factor == 1 else replace(self, kernel=self.kernel / factor, span=self.span / factor)

    def turned(self) -> "Problem":
        """Rows for columns and columns for rows."""
        swapped = {"a": self.b, "b": self.a, "log_a": self.log_b, "log_b": self.log_a}
        return replace(self, **swapped, rows=self.columns, columns=self.rows, kernel=self.kernel.mT.contiguous())

    def start(self, argument: str, potential: Tensor | None) -> Tensor:
        """The logarithmic scaling to begin with, of rows for ``f``, of columns for ``g``: 0, or a given potential."""
        mass, kept, count = (self.a, self.rows, -2) if argument == "f" else (self.b, self.columns, -1)
        if potential is None:
            return torch.zeros_like(mass).masked_fill(mass == 0, -torch.inf)
        scaling = as_float64(argument, potential).to(mass.device) / self.reg
        full = (*self.shape, self.cost.shape[count])
        try:
            scaling = scaling.expand(full).reshape(len(mass), -1)[:, kept]
        except RuntimeError:
            raise InputError(f"{argument}: got shape {tuple(scaling.shape)}; allowed: {full}") from None
        if bool((scaling.isnan() | scaling.isposinf()).any()):
            raise InputError(f"{argument}: got NaN or inf; allowed: finite numbers, and -inf for a zero mass")
        # -inf was a zero mass of an earlier problem; it would never come back by itself.
        return scaling.masked_fill(scaling.isneginf(), 0.0).masked_fill(mass == 0, -torch.inf)

    def full(self, argument: str, potential: Tensor) -> Tensor:
        """A potential (..., n or m) with -inf for what was left out."""
        kept, count = (self.rows, -2) if argument == "f" else (self.columns, -1)
        whole = potential.new_full((len(potential), self.cost.shape[count]), -torch.inf)
        whole[:, kept] = potential
        return whole.reshape(*self.shape, -1)


def as_float64(argument: str, value: Tensor) -> Tensor:
    """``value`` as a float64 tensor without a graph, on its device (on the CPU where the device has no float64)."""
    try:
        tensor = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{argument}: got {type(value).__name__}; allowed: a tensor or an array of numbers") from None
    if tensor.is_complex():
        raise InputError(f"{argument}: got {tensor.dtype}; allowed: real numbers")
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def masses(argument: str, value: Tensor | None, count: int, device: torch.device) -> tuple[Tensor, bool]:
    """The masses (..., count), uniform for None (as in POT), and whether they came exact: None or float64."""
    if value is None:
        return torch.full((count,), 1 / count, dtype=torch.float64, device=device), True
    mass = as_float64(argument, value).to(device)
    if mass.ndim == 0 or mass.shape[-1] != count:
        raise InputError(f"{argument}: got shape {tuple(mass.shape)}; allowed: (..., {count}), as the cost has")
    if not bool((mass.isfinite() & (mass >= 0)).all()):
        raise InputError(f"{argument}: got a negative, infinite or NaN mass; allowed: finite numbers >= 0")
    # Products of scalings need room below: a mass below 1e-100 of the whole counts as zero.
    relative = mass / mass.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return mass.masked_fill(relative < 1e-100, 0.0), torch.as_tensor(value).dtype == torch.float64


def check_totals(total_a: Tensor, total_b: Tensor, tolerance: float) -> None:
    if not bool(((total_a > 0) & (total_b > 0) & total_a.isfinite() & total_b.isfinite()).all()):
        raise InputError("a, b: got masses that are all zero or sum to inf; allowed: a positive finite total")
    worst = int(((total_a - total_b).abs() / total_a).argmax())
    one, other = float(total_a[worst]), float(total_b[worst])
    if abs(one - other) > tolerance * one:
        raise InputError(f"a, b: got totals {one:.12g} and {other:.12g}; allowed: equal totals (to {tolerance:g})")


def check_partners(a: Tensor, b: Tensor, cost: Tensor) -> None:
    """Every positive mass needs a pair that is not forbidden, with a positive mass at the other end."""
    allowed = cost.isfinite()
    if bool(allowed.all()):
        return
    pairs = allowed & (a > 0).unsqueeze(-1) & (b > 0).unsqueeze(-2)
    for name, mass, partnered in (("a", a, pairs.any(-1)), ("b", b, pairs.any(-2))):
        if bool(((mass > 0) & ~partnered).any()):
            index = int(((mass > 0) & ~partnered).nonzero()[0, 1])
            raise InputError(
                f"cost: infinite for every partner of {name}[{index}]; allowed: a finite one for each mass"
            )


def solution(
    problem: Problem, u: Tensor, v: Tensor, error: Tensor, tolerance: float, iterations: dict[str, int], **details: Any
) -> EntropicPlan:
    """Potentials in the cost's unit from logarithmic scalings, with a warning where the tolerance was not reached."""
    positive = problem.b > 0
    mean = v.masked_fill(~positive, 0.0).sum(-1, keepdim=True) / positive.sum(-1, keepdim=True)
    f = problem.reg * (u + mean + problem.total.log()[:, None]) + problem.shift[:, None]
    g = problem.reg * (v - mean)
    converged = error <= tolerance
    if not bool(converged.all()):
        done = ", ".join(f"{count} {name}" for name, count in iterations.items())
        warnings.warn(
            f"entropic transport stopped at a marginal error of {float(error.max()):.3g} (tolerance {tolerance:g}) "
            f"after {done} iterations; try a larger reg or more iterations, and see that the masses can be matched",
            UnconvergedWarning,
            stacklevel=3,
        )
    shape = problem.shape
    return EntropicPlan(
        problem.full("f", f),
        problem.full("g", g),
        problem.cost.reshape(*shape, *problem.cost.shape[-2:]),
        problem.reg,
        error.reshape(shape),
        iterations,
        converged.reshape(shape),
        details,
    )
