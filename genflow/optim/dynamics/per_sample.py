"""The gradient of each sample's own loss."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from genflow.errors import InputError, check_choice, check_number

__all__ = ["per_sample_gradients"]

SampleLoss = Callable[..., Tensor]


def per_sample_gradients(
    network: nn.Module,
    loss: SampleLoss,
    samples: Sequence[Tensor | None],
    *,
    select: Callable[[str, Tensor], bool] | None = None,
    chunk: int = 32,
    method: Literal["vmap", "loop"] = "vmap",
) -> Iterator[dict[str, Tensor]]:
    """Gradients of single samples, ``chunk`` samples at a time: by name, (chunk, ...) each.

    Args:
        network: its parameters, buffers and mode are used as they are; ``.grad`` is not touched.
        loss: ``loss(network, *sample)`` -> a scalar; each tensor of the sample has a leading dimension of 1.
        samples: tensors with a common first dimension; None is handed on.
        select: which parameters, by name and value; by default all that require a gradient.
        chunk: samples at a time; memory grows with it times the number of parameters.
        method: "vmap" (torch.func) runs a chunk at once; "loop" takes networks that vmap does not.

    Raises:
        InputError: no samples or of unequal number, no parameters, batch normalization in training mode (samples
            would depend on each other), a loss that is no scalar.
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
    chosen = {
        name: param
        for name, param in network.named_parameters()
        if param.requires_grad and (select is None or select(name, param))
    }
    if not chosen:
        raise InputError("select: no parameter is left; allowed: at least one that requires a gradient")
    return _chunks(network, loss, samples, chosen, counts.pop(), chunk, method)


def _chunks(
    network: nn.Module,
    loss: SampleLoss,
    samples: Sequence[Tensor | None],
    chosen: dict[str, Tensor],
    count: int,
    chunk: int,
    method: str,
) -> Iterator[dict[str, Tensor]]:
    gradients = _vmapped(network, loss, chosen) if method == "vmap" else _looped(network, loss, chosen)
    for start in range(0, count, chunk):
        part = [None if tensor is None else tensor[start : start + chunk] for tensor in samples]
        with sdpa_kernel(SDPBackend.MATH):
            found = gradients(part)
        yield found


def _scalar(value: Tensor) -> Tensor:
    if value.numel() != 1:
        raise InputError(f"loss: gave shape {tuple(value.shape)}; allowed: a scalar for a sample")
    return value.reshape(())


def _vmapped(network: nn.Module, loss: SampleLoss, chosen: dict[str, Tensor]) -> Callable[..., dict[str, Tensor]]:
    params = {name: param.detach() for name, param in chosen.items()}
    rest = {name: param.detach() for name, param in network.named_parameters() if name not in chosen}
    rest |= dict(network.named_buffers())

    def single(values: dict[str, Tensor], part: list[Tensor | None]) -> Tensor:
        def call(*args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(network, values | rest, args, kwargs)

        return _scalar(loss(call, *(None if tensor is None else tensor[None] for tensor in part)))

    def gradients(part: list[Tensor | None]) -> dict[str, Tensor]:
        dims = (None, [None if tensor is None else 0 for tensor in part])
        return torch.func.vmap(torch.func.grad(single), dims, randomness="different")(params, part)

    return gradients


def _looped(network: nn.Module, loss: SampleLoss, chosen: dict[str, Tensor]) -> Callable[..., dict[str, Tensor]]:
    def gradients(part: list[Tensor | None]) -> dict[str, Tensor]:
        rows = []
        for index in range(next(len(tensor) for tensor in part if tensor is not None)):
            sample = [None if tensor is None else tensor[index : index + 1] for tensor in part]
            with torch.enable_grad():
                value = _scalar(loss(network, *sample))
            rows.append(torch.autograd.grad(value, list(chosen.values()), allow_unused=True, materialize_grads=True))
        return {name: torch.stack(column) for name, column in zip(chosen, zip(*rows, strict=True), strict=True)}

    return gradients
