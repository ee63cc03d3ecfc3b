"""The step through ``torch.compile``.

A graph over all parameters costs seconds a tensor to build and microseconds a tensor to enter. A rule that looks at
entries alone therefore gets flat tensors (:mod:`genflow.optim.flat`), and a few graphs with open sizes serve all.
Other rules get one graph over the batch.
"""

import itertools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genflow.optim.execution import Rule, run_each, run_many, scalar_dtype
from genflow.optim.flat import Flat

__all__ = ["CompiledSteps", "as_tensors"]


_COPIES = itertools.count()


class CompiledSteps:
    """The compiled graphs of one optimizer, by kind of batch; ``key`` names what makes a graph of its own."""

    def __init__(self) -> None:
        self._graphs: dict[Any, Callable[..., None]] = {}

    def flat(self, key: Any, rule: Rule, flat: Flat, values: dict[str, Any], maximize: bool, stochastic: bool) -> None:
        """:func:`genflow.optim.execution.run_each`, compiled."""
        # sizes become open when a second one comes
        self._graph((key, len(flat.params)), run_each, None)(rule, *flat, values, maximize, stochastic)

    def many(
        self,
        key: Any,
        rule: Rule,
        params: list[Tensor],
        grads: list[Tensor],
        buffers: dict[str, list[Tensor]],
        values: dict[str, Any],
        maximize: bool,
        stochastic: bool,
    ) -> None:
        """:func:`genflow.optim.execution.run_many`, compiled."""
        self._graph(key, run_many, False)(rule, params, grads, buffers, values, maximize, stochastic)

    def _graph(self, key: Any, function: Callable[..., None], dynamic: bool | None) -> Callable[..., None]:
        if key not in self._graphs:
            # asserting the size of each argument costs more than small weights' steps
            self._graphs[key] = torch.compile(_fresh(function), dynamic=dynamic, options={"size_asserts": False})
        return self._graphs[key]


def as_tensors(scalars: dict[str, Any], param: Tensor) -> dict[str, Any]:
    """A number would be a guard of the graph: one compilation a step."""
    wide = scalar_dtype(param)
    return {
        name: torch.tensor(value, dtype=wide) if isinstance(value, (int, float)) else value
        for name, value in scalars.items()
    }


def _fresh(function: Callable[..., None]) -> Callable[..., None]:
    """A copy with code and a name of its own.

    torch limits the number of compilations of one code object, and by its name remembers which numbers have changed:
    another optimizer's betas would become variables of this one's graph.
    """
    name = f"{function.__name__}_{next(_COPIES)}"
    return types.FunctionType(function.__code__.replace(co_name=name), function.__globals__, name)
