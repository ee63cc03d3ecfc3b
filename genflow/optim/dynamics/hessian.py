"""The Hessian of a loss at the present weights, by its products with vectors.

Pearlmutter, "Fast Exact Multiplication by the Hessian", Neural Computation 6 (1994): H v is the gradient of <g, v>.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from genflow.errors import InputError, NonFiniteError, check_flag, check_number
from genflow.optim.dynamics.operators import Operator, flatten, unflatten

__all__ = ["Hessian"]


class Hessian(Operator):
    """Hessian of a mean loss, an :class:`Operator` on flat vectors (P,) in the order of ``params``.

    The loss is a function: whatever it draws from torch's global generator is drawn alike in every product, and the
    generator is left as it was. ``.grad`` is not touched. Attention runs in torch's plain form, since the fused ones
    have no second derivative.

    Args:
        loss: ``loss()``, or ``loss(batch)`` with ``batches``: a scalar, the mean over the batch.
        params: the parameters, which must require a gradient and be real; P entries in all.
        batches: micro-batches; the Hessian is the mean over them.
        weights: weight of each micro-batch, such as its number of samples; equal by default.
        keep_graph: keep the graph of the gradient between products. A product then costs about two gradients, and
            about four without it; memory grows with every micro-batch. By default True for a single batch.
            The products belong to the weights at the first product; after a change of the weights make a new Hessian.
        seed: of torch's global generator inside the loss.
        distributed: the micro-batches are this process's share of all that count; loss, gradient and products are over
            those of all processes of ``torch.distributed``, which must ask for them alike. Default False: each process
            is on its own.

    Raises:
        InputError: no parameters, a parameter that is frozen or complex, weights that do not fit, ``distributed``
            without an initialized ``torch.distributed``.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        params: Iterable[Tensor],
        batches: Sequence[Any] | None = None,
        *,
        weights: Sequence[float] | None = None,
        keep_graph: bool | None = None,
        seed: int = 0,
        distributed: bool = False,
    ) -> None:
        params = list(params)
        available = torch.distributed.is_available() and torch.distributed.is_initialized()
        if check_flag("distributed", distributed) and not available:
            raise InputError("distributed: True without torch.distributed; call init_process_group first")
        if not params:
            raise InputError("params: got none; allowed: at least one parameter")
        for index, param in enumerate(params):
            if not param.requires_grad or param.is_complex():
                kind = "is complex" if param.is_complex() else "does not require a gradient"
                raise InputError(f"params: number {index} {kind}; allowed: real ones that do")
        if batches is not None and not len(batches):
            raise InputError("batches: got none; allowed: at least one, or None for a loss without argument")
        count = 1 if batches is None else len(batches)
        if weights is None:
            weights = [1.0] * count
        if len(weights) != count:
            raise InputError(f"weights: got {len(weights)}; allowed: one for each of {count} batches")
        for index, weight in enumerate(weights):
            check_number(f"weights[{index}]", weight, above=0)
        dtype = torch.promote_types(params[0].dtype, torch.float32)
        for param in params:
            dtype = torch.promote_types(dtype, param.dtype)
        size = sum(param.numel() for param in params)
        super().__init__(self._product, size, dtype, params[0].device)
        self.loss, self.params, self.batches, self.seed = loss, params, batches, seed
        self.distributed = distributed
        whole = self._over_processes(float(sum(weights)))
        self.weights = [weight / whole for weight in weights]
        self.keep_graph = count == 1 if keep_graph is None else keep_graph
        self.products = 0
        self._kept: dict[int, tuple[Tensor, list[Tensor]]] = {}

    def __repr__(self) -> str:
        return f"Hessian({self.size} parameters, {len(self.weights)} batches)"

    def batch(self, index: int) -> "Hessian":
        """The Hessian of one micro-batch of this process alone."""
        if len(self.weights) == 1 and not self.distributed:
            return self
        batches = None if self.batches is None else [self.batches[index]]
        return Hessian(self.loss, self.params, batches, seed=self.seed + index)

    def _summed(self, x: Tensor) -> Tensor:
        if self.distributed:
            torch.distributed.all_reduce(x)
        return x

    def _over_processes(self, value: float) -> float:
        if not self.distributed:
            return value
        return self._summed(torch.tensor([value], dtype=torch.float64, device=self.device)).item()

    @contextlib.contextmanager
    def _evaluation(self, index: int) -> Iterator[None]:
        devices = [self.device] if self.device.type in ("cuda", "xpu") else []
        with (
            torch.random.fork_rng(devices, device_type=self.device.type if devices else "cuda"),
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH),
        ):
            torch.manual_seed(self.seed + index)
            yield

    def _graph(self, index: int, create: bool = True) -> tuple[Tensor, list[Tensor]]:
        """Loss and gradients of one micro-batch; with ``create``, gradients that can be differentiated."""
        if index in self._kept:
            return self._kept[index]
        loss = self.loss() if self.batches is None else self.loss(self.batches[index])
        if loss.numel() != 1:
            raise InputError(f"loss: gave shape {tuple(loss.shape)}; allowed: a scalar, the mean over the batch")
        # over several processes all must learn of it: from the sums
        if not self.distributed and not torch.isfinite(loss.detach()).all():
            raise NonFiniteError(f"loss: {loss.item()} on batch {index}")
        gradients = torch.autograd.grad(
            loss.reshape(()), self.params, create_graph=create, allow_unused=True, materialize_grads=True
        )
        result = loss.detach(), list(gradients)
        if self.keep_graph and create:
            self._kept[index] = result
        return result

    def gradient(self) -> tuple[float, Tensor]:
        """The mean loss and its gradient (P,)."""
        total, gradient = 0.0, torch.zeros(self.size, dtype=self.dtype, device=self.device)
        for index, weight in enumerate(self.weights):
            with self._evaluation(index):
                loss, parts = self._graph(index, create=self.keep_graph)
            total += weight * loss.item()
            gradient.add_(flatten([part.detach() for part in parts]), alpha=weight)
        total = self._over_processes(total)
        if not math.isfinite(total):
            raise NonFiniteError(f"loss: {total} on the batches of all processes")
        return total, self._summed(gradient)

    def _product(self, vector: Tensor) -> Tensor:
        parts = [p.to(q.dtype) for p, q in zip(unflatten(vector.detach(), self.params), self.params, strict=True)]
        total = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        for index, weight in enumerate(self.weights):
            with self._evaluation(index):
                _, gradients = self._graph(index)
                # a gradient that does not depend on the weights has no curvature
                pairs = [(g, v) for g, v in zip(gradients, parts, strict=True) if g.requires_grad]
                if not pairs:
                    continue
                products = torch.autograd.grad(
                    [g for g, _ in pairs],
                    self.params,
                    [v for _, v in pairs],
                    retain_graph=self.keep_graph,
                    allow_unused=True,
                    materialize_grads=True,
                )
            total.add_(flatten(products), alpha=weight)
        self.products += 1
        return self._summed(total)

    def dense(self) -> Tensor:
        """The whole matrix (P, P), by P products; for small networks."""
        rows = [self(row) for row in torch.eye(self.size, dtype=self.dtype, device=self.device)]
        matrix = torch.stack(rows)
        return (matrix + matrix.T) / 2
