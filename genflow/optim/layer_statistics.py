"""Means of a layer's inputs and output gradients, gathered by hooks while a network trains."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SUPPORTED", "LayerStatistics", "mean_input"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
SUPPORTED = (nn.Linear, *_CONVOLUTIONS)
"""Layers whose weight is a matrix between inputs (patches, for convolutions in one group) and outputs."""


def mean_input(layer: nn.Module, x: Tensor) -> Tensor:
    """Mean over samples and positions of what ``layer``'s weight, as (outputs, rest), is multiplied with.

    Of a convolution this is the mean patch, taken from strided views of the mean sample: no patch is copied.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1]).mean(0, dtype=_wide(x))
    dims = len(layer.kernel_size)
    x = x.mean(0, dtype=_wide(x)) if x.ndim == dims + 2 else x.to(_wide(x))
    pads = layer._reversed_padding_repeated_twice  # what "same" and the padding modes come to
    if any(pads):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x[None], pads, mode=mode)[0]
    for dim, (size, step, gap) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)):
        x = x.unfold(dim + 1, gap * (size - 1) + 1, step)[..., ::gap]
    return x.mean(tuple(range(1, dims + 1))).flatten()


def _never() -> bool:
    return False


def _wide(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype


class LayerStatistics:
    """Over all passes since the last :meth:`take`: the mean input, and the sum over samples of output gradients.

    The sum, divided by the positions in a sample, is the mean over samples of :math:`n \\partial L / \\partial y`: a
    loss that is a mean over the batch is brought back to one sample. So batches in parts (accumulation) give what
    the whole batch gives. Only passes that are followed by a backward pass count; a layer used twice counts twice.

    Args:
        wanted: asked before each pass whether to gather.
    """

    def __init__(self, wanted: Callable[[], bool]) -> None:
        self._wanted = wanted
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._clear()

    def _clear(self) -> None:
        self._inputs: Tensor | None = None
        self._outputs: Tensor | None = None
        self._rows = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """A copied or pickled network keeps its hooks; their statistics are not this network's, and gather nothing."""
        return LayerStatistics, (_never,)

    def watch(self, layer: nn.Module) -> None:
        """Gather from ``layer`` too (one of :data:`SUPPORTED`)."""
        self._handles.append(layer.register_forward_hook(self._forward))

    def stop(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._clear()

    def _forward(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not (self._wanted() and torch.is_grad_enabled() and output.requires_grad and output.numel()):
            return
        rows = output.numel() // (output.shape[-1] if isinstance(layer, nn.Linear) else layer.out_channels)
        with torch.no_grad():
            mean = mean_input(layer, inputs[0].detach())
        # a hook on the tensor, not on the module: those break in-place operations that follow
        output.register_hook(lambda grad: self._backward(layer, mean, rows, grad))

    def _backward(self, layer: nn.Module, mean: Tensor, rows: int, grad: Tensor) -> None:
        with torch.no_grad():
            grad = grad.detach()
            if isinstance(layer, nn.Linear):
                samples = grad.shape[0] if grad.ndim > 1 else 1
                total = grad.reshape(-1, grad.shape[-1]).sum(0, dtype=_wide(grad))
            else:
                dims = len(layer.kernel_size)
                samples = grad.shape[0] if grad.ndim == dims + 2 else 1
                total = grad.transpose(0, -dims - 1).flatten(1).sum(1, dtype=_wide(grad))
            total = total * (samples / rows)
            self._inputs = mean * rows if self._inputs is None else self._inputs + mean * rows
            self._outputs = total if self._outputs is None else self._outputs + total
            self._rows += rows

    def take(self) -> tuple[Tensor, Tensor] | None:
        """Mean input and summed output gradient, and start anew; None if no pass has been seen."""
        if self._inputs is None or self._outputs is None:
            return None
        taken = self._inputs / self._rows, self._outputs
        self._clear()
        return taken
