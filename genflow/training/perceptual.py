"""LPIPS as a training loss (Zhang et al. 2018, arXiv 1801.03924), through torchmetrics."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genflow.errors import InputError, check_choice

__all__ = ["create_lpips"]

NETWORKS = ("vgg", "alex", "squeeze")
_SIDE = 224  # what the networks were trained on, and what Lee et al. 2024 enlarge to


def create_lpips(channels: int, network: str = "vgg", side: int = _SIDE) -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS between images ``(B, C, H, W)`` in [-1, 1]: ``(B,)``, differentiable.

    Args:
        channels: of the images, 1 (grey) or 3.
        network: ``vgg`` (as Lee et al. 2024 use it), ``alex`` or ``squeeze``.
        side: smaller images are enlarged to this side.

    Raises:
        InputError: other channels (latents, say), no torchvision, or its weights cannot be had.
    """
    check_choice("network", network, NETWORKS)
    if channels not in (1, 3):
        raise InputError(f"lpips: images of {channels} channels; allowed: 1 or 3, in pixels (try pseudo-huber or l2)")
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        net: nn.Module = LearnedPerceptualImagePatchSimilarity(net_type=network).net
    except ImportError as error:
        raise InputError(
            "lpips: needs torchvision, in the version that fits torch (pip install 'genflow[lpips]'); "
            "allowed without: pseudo-huber, l2"
        ) from error
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"lpips: the weights of {network!r} cannot be had ({' '.join(str(error).split())}); allowed without: "
            "pseudo-huber, l2"
        ) from error
    net.requires_grad_(False)
    place: torch.device | None = None

    def distance(predicted: Tensor, wanted: Tensor) -> Tensor:
        nonlocal place
        if place != predicted.device:
            net.to(predicted.device)
            place = predicted.device
        return net(_enlarged(predicted, side), _enlarged(wanted, side)).flatten(1).mean(dim=1)

    return distance


def _enlarged(images: Tensor, side: int) -> Tensor:
    images = images.expand(-1, 3, -1, -1)
    smaller = min(images.shape[2:]) < side
    return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False) if smaller else images
