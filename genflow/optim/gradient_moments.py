"""How much the gradients of a batch differ from sample to sample: what tests of the batch size ask.

Byrd et al., Mathematical Programming 134, 2012 (norm test); Bollapragada, Byrd and Nocedal, arXiv 1710.11258 (inner
product, orthogonality); Lau et al., arXiv 2402.11215 (coordinates).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from genflow.errors import InputError, check_number

__all__ = ["GradientStatistics", "MicroBatchGradients", "gradient_statistics", "per_sample_gradients"]


class GradientStatistics(NamedTuple):
    """Moments of the gradient of one sample around the batch's mean gradient, all parameters together.

    variance: sum over coordinates of the (unbiased) variance.
    along: variance of the inner product with the mean gradient.
    across: sum over coordinates of the variance orthogonal to the mean gradient.
    norm_square: squared norm of the mean gradient.
    coordinate: the largest (or a quantile) over coordinates of variance / squared mean.
    samples: how many samples the mean is over.
    """

    variance: float
    along: float
    across: float
    norm_square: float
    coordinate: float
    samples: int


def gradient_statistics(
    gradients: Sequence[Tensor], size: int = 1, *, floor: float = 1e-12, quantile: float = 1.0
) -> GradientStatistics:
    """Statistics from gradients of samples, or of micro-batches.

    With ``torch.distributed``, over the gradients of all processes: what is within them and what is between.

    Args:
        gradients: for each parameter, a tensor (number, *shape of the parameter); ``number`` at least 2 in all.
        size: samples in each micro-batch; a mean over ``size`` samples varies ``size`` times less than one, and the
            statistics are brought back to one. Default 1.
        floor: least squared mean of a coordinate, relative to the largest: where a mean is nearly zero, its ratio says
            nothing. Default 1e-12.
        quantile: over coordinates, of the ratios; 1 (default) is the largest, as in the paper, which one coordinate
            decides.

    Raises:
        InputError: fewer than two gradients; unequal numbers.
    """
    check_number("size", size, at_least=1, integer=True)
    check_number("floor", floor, at_least=0)
    check_number("quantile", quantile, above=0, at_most=1)
    numbers = {len(gradient) for gradient in gradients}
    if len(numbers) != 1:
        raise InputError(f"gradients: got {sorted(numbers)} for different parameters; allowed: one number for all")
    device = gradients[0].device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    flat = [gradient.detach().flatten(1).to(dtype) for gradient in gradients]
    number = torch.tensor([float(numbers.pop())], dtype=dtype, device=device)
    sums = _summed([number, *[g.sum(0) for g in flat], *[g.square().sum(0) for g in flat]])
    count, means = sums[0].item(), [s / sums[0] for s in sums[1 : len(flat) + 1]]
    if count < 2:
        raise InputError(f"gradients: got {int(count)}; allowed: at least 2, for there to be a variance")
    squares = sums[len(flat) + 1 :]
    variances = [(s - count * m.square()).clamp_min(0) / (count - 1) for s, m in zip(squares, means, strict=True)]
    norm_square = torch.stack([m.square().sum() for m in means]).sum()
    inner = torch.stack([g @ m for g, m in zip(flat, means, strict=True)]).sum(0) - norm_square
    along = _summed([inner.square().sum()[None]])[0][0] / (count - 1)
    variance = torch.stack([v.sum() for v in variances]).sum()
    across = (variance - along / norm_square).clamp_min(0)
    mean_squares = torch.cat([m.square() for m in means])
    least = floor * mean_squares.amax()
    ratios = torch.cat(variances) / mean_squares.clamp_min(least)
    ratios = torch.where(ratios.isnan(), 0, ratios)  # a coordinate that is always zero asks for nothing
    coordinate = ratios.amax() if quantile == 1 else _quantile(ratios, quantile)
    found = torch.stack([variance * size, along * size, across * size, norm_square, coordinate * size]).tolist()
    return GradientStatistics(*found, samples=int(count) * size)


def _quantile(values: Tensor, quantile: float) -> Tensor:
    """Of any number of values: torch.quantile takes 2^24 at most."""
    return values.kthvalue(max(1, round(quantile * len(values)))).values


def _summed(vectors: list[Tensor]) -> list[Tensor]:
    """The sum over processes, in one message."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return vectors
    flat = torch.cat(vectors)
    torch.distributed.all_reduce(flat)
    return list(flat.split([len(vector) for vector in vectors]))


def per_sample_gradients(
    loss: Callable[..., Tensor], model: nn.Module, *batch: Any, chunk_size: int | None = None
) -> list[Tensor]:
    """Gradients of each sample, for :func:`gradient_statistics`: a tensor (samples, *shape) for each parameter.

    Args:
        loss: ``loss(model, *sample)``, a scalar; ``sample`` is a batch of one.
        model: its parameters that require gradients are differentiated by. Random layers draw anew for each sample.
        *batch: tensors (samples, ...).
        chunk_size: samples at a time, against memory; default: all.

    Raises:
        InputError: batch normalization in training mode, which has no gradient of one sample, by name.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise InputError(
                f"model: {name or 'it'} is a {type(module).__name__} in training mode, which mixes samples"
            )
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    class Bound(nn.Module):
        """The loss as a module, whose parameters can be exchanged."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *sample: Tensor) -> Tensor:
            return loss(self.model, *[x[None] for x in sample])

    bound = Bound()

    def of_one(values: dict[str, Tensor], *sample: Tensor) -> Tensor:
        return torch.func.functional_call(bound, {f"model.{name}": value for name, value in values.items()}, sample)

    axes = (None, *[0] * len(batch))
    vectorised = torch.func.vmap(torch.func.grad(of_one), axes, randomness="different", chunk_size=chunk_size)
    return list(vectorised(trained, *batch).values())


class MicroBatchGradients:
    """Gradients of micro-batches, taken from what accumulates in ``grad``: no gradient of one sample is needed.

    Call :meth:`record` after each ``backward`` of an accumulated step, :meth:`statistics` before the update. Keeps a
    copy of the gradient for each micro-batch.

    Args:
        params: those whose gradients count.
    """

    def __init__(self, params: Iterable[Tensor]) -> None:
        self._params = [p for p in params if p.requires_grad]
        self._parts: list[list[Tensor]] = []
        self._before: list[Tensor] | None = None

    def record(self, scale: float = 1.0) -> None:
        """Note what the last ``backward`` added; ``scale`` undoes a division of the loss (by the micro-batches)."""
        now = [torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in self._params]
        before = self._before or [torch.zeros_like(g) for g in now]
        self._parts.append([(g - b) * scale for g, b in zip(now, before, strict=True)])
        self._before = now

    def statistics(self, size: int, *, floor: float = 1e-12, quantile: float = 1.0) -> GradientStatistics:
        """Statistics of micro-batches of ``size`` samples recorded since the last call, which are then forgotten.

        Raises:
            InputError: fewer than two micro-batches over all processes.
        """
        if not self._parts:
            raise InputError("record: no micro-batch recorded; allowed: at least 2")
        stacked = [torch.stack(parts) for parts in zip(*self._parts, strict=True)]
        self._parts, self._before = [], None
        return gradient_statistics(stacked, size, floor=floor, quantile=quantile)
