"""Which parameters take a step together: by device, dtype, form and count."""

import operator
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._foreach_utils import _get_foreach_kernels_supported_devices

from genflow.optim.flat import join_state
from genflow.optim.scalars import Scalar

__all__ = ["FOREACH_CHUNK", "FOREACH_NUMEL", "Batch", "Collected", "Form", "StepCounts", "chunks", "split_by_form"]

FOREACH_NUMEL = 16384
"""On a CPU, rules that look at more than entries take the multi-tensor form for tensors up to this size: beyond, the
saved calls matter less than the cache that its temporaries cost."""

FOREACH_CHUNK = 262144
"""On a CPU the multi-tensor form takes about so many entries at once, for its temporaries to stay in the cache."""

_PLAIN = (Tensor, torch.nn.Parameter)  # exact types: subclasses such as DTensor may lack the multi-tensor operations

State = dict[str, Tensor]

Form = Literal["single", "many", "flat"]
"""One tensor after another; the multi-tensor form; joined and cut (:mod:`genflow.optim.flat`)."""


class Collected(NamedTuple):
    """The parameters of one group that have a gradient; the gradients; after the checks, the states."""

    index: int
    group: dict[str, Any]
    params: list[Tensor]
    grads: list[Tensor]
    states: list[State]


class Batch(NamedTuple):
    """Parameters of one device and dtype, of the same form."""

    form: Form
    params: list[Tensor]
    grads: list[Tensor]
    states: list[State]


def split_by_form(part: Collected, entrywise: bool) -> list[Batch]:
    """Split a group by what cannot be mixed: device, dtype, and the form that is used."""
    kinds = {(type(param), param.device, param.dtype) for param in part.params}
    if len(kinds) == 1:  # nearly always
        form = _form(part.group, *next(iter(kinds)), entrywise)
        if form is not None:
            return [Batch(form, part.params, part.grads, part.states)]
    batches: dict[Any, Batch] = {}
    for param, grad, state in zip(part.params, part.grads, part.states, strict=True):
        form = _form(part.group, type(param), param.device, param.dtype, entrywise)
        if form is None:
            form = "many" if param.numel() <= FOREACH_NUMEL else "single"
        batch = batches.setdefault((param.device, param.dtype, form), Batch(form, [], [], []))
        batch.params.append(param)
        batch.grads.append(grad)
        batch.states.append(state)
    return list(batches.values())


def _form(group: dict[str, Any], kind: type, device: torch.device, dtype: torch.dtype, entrywise: bool) -> Form | None:
    """The form for parameters of a type; None where it goes by size."""
    if group["differentiable"]:
        return "single"
    if group["foreach"] is not None and not group["compile"]:
        return "many" if group["foreach"] else "single"
    if kind not in _PLAIN:
        return "single"
    if torch.compiler.is_compiling():
        return "many"  # the caller's graph takes everything
    # counts on the device make scalars differ by tensor
    flat = entrywise and not dtype.is_complex and not group["capturable"]
    if group["compile"]:
        return "flat" if flat else "many"
    if device.type == "cpu":
        return "flat" if flat else None
    return "many" if device.type in _get_foreach_kernels_supported_devices() else "single"


class StepCounts:
    """The step counts of an optimizer's batches: those of a batch are joined, so that one addition serves all."""

    def __init__(self) -> None:
        self._joined: dict[Any, tuple[Tensor, list[Tensor]]] = {}

    def count(self, key: Any, batch: Batch, on_device: bool) -> list[tuple[Batch, Scalar]]:
        """Count this step, and split by the count, which is smaller for parameters that joined late.

        With ``on_device`` the counts stay there: one batch and a tensor of counts. ``key`` tells batches apart.
        """
        steps = [state["step"] for state in batch.states]
        if on_device:
            torch._foreach_add_(steps, 1)
            wide = torch.float32 if steps[0].device.type == "mps" else torch.float64
            return [(batch, torch.stack(steps).to(wide))]
        joined, parts = self._joined.get(key, (None, []))
        if joined is None or len(parts) != len(steps) or not all(map(operator.is_, parts, steps)):
            joined, parts = self._joined[key] = join_state("step", batch.states)
        counts = joined.add_(1).tolist()
        if len(set(counts)) == 1:
            return [(batch, counts[0])]
        split: dict[float, Batch] = {}
        for param, grad, state, count in zip(batch.params, batch.grads, batch.states, counts, strict=True):
            mine = split.setdefault(count, Batch(batch.form, [], [], []))
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
