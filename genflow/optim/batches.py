"""Which parameters take a step together: by device, dtype, form and count."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._foreach_utils import _get_foreach_kernels_supported_devices

from genflow.optim.scalars import Scalar

__all__ = ["FOREACH_CHUNK", "FOREACH_NUMEL", "Batch", "Collected", "chunks", "count_step", "split_by_form"]

FOREACH_NUMEL = 16384
"""On a CPU the multi-tensor form is the default for tensors up to this size: beyond, the saved calls matter less
than the cache that its temporaries cost."""

FOREACH_CHUNK = 262144
"""On a CPU the multi-tensor form takes about so many entries at once, for its temporaries to stay in the cache."""

_PLAIN = (Tensor, torch.nn.Parameter)  # exact types: subclasses such as DTensor may lack the multi-tensor operations
_ONE = torch.ones(())

State = dict[str, Tensor]


class Collected(NamedTuple):
    """The parameters of one group that have a gradient; the gradients; after the checks, the states."""

    index: int
    group: dict[str, Any]
    params: list[Tensor]
    grads: list[Tensor]
    states: list[State]


class Batch(NamedTuple):
    """Parameters of one device and dtype, of the same form (``many``: multi-tensor)."""

    many: bool
    params: list[Tensor]
    grads: list[Tensor]
    states: list[State]


def split_by_form(part: Collected) -> list[Batch]:
    """Split a group by what cannot be mixed: device, dtype, and the form that is used."""
    group = part.group
    always = None
    if group["differentiable"]:
        always = False
    elif group["foreach"] is not None and not group["compile"]:
        always = group["foreach"]
    compiled = group["compile"] or torch.compiler.is_compiling()
    fast_devices = _get_foreach_kernels_supported_devices()
    batches: dict[Any, Batch] = {}
    for param, grad, state in zip(part.params, part.grads, part.states, strict=True):
        device = param.device
        if always is not None:
            many = always
        elif type(param) not in _PLAIN:
            many = False
        elif compiled:
            many = True
        elif device.type == "cpu":
            many = param.numel() <= FOREACH_NUMEL
        else:
            many = device.type in fast_devices
        key = device, param.dtype, many
        batch = batches.get(key)
        if batch is None:
            batch = batches[key] = Batch(many, [], [], [])
        batch.params.append(param)
        batch.grads.append(grad)
        batch.states.append(state)
    return list(batches.values())


def count_step(batch: Batch, on_device: bool) -> list[tuple[Batch, Scalar]]:
    """Count this step, and split by the count, which is smaller for parameters that joined late.

    With ``on_device`` the counts stay there: one batch and a tensor of counts.
    """
    steps = [state["step"] for state in batch.states]
    if on_device:
        torch._foreach_add_(steps, 1)
        return [(batch, torch.stack(steps).to(torch.float32 if steps[0].device.type == "mps" else torch.float64))]
    torch._foreach_add_(steps, _ONE, alpha=1.0)  # faster than a number, which torch would wrap for each
    counts = torch.stack(steps).tolist()
    if len(set(counts)) == 1:
        return [(batch, counts[0])]
    split: dict[float, Batch] = {}
    for param, grad, state, count in zip(batch.params, batch.grads, batch.states, counts, strict=True):
        mine = split.setdefault(count, Batch(batch.many, [], [], []))
        mine.params.append(param)
        mine.grads.append(grad)
        mine.states.append(state)
    return [(mine, count) for count, mine in split.items()]


def chunks(params: list[Tensor]) -> Iterator[slice]:
    """Runs of consecutive tensors with about :data:`FOREACH_CHUNK` entries; everywhere but on a CPU, all at once."""
    if params[0].device.type != "cpu":
        yield slice(None)
        return
    first = total = 0
    for index, param in enumerate(params):
        size = param.numel()
        if total and total + size > FOREACH_CHUNK:
            yield slice(first, index)
            first, total = index, 0
        total += size
    yield slice(first, len(params))
