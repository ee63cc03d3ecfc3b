"""Gradients of single samples, a chunk of samples at a time."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from genflow.errors import InputError, check_choice, check_number
from genflow.optim.gradient_moments import per_sample_gradients

__all__ = ["SampleLoss", "gradient_chunks"]

SampleLoss = Callable[..., Tensor]


def gradient_chunks(
    network: nn.Module,
    loss: SampleLoss,
    samples: Sequence[Tensor | None],
    *,
    select: Callable[[str, Tensor], bool] | None = None,
    chunk: int = 32,
    method: Literal["vmap", "loop"] = "vmap",
) -> Iterator[dict[str, Tensor]]:
    """Gradients of single samples, ``chunk`` samples at a time: by name of the parameter, (chunk, ...) each.

    Args:
        network: its parameters, buffers and mode are used as they are; ``.grad`` is not touched.
        loss: ``loss(network, *sample)`` -> a scalar; each tensor of the sample has a leading dimension of 1.
        samples: tensors with a common first dimension; None is handed on.
        select: which parameters, by name and value; by default all that require a gradient.
        chunk: samples at a time; memory grows with it times the number of parameters.
        method: "vmap" (:func:`genflow.optim.per_sample_gradients`) runs a chunk at once; "loop" takes networks that
            vmap does not.

    Raises:
        InputError: no samples or of unequal number, no parameters, normalization over the batch (samples would depend
            on each other), a loss that is no scalar.
    """
    check_number("chunk", chunk, at_least=1, integer=True)
    check_choice("method", method, ("vmap", "loop"))
    counts = {len(tensor) for tensor in samples if tensor is not None}
    if len(counts) != 1 or 0 in counts:
        raise InputError(f"samples: tensors of {sorted(counts) or 'no'} samples; allowed: one number above 0 for all")
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise InputError(
                f"network: {name or type(module).__name__} normalizes over the batch, which makes samples depend on "
                "each other; allowed: network.eval(), or group normalization"
            )
    count = counts.pop()
    trained = {name: param for name, param in network.named_parameters() if param.requires_grad}
    chosen = [name for name, param in trained.items() if select is None or select(name, param)]
    if not chosen:
        raise InputError("select: no parameter is left; allowed: at least one that requires a gradient")
    there = [tensor is not None for tensor in samples]
    tensors = [tensor for tensor in samples if tensor is not None]

    def filled(model: nn.Module, *sample: Tensor) -> Tensor:
        given = iter(sample)
        value = loss(model, *(next(given) if present else None for present in there))
        if value.numel() != 1:
            raise InputError(f"loss: gave shape {tuple(value.shape)}; allowed: a scalar for a sample")
        return value.reshape(())

    gradients = per_sample_gradients if method == "vmap" else _looped

    def chunks() -> Iterator[dict[str, Tensor]]:
        for start in range(0, count, chunk):
            with sdpa_kernel(SDPBackend.MATH):  # vmap knows no other
                found = gradients(filled, network, *(tensor[start : start + chunk] for tensor in tensors))
            named = dict(zip(trained, found, strict=True))
            yield {name: named[name] for name in chosen}

    return chunks()


def _looped(loss: SampleLoss, network: nn.Module, *batch: Tensor) -> list[Tensor]:
    """What :func:`genflow.optim.per_sample_gradients` gives, one sample after another."""
    params = [param for param in network.parameters() if param.requires_grad]
    rows = []
    for sample in zip(*batch, strict=True):
        with torch.enable_grad():
            value = loss(network, *(tensor[None] for tensor in sample))
        rows.append(torch.autograd.grad(value, params, allow_unused=True, materialize_grads=True))
    return [torch.stack(column) for column in zip(*rows, strict=True)]
