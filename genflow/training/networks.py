"""Networks by the name that a recipe gives them."""

import inspect
from typing import Any

import torch
from torch import nn

from genflow.errors import InputError, check_choice, check_keys

__all__ = ["NETWORKS", "create_network", "for_training"]

NETWORKS = ("lean-unet", "unet2d", "dit")


def create_network(
    name: str,
    *,
    size: tuple[int, int],
    channels: int,
    num_classes: int | None,
    options: dict[str, Any],
    out_channels: int | None = None,
) -> nn.Module:
    """Build a network for images of ``size`` (height, width) pixels with ``channels`` channels.

    Every network takes ``(sample, timestep, class_labels=...)``; with classes, label ``num_classes`` is the null one.

    Args:
        name: ``lean-unet`` (:class:`genflow.models.LeanUNet2DModel`), ``unet2d`` (diffusers' UNet2DModel) or ``dit``
            (diffusers' DiTTransformer2DModel, class-conditional only).
        options: further arguments of the class's constructor.
        out_channels: of the output; as many as ``channels`` by default.

    Raises:
        InputError: an unknown name or option, sides that differ where the class wants a square, no classes for DiT.
    """
    check_choice("network.type", name, NETWORKS)
    fixed: dict[str, Any] = {"sample_size": size[0] if size[0] == size[1] else size, "in_channels": channels}
    out = channels if out_channels is None else out_channels
    if name == "lean-unet":
        from genflow.models.unet import LeanUNet2DModel as Network

        fixed["num_classes"] = num_classes
        if out_channels is not None:
            fixed["out_channels"] = out
    elif name == "unet2d":
        from diffusers import UNet2DModel as Network

        fixed |= {"out_channels": out, "num_class_embeds": None if num_classes is None else num_classes + 1}
    else:
        from diffusers import DiTTransformer2DModel as Network

        if num_classes is None:
            raise InputError(
                "network.type: 'dit' needs class labels, and this data has none; allowed: lean-unet, unet2d"
            )
        fixed |= {"out_channels": out, "num_embeds_ada_norm": num_classes}
    if name != "lean-unet" and size[0] != size[1]:
        raise InputError(f"network.type: {name!r} wants square images, and these are {size[1]}x{size[0]}")

    known = [p for p in inspect.signature(Network.__init__).parameters if p not in {"self", *fixed}]
    check_keys("network.options", options, known)
    try:
        network = Network(**fixed, **{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"network.options: {options} refused by {Network.__name__}: {error}") from error
    return for_training(network)


def for_training(network: nn.Module) -> nn.Module:
    """``network`` itself, without label dropout of its own and in the memory format that convolutions like."""
    for module in network.modules():
        # DiT drops labels by itself in training; the objective's label_dropout is the one place for that
        if hasattr(module, "dropout_prob") and hasattr(module, "token_drop"):
            module.dropout_prob = 0.0
    return network.to(memory_format=torch.channels_last)
