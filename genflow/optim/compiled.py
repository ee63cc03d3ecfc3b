"""The step through ``torch.compile``.

A graph over all parameters costs seconds a tensor to build and microseconds a tensor to enter. Where a rule looks at
entries alone, it need not know where one tensor ends: small tensors are joined into one, large ones are flattened and
go in packs, and a few graphs with open sizes serve all. Other rules get one graph over the batch.
"""

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from genflow.optim.execution import Rule, run_many, scalar_dtype

__all__ = ["JOINED_NUMEL", "PACK", "CompiledSteps"]

JOINED_NUMEL = 16384
"""Tensors up to this size are copied into one; for larger ones the copies would cost more than the calls."""

PACK = 8
"""So many large tensors go into one call."""


class CompiledSteps:
    """The compiled graphs of one optimizer, by kind of batch."""

    def __init__(self) -> None:
        self._graphs: dict[Any, Callable[..., None]] = {}

    def __call__(
        self,
        key: Any,
        entrywise: bool,
        rule: Rule,
        params: list[Tensor],
        grads: list[Tensor],
        buffers: dict[str, list[Tensor]],
        scalars: dict[str, Any],
        constants: dict[str, Any],
        maximize: bool,
        stochastic: bool,
    ) -> None:
        """:func:`genflow.optim.execution.run_many`, compiled. ``key`` names what makes a graph of its own."""
        wide = scalar_dtype(params[0])
        values = {
            # a number would be a guard: one compilation a step
            name: torch.tensor(value, dtype=wide) if isinstance(value, (int, float)) else value
            for name, value in scalars.items()
        } | constants
        if not entrywise or any(isinstance(value, list) for value in scalars.values()):
            self._graph(key, None)(rule, params, grads, buffers, values, maximize, stochastic)
            return
        names, columns = list(buffers), [params, grads, *buffers.values()]
        if params[0].is_complex():
            columns = [[torch.view_as_real(x) for x in column] for column in columns]
        alone = [
            index
            for index, param in enumerate(columns[0])
            if param.numel() > JOINED_NUMEL and all(column[index].is_contiguous() for column in columns)
        ]
        if len(alone) < len(params):
            chosen = set(range(len(params))).difference(alone) if alone else None
            small = columns if chosen is None else [[column[i] for i in sorted(chosen)] for column in columns]
            joined = [_flatten_dense_tensors(column) for column in small]
            self._run(key, "joined", rule, [[x] for x in joined], names, values, maximize, stochastic)
            for index, (column, result) in enumerate(zip(small, joined, strict=True)):
                if index != 1:  # the gradients stay as they are
                    torch._foreach_copy_(column, _unflatten_dense_tensors(result, column))
        whole = len(alone) - len(alone) % PACK
        packs = [alone[i : i + PACK] for i in range(0, whole, PACK)] + [[index] for index in alone[whole:]]
        for pack in packs:
            flat = [[column[index].view(-1) for index in pack] for column in columns]
            self._run(key, len(pack), rule, flat, names, values, maximize, stochastic)

    def _run(
        self,
        key: Any,
        kind: Any,
        rule: Rule,
        columns: list[list[Tensor]],
        names: list[str],
        values: dict[str, Any],
        maximize: bool,
        stochastic: bool,
    ) -> None:
        params, grads, *states = columns
        self._graph(key, kind)(rule, params, grads, dict(zip(names, states, strict=True)), values, maximize, stochastic)

    def _graph(self, key: Any, kind: Any) -> Callable[..., None]:
        if (key, kind) not in self._graphs:
            # dynamic=None: sizes become open when a second one comes
            dynamic = False if kind is None else None
            self._graphs[key, kind] = torch.compile(_fresh(run_many), dynamic=dynamic)
        return self._graphs[key, kind]


def _fresh(function: Callable[..., None]) -> Callable[..., None]:
    """A copy with code of its own: torch limits the number of compilations of one code object."""
    return types.FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
