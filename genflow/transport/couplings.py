"""Which noise goes with which image: couplings of a training batch, for flow matching with straighter trajectories.

A coupling may be any law of pairs whose two marginals are the data and the noise; flow matching then learns a velocity
that carries the one into the other (Tong et al. 2024, arXiv 2302.00482; Pooladian et al. 2023, arXiv 2304.14772). Here
pairs follow the optimal plan of the batch for the squared distance, by which trajectories cross less.

What a coupled model can no longer do: given x0, the noise is not a standard normal any more, so that ``-E[noise | x] /
sigma`` is not the score of x. Deterministic samplers stay right on every path, since the probability flow needs
``E[noise | x]`` and ``E[x0 | x]`` alone; samplers that add noise, which need the score, do not.

**Classes.** A network that sees a label c learns the pairs given c. In a batch coupled as a whole the noise given c is
not a standard normal, but the part of it that lies nearest to c, while sampling starts from all of it: the label has
leaked into the noise. So each class is coupled by itself. The noise that a class has to itself was drawn without
regard to it, and stays a standard normal.

What counts is the class itself and not the label that the network is shown: images whose label is dropped stay with
their class. Coupled apart from it they would leak nothing either, but the unconditional model would then learn other
pairs than the conditional ones, and no longer be their mixture ``sum_c p(c | x) v(x, c)``, which classifier-free
guidance takes it for. Coupling the whole batch and dropping labels afterwards does leak.
"""

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from genflow.errors import InputError, check_number
from genflow.registry import create_by_name
from genflow.transport.exact import exact_assignment, pairwise_cost
from genflow.transport.fixed_sweeps import LEAST_REG, fixed_sweeps, relative_size
from genflow.transport.newton import sinkhorn_newton
from genflow.transport.problem import EntropicPlan, UnconvergedWarning
from genflow.transport.sweeps import sinkhorn

__all__ = ["COUPLINGS", "Coupling", "create_coupling"]

REG = 0.1
TOLERANCE = 1e-3
"""Marginal error of a training batch's plan: at most this share of the draws goes to other noise than it should."""


@dataclass(frozen=True)
class Groups:
    """A batch in groups of one class: ``index`` (K, m) into it where ``filled`` (K, m), and padding elsewhere."""

    index: Tensor
    filled: Tensor

    @classmethod
    def of(cls, count: int, labels: Tensor | None, device: torch.device) -> "Groups":
        """Groups of a batch of ``count``, one for all of it without labels."""
        places = torch.arange(count, device=device)
        if labels is None:
            return cls(places[None], torch.ones(1, count, dtype=torch.bool, device=device))
        _, group, sizes = labels.unique(return_inverse=True, return_counts=True)
        order = group.argsort(stable=True)
        place = places - (sizes.cumsum(0) - sizes)[group[order]]
        index = places.new_zeros(len(sizes), int(sizes.max()))
        filled = torch.zeros_like(index, dtype=torch.bool)
        index[group[order], place] = order
        filled[group[order], place] = True
        return cls(index, filled)

    @property
    def masses(self) -> Tensor:
        """Uniform masses (K, m) of total 1 in each group, float64; 0 on padding."""
        filled = self.filled.double()
        return filled / filled.sum(-1, keepdim=True)

    def scatter(self, chosen: Tensor) -> Tensor:
        """Each place's partner in the batch (n,), from its partner's place in the group (K, m)."""
        partners = torch.empty_like(self.index[self.filled])
        partners[self.index[self.filled]] = self.index.gather(1, chosen)[self.filled]
        return partners


def relative_cost(x0: Tensor, noise: Tensor, groups: Groups) -> Tensor:
    """Squared distances (K, m, m) within groups, less the means of rows and columns, in units of what then remains.

    A plan depends on nothing else: a number added to a row or a column does not change it. In many dimensions nearly
    all of a squared distance is such numbers (the norms), so that a share of its mean or its maximum would mean another
    regularization for every size of image; the root mean square of the rest does not.
    """
    cost = pairwise_cost(x0.flatten(1)[groups.index], noise.flatten(1)[groups.index])
    mass = groups.masses.to(cost.device)
    largest = cost.amax((-2, -1))
    cost = cost - (cost @ mass.unsqueeze(-1))
    cost = cost - (mass.unsqueeze(-2) @ cost)
    square = (mass.unsqueeze(-2) @ cost.square() @ mass.unsqueeze(-1)).squeeze((-2, -1))
    cost = cost / relative_size(square, largest)[:, None, None]
    return cost.masked_fill((mass == 0).unsqueeze(-1) | (mass == 0).unsqueeze(-2), 0.0)


class Coupling(ABC):
    """Draws the noise that goes with each image of a batch.

    Attributes:
        name: its name in :data:`COUPLINGS`.
        class_wise: whether each class is coupled by itself: True, False, or ``"auto"``, where there are labels.
    """

    name: ClassVar[str]
    option_names: ClassVar[tuple[str, ...]] = ("class_wise",)

    def __init__(self, class_wise: bool | str = "auto") -> None:
        """Raises InputError for anything but True, False and "auto"."""
        if not isinstance(class_wise, bool) and class_wise != "auto":
            raise InputError(f"class_wise: got {class_wise!r}; allowed: auto, True, False")
        self.class_wise = class_wise

    def pair(
        self, x0: Tensor, noise: Tensor, generator: torch.Generator, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The batch with its noise in another order: ``(x0, noise[partners], labels)``.

        Args:
            x0: data ``(B, ...)``; its order and labels stay.
            noise: as many draws of the path's noise, independent of x0, in its shape.
            generator: all random draws come from it.
            labels: the classes ``(B,)`` of x0, before any is dropped for guidance; see the module's text.

        Raises:
            InputError: shapes that do not fit, or ``class_wise=True`` without labels.
        """
        return x0, noise[self.partners(x0, noise, generator, labels)], labels

    def partners(self, x0: Tensor, noise: Tensor, generator: torch.Generator, labels: Tensor | None = None) -> Tensor:
        """Which row of the noise each row of x0 gets, int64 ``(B,)``; see :meth:`pair`."""
        if x0.ndim < 2 or x0.shape != noise.shape or x0.numel() == 0:
            raise InputError(f"x0, noise: got {tuple(x0.shape)} and {tuple(noise.shape)}; allowed: one shape (B, ...)")
        if labels is not None and labels.shape != x0.shape[:1]:
            raise InputError(f"labels: got shape {tuple(labels.shape)}; allowed: ({len(x0)},), one for each of x0")
        if labels is None and self.class_wise is True:
            raise InputError("labels: got None; allowed: classes, for a coupling with class_wise=True")
        return self._partners(x0.detach(), noise.detach(), generator, labels if self.class_wise else None)

    def _partners(self, x0: Tensor, noise: Tensor, generator: torch.Generator, labels: Tensor | None) -> Tensor:
        """:meth:`partners` of a batch that was checked, within the classes that ``labels`` say."""
        groups = Groups.of(len(x0), labels, x0.device)
        return groups.scatter(self._choose(x0, noise, groups, generator))

    @abstractmethod
    def _choose(self, x0: Tensor, noise: Tensor, groups: Groups, generator: torch.Generator) -> Tensor:
        """The place of each one's noise inside its group (K, m); on padding anything."""


class IndependentCoupling(Coupling):
    """Noise as it was drawn: plain flow matching and diffusion. Draws nothing."""

    name = "independent"

    def pair(
        self, x0: Tensor, noise: Tensor, generator: torch.Generator, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        return x0, noise, labels

    def _choose(self, x0: Tensor, noise: Tensor, groups: Groups, generator: torch.Generator) -> Tensor:
        return torch.arange(groups.index.shape[1], device=x0.device).expand_as(groups.index)


class ExactCoupling(Coupling):
    """The cheapest matching: a permutation of the noise. Solved on the host, which an accelerator has to wait for."""

    name = "exact"

    def _choose(self, x0: Tensor, noise: Tensor, groups: Groups, generator: torch.Generator) -> Tensor:
        cost = relative_cost(x0, noise, groups)
        filled = groups.filled.to(cost.device)
        apart = filled.unsqueeze(-1) != filled.unsqueeze(-2)  # padding is matched with padding
        return exact_assignment(cost.masked_fill(apart, torch.inf)).to(groups.index.device)


class EntropicCoupling(Coupling):
    """Draws from an entropic plan: for each of x0 one noise, in proportion to its row of the plan.

    Every row of noise is expected once a batch, but may come twice or not at all.

    On an accelerator solvers that ask whether they are done make the host wait each time. There, from a ``reg`` of 0.05
    and a tolerance of 1e-3 on, the plan is that of a fixed number of overrelaxed sweeps (:mod:`genflow.transport.
    fixed_sweeps`), which waits for nothing and leaves an error of about 1e-3; otherwise the named solver's.

    Attributes:
        reg: the entropy's weight, in units of the root mean square of what squared distances are beyond their rows'
            and columns' means; small is near the exact coupling, large near the independent one.
        tolerance: marginal error of the plan.
    """

    option_names = (*Coupling.option_names, "reg", "tolerance")

    def __init__(self, class_wise: bool | str = "auto", reg: float = REG, tolerance: float = TOLERANCE) -> None:
        """Raises InputError for ``reg`` below 1e-6 or a tolerance out of (0, 1)."""
        super().__init__(class_wise)
        self.reg = check_number("reg", reg, at_least=1e-6)
        self.tolerance = check_number("tolerance", tolerance, above=0, below=1)
        self._warned = False

    def solves(self, device: torch.device) -> bool:
        """Whether plans on ``device`` are the named solver's, and not those of a fixed number of sweeps."""
        return device.type in ("cpu", "mps") or self.reg < LEAST_REG or self.tolerance < TOLERANCE

    def _partners(self, x0: Tensor, noise: Tensor, generator: torch.Generator, labels: Tensor | None) -> Tensor:
        if self.solves(x0.device):
            return super()._partners(x0, noise, generator, labels)
        return torch.multinomial(fixed_sweeps(x0, noise, labels, self.reg), 1, generator=generator)[:, 0]

    def _choose(self, x0: Tensor, noise: Tensor, groups: Groups, generator: torch.Generator) -> Tensor:
        cost = relative_cost(x0, noise, groups)
        with warnings.catch_warnings():
            # once is enough in a training run of many batches
            if self._warned:
                warnings.simplefilter("ignore", UnconvergedWarning)
            plan = self._solve(cost, groups.masses.to(cost.device))
            self._warned = self._warned or not bool(plan.converged.all())
        rows = plan.plan.float().flatten(0, 1).to(generator.device)
        padding = ~groups.filled.flatten().to(generator.device)
        chosen = torch.multinomial(rows.masked_fill(padding[:, None], 1.0), 1, generator=generator)
        return chosen.view_as(groups.index).to(groups.index.device)

    @abstractmethod
    def _solve(self, cost: Tensor, masses: Tensor) -> EntropicPlan:
        """The plan of costs (K, m, m) between equal masses (K, m)."""


class SinkhornCoupling(EntropicCoupling):
    """Draws from the entropic plan that :func:`sinkhorn` finds."""

    name = "sinkhorn"

    def _solve(self, cost: Tensor, masses: Tensor) -> EntropicPlan:
        return sinkhorn(masses, masses, cost, self.reg, tolerance=self.tolerance)


class SinkhornNewtonCoupling(EntropicCoupling):
    """Draws from the entropic plan that :func:`sinkhorn_newton` finds: the same, sooner at small ``reg``."""

    name = "sinkhorn-newton"

    def _solve(self, cost: Tensor, masses: Tensor) -> EntropicPlan:
        return sinkhorn_newton(masses, masses, cost, self.reg, tolerance=self.tolerance)


_COUPLINGS: dict[str, type[Coupling]] = {
    cls.name: cls for cls in (IndependentCoupling, ExactCoupling, SinkhornCoupling, SinkhornNewtonCoupling)
}
COUPLINGS = tuple(_COUPLINGS)


def create_coupling(name: str, **options: Any) -> Coupling:
    """Create one of :data:`COUPLINGS`.

    Args:
        name: ``independent``, ``exact``, ``sinkhorn`` or ``sinkhorn-newton``.
        **options: ``class_wise`` (True, False, or ``"auto"``: where there are labels), and for the entropic ones
            ``reg`` and ``tolerance``; see :class:`EntropicCoupling`.

    Raises:
        InputError: an unknown name, an option that this coupling does not have, or a value out of range.
    """
    return create_by_name("coupling", name, _COUPLINGS, options)
