"""Convex functions kappa for Lion-K, their gradients and conjugates.

Chen, Liu, Liang and Liu, "Lion Secretly Solves Constrained Optimization: As Lyapunov Predicts", arXiv 2310.05898.
Lion-K with weight decay w minimizes f(x) + kappa*(w x) / w: at rest w x = grad kappa(-grad f), hence
grad f + grad kappa*(w x) = 0. A kappa that is a norm has the indicator of the dual unit ball as its conjugate, which
is a constraint; another one has a penalty.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from genflow.errors import InputError, check_choice, check_keys, check_number

__all__ = [
    "KAPPAS",
    "L1",
    "L2",
    "DeadZone",
    "Elastic",
    "HalfSquare",
    "Huber",
    "Kappa",
    "LInf",
    "Lp",
    "Nuclear",
    "PseudoHuber",
    "SortedL1",
    "create_kappa",
]

KAPPAS: dict[str, type["Kappa"]] = {}
"""Every kappa by its name; a subclass that sets ``name`` adds itself."""

_SLACK = 1e-5  # relative rounding allowed to a point on the border of a constraint


@dataclass(frozen=True)
class Kappa:
    """A convex function with kappa(0) = 0, of one tensor.

    Attributes:
        name: what options and state dicts call it.
        implies: the constraint or penalty on ``y = weight_decay * x``, in words.
        entrywise: a sum over entries, so that an entry's gradient depends on that entry alone.
    """

    name: ClassVar[str] = ""
    implies: ClassVar[str] = ""
    entrywise: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.name:
            KAPPAS[cls.name] = cls

    def value(self, c: Tensor) -> Tensor:
        """kappa(c), without dimensions."""
        raise NotImplementedError

    def grad(self, c: Tensor) -> Tensor:
        """A subgradient at c; zero at zero."""
        raise NotImplementedError

    def grad_(self, c: Tensor) -> Tensor:
        """:meth:`grad`, in ``c`` itself where that can be."""
        return self.grad(c)

    def grads_(self, cs: Sequence[Tensor]) -> list[Tensor]:
        """:meth:`grad_` of each."""
        return [self.grad_(c) for c in cs]

    def gauge(self, y: Tensor) -> Tensor:
        """The smallest s with ``y / s`` inside the implied constraint set: at most 1 inside. 0 where there is none."""
        return y.new_zeros(())

    def penalty(self, y: Tensor) -> Tensor:
        """The conjugate inside the constraint set."""
        return y.new_zeros(())

    def conjugate(self, y: Tensor) -> Tensor:
        """kappa*(y) = sup_c <c, y> - kappa(c); infinity outside the constraint set."""
        return torch.where(self.gauge(y) <= 1 + _SLACK, self.penalty(y), torch.inf)

    def config(self) -> dict[str, Any]:
        """Name and parameters, for a state dict; :func:`create_kappa` turns it back."""
        return {"name": self.name, **asdict(self)}


def create_kappa(kappa: "str | dict[str, Any] | Kappa") -> "Kappa":
    """A kappa by name, by :meth:`Kappa.config`, or as it is.

    Raises:
        InputError: an unknown name or parameter, or a value out of range.
    """
    if isinstance(kappa, Kappa):
        return kappa
    options = {"name": kappa} if isinstance(kappa, str) else dict(kappa) if isinstance(kappa, dict) else None
    if options is None:
        raise InputError(f"kappa: got {kappa!r}; allowed: a name, a Kappa or its config")
    cls = KAPPAS[check_choice("kappa", options.pop("name", None), KAPPAS)]
    check_keys(f"kappa {cls.name!r}", options, cls.__dataclass_fields__)
    return cls(**options)


@dataclass(frozen=True)
class _Box(Kappa):
    """A sum over entries that grows with slope 1: its constraint is a box."""

    entrywise = True

    def gauge(self, y: Tensor) -> Tensor:
        return y.abs().amax()


@dataclass(frozen=True)
class L1(_Box):
    """The l1 norm: Lion."""

    name = "l1"
    implies = "every |y_i| <= 1"

    def value(self, c: Tensor) -> Tensor:
        return c.abs().sum()

    def grad(self, c: Tensor) -> Tensor:
        return c.sign()

    def grad_(self, c: Tensor) -> Tensor:
        return c.sign_()

    def grads_(self, cs: Sequence[Tensor]) -> list[Tensor]:
        torch._foreach_sign_(cs)
        return list(cs)


@dataclass(frozen=True)
class L2(Kappa):
    """The l2 norm, of the whole tensor or summed over groups: ``dim`` names the dimensions inside a group.

    ``dim=-1`` takes a matrix' rows (one output each), ``dim=0`` its columns; a tensor without those dimensions is one
    group.
    """

    name = "l2"
    implies = "every group's ||y_g||_2 <= 1"
    dim: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        dims = self.dim if isinstance(self.dim, (tuple, list)) else () if self.dim is None else (self.dim,)
        for dim in dims:
            check_number("kappa.dim", dim, integer=True)
        if isinstance(self.dim, list):
            object.__setattr__(self, "dim", tuple(self.dim))

    def _norms(self, c: Tensor) -> Tensor:
        dims = (self.dim,) if isinstance(self.dim, int) else self.dim
        if dims is None or any(not -c.ndim <= dim < c.ndim for dim in dims):
            return torch.linalg.vector_norm(c).reshape((1,) * c.ndim)
        return torch.linalg.vector_norm(c, dim=dims, keepdim=True)

    def value(self, c: Tensor) -> Tensor:
        return self._norms(c).sum()

    def grad(self, c: Tensor) -> Tensor:
        norms = self._norms(c)
        return c / torch.where(norms > 0, norms, 1)

    def gauge(self, y: Tensor) -> Tensor:
        return self._norms(y).amax()


@dataclass(frozen=True)
class Lp(Kappa):
    """The lp norm of the whole tensor, 1 < p < infinity."""

    name = "lp"
    implies = "||y||_q <= 1 with 1/p + 1/q = 1"
    p: float = 2.0

    def __post_init__(self) -> None:
        check_number("kappa.p", self.p, above=1)

    def value(self, c: Tensor) -> Tensor:
        return torch.linalg.vector_norm(c, self.p)

    def grad(self, c: Tensor) -> Tensor:
        peak = c.abs().amax()
        scaled = c / torch.where(peak > 0, peak, 1)  # so that no power of p overflows or vanishes
        norm = torch.linalg.vector_norm(scaled, self.p)
        return scaled.sign() * (scaled.abs() / torch.where(norm > 0, norm, 1)) ** (self.p - 1)

    def gauge(self, y: Tensor) -> Tensor:
        return torch.linalg.vector_norm(y, self.p / (self.p - 1))


@dataclass(frozen=True)
class LInf(Kappa):
    """The largest absolute entry; ties share the step."""

    name = "linf"
    implies = "||y||_1 <= 1"

    def value(self, c: Tensor) -> Tensor:
        return c.abs().amax()

    def grad(self, c: Tensor) -> Tensor:
        largest = c.abs() == c.abs().amax()
        return c.sign() * largest / largest.sum()

    def gauge(self, y: Tensor) -> Tensor:
        return y.abs().sum()


@dataclass(frozen=True)
class HalfSquare(Kappa):
    """Half the squared l2 norm: plain momentum with weight decay."""

    name = "square"
    implies = "penalty y^2 / 2"
    entrywise = True

    def value(self, c: Tensor) -> Tensor:
        return c.square().sum() / 2

    def grad(self, c: Tensor) -> Tensor:
        return c.clone()

    def penalty(self, y: Tensor) -> Tensor:
        return y.square().sum() / 2


@dataclass(frozen=True)
class Huber(_Box):
    """``c^2 / (2 e)`` up to ``e``, then ``|c| - e/2``: a sign that is smooth around zero."""

    name = "huber"
    implies = "every |y_i| <= 1, and penalty e y^2 / 2"
    e: float = 1.0

    def __post_init__(self) -> None:
        check_number("kappa.e", self.e, above=0)

    def value(self, c: Tensor) -> Tensor:
        size = c.abs()
        return torch.where(size <= self.e, c.square() / (2 * self.e), size - self.e / 2).sum()

    def grad(self, c: Tensor) -> Tensor:
        return (c / self.e).clamp(-1, 1)

    def penalty(self, y: Tensor) -> Tensor:
        return self.e / 2 * y.square().sum()


@dataclass(frozen=True)
class PseudoHuber(_Box):
    """``sqrt(c^2 + e^2) - e``, the smooth Huber."""

    name = "pseudo-huber"
    implies = "every |y_i| <= 1, and penalty e (1 - sqrt(1 - y^2))"
    e: float = 1.0

    def __post_init__(self) -> None:
        check_number("kappa.e", self.e, above=0)

    def value(self, c: Tensor) -> Tensor:
        root = (c.square() + self.e**2).sqrt()
        return (c.square() / (root + self.e)).sum()

    def grad(self, c: Tensor) -> Tensor:
        return c / (c.square() + self.e**2).sqrt()

    def penalty(self, y: Tensor) -> Tensor:
        return self.e * (1 - (1 - y.square()).clamp_min(0).sqrt()).sum()


@dataclass(frozen=True)
class DeadZone(_Box):
    """``max(|c| - e, 0)``: entries with a small momentum rest, so that weights become sparse."""

    name = "dead-zone"
    implies = "every |y_i| <= 1, and penalty e ||y||_1"
    e: float = 1e-3

    def __post_init__(self) -> None:
        check_number("kappa.e", self.e, at_least=0)

    def value(self, c: Tensor) -> Tensor:
        return (c.abs() - self.e).clamp_min(0).sum()

    def grad(self, c: Tensor) -> Tensor:
        return c.sign() * (c.abs() > self.e)

    def penalty(self, y: Tensor) -> Tensor:
        return self.e * y.abs().sum()


@dataclass(frozen=True)
class SortedL1(Kappa):
    """The sum of the largest absolute entries: ``share`` of all of them, at least one. Ties go by position."""

    name = "sorted-l1"
    implies = "every |y_i| <= 1, and ||y||_1 <= the number of entries that count"
    share: float = 0.5

    def __post_init__(self) -> None:
        check_number("kappa.share", self.share, above=0, at_most=1)

    def count(self, c: Tensor) -> int:
        """How many entries of ``c`` count."""
        return max(1, round(self.share * c.numel()))

    def value(self, c: Tensor) -> Tensor:
        return c.abs().flatten().topk(self.count(c)).values.sum()

    def grad(self, c: Tensor) -> Tensor:
        flat = c.flatten()
        chosen = flat.abs().topk(self.count(c)).indices
        return torch.zeros_like(flat).scatter(0, chosen, flat[chosen].sign()).view(c.shape)

    def gauge(self, y: Tensor) -> Tensor:
        return torch.maximum(y.abs().amax(), y.abs().sum() / self.count(y))


@dataclass(frozen=True)
class Elastic(Kappa):
    """``|c| + (a/2) c^2``, the elastic net: a sign step that grows with the momentum."""

    name = "elastic"
    implies = "penalty max(|y| - 1, 0)^2 / (2 a)"
    entrywise = True
    a: float = 1.0

    def __post_init__(self) -> None:
        check_number("kappa.a", self.a, above=0)

    def value(self, c: Tensor) -> Tensor:
        return c.abs().sum() + self.a / 2 * c.square().sum()

    def grad(self, c: Tensor) -> Tensor:
        return c.sign().add_(c, alpha=self.a)

    def penalty(self, y: Tensor) -> Tensor:
        return (y.abs() - 1).clamp_min(0).square().sum() / (2 * self.a)


@dataclass(frozen=True)
class Nuclear(Kappa):
    """The sum of singular values of a matrix, kernels as (out, rest); vectors as :class:`L2`. Takes an SVD a step."""

    name = "nuclear"
    implies = "the largest singular value <= 1"

    @staticmethod
    def _matrix(c: Tensor) -> Tensor:
        return c.reshape(c.shape[0], -1) if c.ndim > 1 else c.reshape(1, -1)

    def value(self, c: Tensor) -> Tensor:
        return torch.linalg.svdvals(self._matrix(c)).sum()

    def grad(self, c: Tensor) -> Tensor:
        u, s, vh = torch.linalg.svd(self._matrix(c), full_matrices=False)
        # directions without a singular value have no sign
        held = s > s.amax() * max(self._matrix(c).shape) * torch.finfo(s.dtype).eps
        return ((u * held) @ vh).view(c.shape)

    def gauge(self, y: Tensor) -> Tensor:
        return torch.linalg.svdvals(self._matrix(y)).amax()
