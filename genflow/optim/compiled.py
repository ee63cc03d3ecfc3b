"""The step through ``torch.compile``.

A graph over all parameters costs seconds a tensor to build and microseconds a tensor to enter. Where a rule looks at
entries alone, it need not know where one tensor ends: small tensors are joined into one, large ones are flattened and
go in packs, and a few graphs with open sizes serve all. Other rules get one graph over the batch.
"""

import operator
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
        self._joined: dict[Any, tuple[Tensor, list[Tensor]]] = {}

    def __call__(
        self,
        key: Any,
        entrywise: bool,
        rule: Rule,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[dict[str, Tensor]],
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
        names = [name for name in states[0] if name != "step"]
        if not entrywise or params[0].is_complex() or any(isinstance(value, list) for value in scalars.values()):
            buffers = {name: [state[name] for state in states] for name in names}
            self._graph(key, None)(rule, params, grads, buffers, values, maximize, stochastic)
            return
        columns = [params, grads, *([state[name] for state in states] for name in names)]
        alone = [
            index
            for index, param in enumerate(columns[0])
            if param.numel() > JOINED_NUMEL and all(column[index].is_contiguous() for column in columns)
        ]
        if len(alone) < len(params):
            others = sorted(set(range(len(params))).difference(alone))
            small = [[column[index] for index in others] for column in columns] if alone else columns
            joined = [_flatten_dense_tensors(small[0]), _flatten_dense_tensors(small[1])]
            for name, column in zip(names, small[2:], strict=True):
                joined.append(self._join(key, name, column, [states[index] for index in others]))
            self._run(key, "joined", rule, [[x] for x in joined], names, values, maximize, stochastic)
            torch._foreach_copy_(small[0], _unflatten_dense_tensors(joined[0], small[0]))
        whole = len(alone) - len(alone) % PACK
        packs = [alone[i : i + PACK] for i in range(0, whole, PACK)] + [[index] for index in alone[whole:]]
        for pack in packs:
            flat = [[column[index].view(-1) for index in pack] for column in columns]
            self._run(key, len(pack), rule, flat, names, values, maximize, stochastic)

    def _join(self, key: Any, name: str, column: list[Tensor], states: list[dict[str, Tensor]]) -> Tensor:
        """State ``name`` of all as one tensor, of which each parameter's state becomes a part: joined once only."""
        flat, parts = self._joined.get((key, name), (None, []))
        # after loading, or when other parameters have gradients, the state is not these parts
        if flat is not None and len(parts) == len(column) and all(map(operator.is_, column, parts)):
            return flat
        flat = _flatten_dense_tensors(column)
        parts = list(_unflatten_dense_tensors(flat, column))
        for state, part in zip(states, parts, strict=True):
            state[name] = part
        self._joined[key, name] = flat, parts
        return flat

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
