"""Batches that grow while training, by AdAdaGrad's tests: the micro-batch stays, a step accumulates more of them."""

from collections.abc import Iterable, Mapping
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from genflow.errors import InputError
from genflow.optim import BatchSizeController, MicroBatchGradients
from genflow.training.recipe import Recipe

__all__ = ["BatchGrowth"]

_GROUPS = 16
"""Micro-batches are gathered into at most twice as many gradients: each is a copy of the gradient in memory."""


class BatchGrowth:
    """Watches the gradients of a step's micro-batches and has accelerate accumulate as many as the test asks for.

    Call :meth:`record` after each ``backward``, :meth:`update` after the update.

    Args:
        recipe: its ``batch_growth`` section, ``batch_size`` and ``accumulate``.
        params: the network's.
        accelerator: with one process.

    Raises:
        InputError: several processes, where the last ``backward`` of a step brings the sum over processes; a step of
            one micro-batch, which shows no variance; a first batch above the largest.
    """

    def __init__(self, recipe: Recipe, params: Iterable[Tensor], accelerator: Accelerator) -> None:
        section = recipe.batch_growth
        if accelerator.num_processes > 1:
            raise InputError(f"batch_growth: {accelerator.num_processes} processes; allowed: one")
        if recipe.accumulate < 2:
            raise InputError(f"accumulate: {recipe.accumulate} with batch_growth; allowed: at least 2")
        if section.max_batch_size < recipe.batch_size:
            raise InputError(
                f"batch_growth.max_batch_size: {section.max_batch_size}; allowed: at least batch_size, "
                f"{recipe.batch_size}"
            )
        self.micro_batch_size = recipe.batch_size // recipe.accumulate
        self.controller = BatchSizeController(
            recipe.batch_size,
            section.max_batch_size,
            test=section.test,
            eta=section.eta,
            theta=section.theta,
            nu=section.nu,
            interval=section.every_steps,
            max_micro_batch_size=self.micro_batch_size,
        )
        self._quantile = section.quantile
        self._accelerator = accelerator
        self._gradients = MicroBatchGradients(params)
        self._group = 1

    @property
    def accumulate(self) -> int:
        """Micro-batches of the step at hand."""
        return self.controller.accumulation

    @property
    def batch_size(self) -> int:
        """Images of the step at hand."""
        return self.accumulate * self.micro_batch_size

    def record(self, micro: int) -> None:
        """Note what the ``backward`` of micro-batch ``micro`` added, where this update is tested."""
        if not self.controller.is_due():
            return
        self._group = max(1, self.accumulate // _GROUPS)
        if (micro + 1) % self._group == 0:
            scaler = self._accelerator.scaler
            scale = self.accumulate / self._group / (scaler.get_scale() if scaler else 1.0)
            self._gradients.record(scale)

    def update(self) -> bool:
        """Test the batch size where that is due; True if it has grown, which counts from the next step on."""
        statistics = None
        if self.controller.is_due():
            statistics = self._gradients.statistics(self._group * self.micro_batch_size, quantile=self._quantile)
        grown = self.controller.update(statistics)
        if grown:
            self.controller.apply_to(self._accelerator)
        return grown

    def state_dict(self) -> dict[str, Any]:
        """The controller's, safe for JSON."""
        return self.controller.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.controller.load_state_dict(state)
        self.controller.apply_to(self._accelerator)
