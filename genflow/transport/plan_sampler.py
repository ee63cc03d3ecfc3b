"""Pairs drawn from the plan between two batches, called as torchcfm's OTPlanSampler is."""

import torch
from torch import Tensor

from genflow.errors import InputError, check_choice, check_flag, check_number
from genflow.transport.exact import exact_assignment, flat_points, pairwise_cost
from genflow.transport.newton import sinkhorn_newton
from genflow.transport.sweeps import sinkhorn

__all__ = ["CouplingSampler"]

METHODS = ("exact", "sinkhorn", "sinkhorn-newton")
_TRIALS = 2**24
"""torch.multinomial takes no more categories."""


class CouplingSampler:
    """torchcfm's ``OTPlanSampler`` on tensors and a generator: ``CouplingSampler("exact").sample_plan(x0, x1)``.

    As there, x0 are the sources and x1 the targets, costs are squared distances, pairs are drawn from the plan with
    replacement, so that both batches change, and ``reg`` is in the cost's own unit. :class:`Coupling` keeps the data as
    it is instead, groups by class, and has a ``reg`` without unit.

    Attributes:
        method: ``exact``, ``sinkhorn`` or ``sinkhorn-newton`` (the same plan as ``sinkhorn``, sooner).
        reg: the entropy's weight in the cost's unit; 0.05 as there.
        normalize_cost: divide the cost by its maximum.
        generator: of the draws, on the CPU; None for torch's own.
    """

    def __init__(
        self,
        method: str,
        reg: float = 0.05,
        normalize_cost: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        """Raises InputError for an unknown method (theirs, unbalanced and partial, change the marginals), or a ``reg``
        not above 0."""
        self.method = check_choice("method", method, METHODS)
        self.reg = check_number("reg", reg, above=0)
        self.normalize_cost = check_flag("normalize_cost", normalize_cost)
        self.generator = generator

    def get_map(self, x0: Tensor, x1: Tensor) -> Tensor:
        """The plan (n, m) between equally weighted x0 (n, ...) and x1 (m, ...), float64, of total 1.

        Raises:
            InputError: shapes that do not fit; sizes that differ, for ``exact``.
        """
        cost = pairwise_cost(flat_points("x0", x0.flatten(1)), flat_points("x1", x1.flatten(1)))
        if self.normalize_cost:
            cost = cost / cost.max()
        if self.method != "exact":
            solve = sinkhorn if self.method == "sinkhorn" else sinkhorn_newton
            return solve(None, None, cost, self.reg).plan
        if cost.shape[0] != cost.shape[1]:
            raise InputError(f"x0, x1: {len(x0)} and {len(x1)} points; allowed for 'exact': as many of both")
        return torch.zeros_like(cost).scatter_(1, exact_assignment(cost)[:, None], 1 / len(cost))

    def sample_map(self, pi: Tensor, batch_size: int, replace: bool = True) -> tuple[Tensor, Tensor]:
        """``batch_size`` pairs of indices (i, j) drawn in proportion to ``pi`` (n, m)."""
        pi = pi.cpu()
        if replace:  # row by row, for which no plan is too large
            i = torch.multinomial(pi.sum(1), batch_size, replacement=True, generator=self.generator)
            return i, torch.multinomial(pi[i], 1, generator=self.generator)[:, 0]
        possible = int((pi > 0).sum())
        if pi.numel() > _TRIALS or batch_size > possible:
            raise InputError(
                f"batch_size: {batch_size} different ones of {possible} pairs in a plan of {pi.numel()} entries; "
                f"allowed: no more than there are, in a plan of {_TRIALS} entries at most"
            )
        drawn = torch.multinomial(pi.flatten(), batch_size, generator=self.generator)
        return drawn // pi.shape[1], drawn % pi.shape[1]

    def sample_plan(self, x0: Tensor, x1: Tensor, replace: bool = True) -> tuple[Tensor, Tensor]:
        """As many pairs as there are x0, drawn from their plan."""
        i, j = self.sample_map(self.get_map(x0, x1), len(x0), replace)
        return x0[i.to(x0.device)], x1[j.to(x1.device)]

    def sample_plan_with_labels(
        self, x0: Tensor, x1: Tensor, y0: Tensor | None = None, y1: Tensor | None = None, replace: bool = True
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """:meth:`sample_plan` with the labels of both sides, which go with their points and do not steer the plan.

        For a model that sees the labels, couple class by class: :class:`Coupling`.
        """
        i, j = self.sample_map(self.get_map(x0, x1), len(x0), replace)
        labels = (None if y is None else y[index.to(y.device)] for y, index in ((y0, i), (y1, j)))
        return x0[i.to(x0.device)], x1[j.to(x1.device)], *labels

    def sample_trajectory(self, x: Tensor) -> Tensor:
        """Chains through x (B, T, ...), a batch at each of T times, from x[:, 0] on, each drawn given the last."""
        chosen = [torch.arange(len(x))]
        for step in range(x.shape[1] - 1):
            rows = self.get_map(x[:, step], x[:, step + 1]).cpu()[chosen[-1]]
            chosen.append(torch.multinomial(rows, 1, generator=self.generator)[:, 0])
        return torch.stack([x[index.to(x.device), step] for step, index in enumerate(chosen)], dim=1)
