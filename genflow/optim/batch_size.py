"""AdAdaGrad's batch sizes. Lau, Liu and Kolar, "AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient
Methods", arXiv 2402.11215; for use with :class:`genflow.optim.AdaGradNorm`, torch's Adagrad, or any optimizer."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from torch.utils.data import Sampler

from genflow.errors import InputError, check_choice, check_keys, check_number
from genflow.optim.gradient_moments import GradientStatistics

__all__ = ["BatchSizeController", "ResizableBatchSampler", "required_batch_size"]

Test = Literal["norm", "coordinate", "inner-product", "orthogonality", "augmented"]
_TESTS = ("norm", "coordinate", "inner-product", "orthogonality", "augmented")


def required_batch_size(
    statistics: GradientStatistics, test: Test = "norm", *, eta: float = 0.5, theta: float = 0.5, nu: float = 1.0
) -> float:
    r"""The batch size at which a test would hold, before rounding; infinite where the mean gradient is zero.

    With per-sample gradients :math:`g_j` and their mean :math:`G`:

    * "norm": :math:`\sum_i \mathrm{Var}_i / (\eta^2 \|G\|^2)`;
    * "coordinate": :math:`\max_i \mathrm{Var}_i / (\eta^2 G_i^2)`, for AdaGrad. (The inner-product test taken by
      coordinates comes to the same.)
    * "inner-product": :math:`\mathrm{Var}_j \langle g_j, G \rangle / (\theta^2 \|G\|^4)`;
    * "orthogonality": :math:`\sum_i \mathrm{Var}_i (g - \langle g, G \rangle G / \|G\|^2) / (\nu^2 \|G\|^2)`;
    * "augmented": the larger of the last two.
    """
    s = statistics
    needs = {
        "norm": (s.variance, eta**2 * s.norm_square),
        "coordinate": (s.coordinate, eta**2),
        "inner-product": (s.along, theta**2 * s.norm_square**2),
        "orthogonality": (s.across, nu**2 * s.norm_square),
    }
    check_choice("test", test, _TESTS)
    chosen = ["inner-product", "orthogonality"] if test == "augmented" else [test]
    found = []
    for name in chosen:
        above, below = needs[name]
        found.append(above / below if below > 0 else (0.0 if s.variance == 0 else math.inf))
    return math.nan if any(math.isnan(x) for x in found) else max(found)


class BatchSizeController:
    """Grows the batch when the gradients of its samples differ too much; first the micro-batch, then accumulation.

    The batch size never shrinks. :attr:`batch_size` is made of ``world_size`` processes, :attr:`accumulation` micro-
    batches in each and :attr:`micro_batch_size` samples in each of those; rounding makes it a little larger than asked.

    Args:
        batch_size: to start with.
        max_batch_size: bound; default 50000 (the authors' code).
        test: see :func:`required_batch_size`; default "norm".
        eta: of the norm and coordinate tests; smaller asks for larger batches. Default 0.5 (the paper: 0.1 to 0.5).
        theta: of the inner-product test; default 0.5.
        nu: of the orthogonality test; default 1.
        interval: updates between tests; default 1.
        max_micro_batch_size: what fits a device; default: everything.
        world_size: processes; default 1.

    Raises:
        InputError: a value out of range, named.
    """

    def __init__(
        self,
        batch_size: int,
        max_batch_size: int = 50000,
        *,
        test: Test = "norm",
        eta: float = 0.5,
        theta: float = 0.5,
        nu: float = 1.0,
        interval: int = 1,
        max_micro_batch_size: int | None = None,
        world_size: int = 1,
    ) -> None:
        check_number("batch_size", batch_size, at_least=1, integer=True)
        check_number("max_batch_size", max_batch_size, at_least=batch_size, integer=True)
        check_choice("test", test, _TESTS)
        for name, value in (("eta", eta), ("theta", theta), ("nu", nu)):
            check_number(name, value, above=0)
        check_number("interval", interval, at_least=1, integer=True)
        if max_micro_batch_size is not None:
            check_number("max_micro_batch_size", max_micro_batch_size, at_least=1, integer=True)
        check_number("world_size", world_size, at_least=1, integer=True)
        self.max_batch_size, self.test = max_batch_size, test
        self.eta, self.theta, self.nu, self.interval = eta, theta, nu, interval
        self.max_micro_batch_size, self.world_size = max_micro_batch_size, world_size
        self._asked = batch_size
        self._updates = 0
        self.history: list[tuple[int, int]] = [(0, batch_size)]
        """Updates made when the batch size changed, and the size asked for from there on."""

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step on each process."""
        if self.max_micro_batch_size is None:
            return 1
        return -(-self._asked // (self.world_size * self.max_micro_batch_size))

    @property
    def micro_batch_size(self) -> int:
        """Samples of a forward pass on each process."""
        return -(-self._asked // (self.world_size * self.accumulation))

    @property
    def batch_size(self) -> int:
        """Samples of an update, on all processes together."""
        return self.world_size * self.accumulation * self.micro_batch_size

    def is_due(self) -> bool:
        """Whether :meth:`update` wants statistics for the update at hand."""
        return self._updates % self.interval == 0

    def update(self, statistics: GradientStatistics | None = None) -> bool:
        """Count an update and, with its statistics, test the batch size; True if that has grown.

        Statistics with NaN or infinity (a step that a gradient scaler skips) change nothing; a mean gradient of
        exactly zero asks for the largest batch.

        Raises:
            InputError: no statistics where :meth:`is_due`.
        """
        if statistics is None and self.is_due():
            raise InputError("statistics: got None; allowed: those of this update, since is_due()")
        due = self.is_due()
        self._updates += 1
        if not due or statistics is None or not all(math.isfinite(value) for value in statistics):
            return False
        needed = required_batch_size(statistics, self.test, eta=self.eta, theta=self.theta, nu=self.nu)
        wanted = self.max_batch_size if needed >= self.max_batch_size else math.ceil(needed)
        if wanted <= self._asked:
            return False
        self._asked = wanted
        self.history.append((self._updates, wanted))
        return True

    def apply_to(self, accelerator: Any) -> None:
        """Have an ``accelerate.Accelerator`` accumulate as many micro-batches; to be called between two updates."""
        if accelerator.gradient_accumulation_steps != self.accumulation:
            accelerator.gradient_accumulation_steps = self.accumulation
            accelerator.step = 0  # it synchronises at multiples of the new number, counted from here

    def state_dict(self) -> dict[str, Any]:
        """Sizes and counts, safe for JSON."""
        return {"batch_size": self._asked, "updates": self._updates, "history": [list(entry) for entry in self.history]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            InputError: an unknown or missing key, a batch size above this controller's largest.
        """
        keys = ("batch_size", "updates", "history")
        check_keys("state", state, keys)
        missing = [key for key in keys if key not in state]
        if missing:
            raise InputError(f"state: {missing[0]!r} is missing; keys: {', '.join(keys)}")
        check_number("batch_size", state["batch_size"], at_least=1, at_most=self.max_batch_size, integer=True)
        check_number("updates", state["updates"], at_least=0, integer=True)
        self._asked, self._updates = state["batch_size"], state["updates"]
        self.history = [(int(update), int(size)) for update, size in state["history"]]


class ResizableBatchSampler(Sampler[list[int]]):
    """Batches whose size is the controller's micro-batch at the time each is drawn.

    For ``DataLoader(batch_sampler=...)``, also after ``accelerator.prepare`` (on one process). Worker processes draw
    ahead, and accelerate one batch: a new size comes as late.

    Args:
        sampler: indices, such as ``torch.utils.data.RandomSampler(data)``.
        controller: the size's owner.
        drop_last: leave out a last batch that is smaller. Default False.
    """

    def __init__(self, sampler: Any, controller: BatchSizeController, drop_last: bool = False) -> None:
        self.sampler, self.controller, self.drop_last = sampler, controller, drop_last

    @property
    def batch_size(self) -> int:
        """The present size."""
        return self.controller.micro_batch_size

    def __iter__(self) -> Iterator[list[int]]:
        batch: list[int] = []
        for index in self.sampler:
            batch.append(index)
            if len(batch) >= self.batch_size:
                yield batch
                batch = []
        if batch and not self.drop_last:
            yield batch

    def __len__(self) -> int:
        """At the present size."""
        full, rest = divmod(len(self.sampler), self.batch_size)
        return full + (rest > 0 and not self.drop_last)
