"""Averaged weights: made, and put into the network for as long as they are wanted."""

import contextlib
from collections.abc import Iterator

from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from genflow.training.recipe import EMASection

__all__ = ["averaged", "create_ema", "ema_tensors", "load_ema"]


def create_ema(network: nn.Module, section: EMASection) -> EMAModel:
    """The running average of a network's parameters that a recipe's ``ema`` section describes."""
    return EMAModel(
        network.parameters(),
        decay=section.decay,
        use_ema_warmup=True,
        inv_gamma=1.0,
        power=section.power,
        foreach=True,
    )


def ema_tensors(network: nn.Module, ema: EMAModel) -> dict[str, Tensor]:
    """The averages by their parameters' names, for a checkpoint; ``ema.optimization_step`` goes beside them."""
    names = [name for name, _ in network.named_parameters()]
    return dict(zip(names, ema.shadow_params, strict=True))


def load_ema(network: nn.Module, ema: EMAModel, tensors: dict[str, Tensor], steps: int) -> None:
    """Put back what :func:`ema_tensors` gave."""
    for (name, _), shadow in zip(network.named_parameters(), ema.shadow_params, strict=True):
        shadow.copy_(tensors[name])
    ema.optimization_step = steps


@contextlib.contextmanager
def averaged(network: nn.Module, ema: EMAModel) -> Iterator[nn.Module]:
    """The network with the averaged weights in it, in eval mode; undone on exit."""
    parameters = list(network.parameters())
    training = network.training
    ema.store(parameters)
    ema.copy_to(parameters)
    network.eval()
    try:
        yield network
    finally:
        ema.restore(parameters)
        network.train(training)
