"""Adaptive projected guidance (Sadat, Hilliges and Weber 2025, arXiv 2410.02416)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genflow.errors import InputError, check_number
from genflow.guidance.base import Guidance

__all__ = ["APG"]

_SDXL_THRESHOLD, _SDXL_SIZE = 15.0, 4 * 128 * 128


class APG(Guidance):
    """CFG's update ``d = cond - uncond`` with a momentum, a largest norm and a smaller part along ``cond``.

    With ``m_n = d_n + momentum m_{n-1}``, ``r = norm_threshold``, and ``m`` split into the part parallel to ``cond``
    and the rest, all norms and products over a whole sample:

        ``guided = cond + (scale - 1) min(1, r / |m|) (m_orthogonal + eta m_parallel)``

    (algorithm 1 of the paper). The parallel part is what oversaturates; a momentum below 0 pushes each update away
    from those before. ``APG(scale, eta=1, norm_threshold=None, momentum=0)`` is CFG.

    Momentum counts outer steps, not evaluations: every evaluation of step n uses the ``m`` of step n - 1, and the
    ``m`` of step n is that of its first evaluation. What a solver with stages (Heun, Runge-Kutta) sees is so one
    function of the state for the whole step. The momentum begins at the first step where guidance acts.

    Args:
        scale: the strength; 1 is no guidance. A number, or ``(B,)`` numbers (a tensor, say), one for each sample.
        eta: what is left of the parallel part; 0 in the paper, 1 keeps it all.
        norm_threshold: the largest norm r of an update. ``"auto"`` is ``15 sqrt(size / 65536)`` for samples of
            ``size`` elements: the paper's 15 for SDXL (latents of 4x128x128), kept the same for each element, since
            norms grow as the square root of the size. 0 or None sets no limit.
        momentum: between -1 and 1; -0.5 in the paper for SDXL. At -1 the sum would not forget, and images turn grey.
        interval, start, stop, rescale: see :class:`Guidance`.

    Raises:
        InputError: an option out of range.
    """

    name = "apg"
    option_names = ("scale", "eta", "norm_threshold", "momentum", *Guidance.option_names[1:])

    def __init__(
        self,
        scale: float | Sequence[float] | Tensor = 1.0,
        eta: float = 0.0,
        norm_threshold: float | str | None = "auto",
        momentum: float = -0.5,
        interval: tuple[float, float | None] = (0.0, math.inf),
        start: float = 0.0,
        stop: float = 1.0,
        rescale: float = 0.0,
    ) -> None:
        super().__init__(scale, interval, start, stop, rescale)
        self.eta = float(check_number("eta", eta))
        if isinstance(norm_threshold, str):
            if norm_threshold != "auto":
                raise InputError(f"norm_threshold: got {norm_threshold!r}; allowed: a number (0 is no limit) or 'auto'")
            self.norm_threshold: float | str | None = "auto"
        else:
            limit = None if norm_threshold is None else float(check_number("norm_threshold", norm_threshold))
            self.norm_threshold = limit if limit is not None and limit > 0 else None
        self.momentum = float(check_number("momentum", momentum, above=-1, below=1))
        self._forget()

    @property
    def counts_steps(self) -> bool:
        """See :attr:`Guidance.counts_steps`; momentum counts them too."""
        return self.momentum != 0 or super().counts_steps

    def reset(self, steps: int | None = None) -> None:
        """See :meth:`Guidance.reset`."""
        super().reset(steps)
        self._forget()

    def _forget(self) -> None:
        self._step: int | None = None  # the outer step of the last call
        self._before: Tensor | None = None  # m of the step before it
        self._latest: Tensor | None = None  # m of its first evaluation

    def _guide(self, cond: Tensor, uncond: Tensor, x: Tensor, noise_level: float | Tensor, step: int) -> Tensor:
        update = cond - uncond
        if self.momentum:
            self._accumulate(update, step)
        shape = cond.shape
        column = (-1,) + (1,) * (cond.ndim - 1)
        flat, base = update.reshape(shape[0], -1), cond.reshape(shape[0], -1)
        weight: Any = self.scale_like(cond) - 1  # of the update
        limit = self.norm_threshold
        if limit == "auto":
            limit = _SDXL_THRESHOLD * math.sqrt(flat.shape[1] / _SDXL_SIZE)
        if limit is not None:
            norm = torch.linalg.vector_norm(flat, dim=1)
            weight = weight * (limit / norm).clamp(max=1).reshape(column)  # a norm of 0: infinity, clamped to 1
        keep: Any = 1.0  # of cond: what it loses is the parallel part of the update
        if self.eta != 1:
            # sums, not matrix products, which an accelerator may round to TF32
            square = torch.linalg.vector_norm(base, dim=1).square()
            along = (flat * base).sum(dim=1) / square.clamp(min=torch.finfo(square.dtype).tiny)
            keep = 1 - weight * ((1 - self.eta) * along.reshape(column))
        if isinstance(weight, Tensor):
            return (cond * keep).addcmul_(update, weight)
        return (cond * keep).add_(update, alpha=weight)

    def _accumulate(self, update: Tensor, step: int) -> None:
        """Make ``update`` the sum with momentum, in place, and remember it if its step is new."""
        if self._step is not None and step < self._step:  # another run, which nobody announced
            self._forget()
        new = step != self._step
        if new:
            self._step, self._before = step, self._latest
        if self._before is not None:
            if self._before.shape != update.shape:
                raise InputError(
                    f"guidance: estimates of shape {tuple(update.shape)} after {tuple(self._before.shape)} in one run; "
                    "call reset() before another run"
                )
            update.add_(self._before, alpha=self.momentum)
        if new:
            self._latest = update.detach()
