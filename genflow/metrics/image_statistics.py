"""Figures of images by themselves, one an image, without a reference set: what too strong a guidance or too long a
step does to them.

Images are float ``(N, C, H, W)`` in [-1, 1], grey (C = 1) or RGB (C = 3); figures are ``(N,)`` float32.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from genflow.errors import InputError, check_number

__all__ = [
    "SD_LATENT_MEAN",
    "SD_LATENT_STD",
    "channel_statistics",
    "clipped_share",
    "colourfulness",
    "contrast",
    "magnitude_score",
    "picture_statistics",
    "saturation",
]

SD_LATENT_MEAN = (0.1456, -0.1077, 0.0237, 0.0460)
SD_LATENT_STD = (0.9221, 1.0914, 0.7303, 0.7227)
"""Per channel, of Stable Diffusion 1's latents (scaled by 0.18215) of COCO images: the constants of the momentum
samplers' authors (Wizadwongsa et al. 2024, arXiv 2307.11118, their metrics.py)."""

_LUMA = (0.299, 0.587, 0.114)  # Rec. 601, as in PIL's "L"
_TOLERANCE = 1e-4  # beyond [-1, 1], for rounding in half precision


def saturation(images: Tensor) -> Tensor:
    """Mean over pixels of HSV's S, ``(max - min) / max`` of the channels in [0, 1], 0 for black (Sadat et al. 2025).

    0 for grey images, 1 for pure colours. Raises InputError on images of another shape or range.
    """
    rgb = _unit(images)
    high, low = rgb.amax(1), rgb.amin(1)
    return torch.where(high > 0, (high - low) / high.clamp_min(torch.finfo(high.dtype).tiny), 0).mean((1, 2))


def contrast(images: Tensor) -> Tensor:
    """RMS contrast: the standard deviation over pixels (divided by their number) of the Rec. 601 luma in [0, 1].

    At most 0.5, for an image that is half black and half white. Raises InputError on another shape or range.
    """
    return _luma(_unit(images)).flatten(1).std(1, correction=0)


def colourfulness(images: Tensor) -> Tensor:
    """``sqrt(var rg + var yb) + 0.3 sqrt(mean rg^2 + mean yb^2)``, ``rg = R - G``, ``yb = (R + G) / 2 - B``, 0 to 255.

    Hasler and Suesstrunk 2003 (Measuring colourfulness in natural images), their M3: 0 is grey, 33 moderately
    colourful, 109 extremely. Raises InputError on images of another shape or range.
    """
    rgb = _unit(images)
    if rgb.shape[1] == 1:
        return rgb.new_zeros(len(rgb))
    red, green, blue = (255 * rgb).flatten(2).unbind(1)
    axes = torch.stack([red - green, (red + green) / 2 - blue])
    spread = axes.var(2, correction=0).sum(0).sqrt()
    return spread + 0.3 * axes.mean(2).square().sum(0).sqrt()


def clipped_share(images: Tensor) -> Tensor:
    """Share of values that an 8-bit picture would hold as 0 or 255. Raises InputError on another shape or range."""
    level = (255 * _unit(images)).round()
    return ((level <= 0) | (level >= 255)).to(torch.float32).mean((1, 2, 3))


def picture_statistics(pictures: Tensor) -> dict[str, Tensor]:
    """``saturation``, ``contrast``, ``colourfulness``, ``clipped_share`` of uint8 pictures ``(N, C, H, W)``, C 1 or 3.

    What the functions of these names give for ``pictures / 127.5 - 1``, several times faster: one pass over bytes
    instead of four over floats. Raises InputError on another shape or dtype.
    """
    if pictures.ndim != 4 or pictures.shape[1] not in (1, 3) or 0 in pictures.shape or pictures.dtype != torch.uint8:
        raise InputError(
            f"pictures: got {pictures.dtype} {tuple(pictures.shape)}; allowed: uint8 (N, C, H, W), C = 1 or 3"
        )
    flat = pictures.flatten(2)
    clipped = ((flat == 0) | (flat == 255)).sum((1, 2), dtype=torch.int32) / flat[0].numel()
    if flat.shape[1] == 1:
        zero = torch.zeros_like(clipped)
        spread = _moments(flat[:, 0].float())[1].sqrt() / 255
        return {"saturation": zero, "contrast": spread, "colourfulness": zero.clone(), "clipped_share": clipped}
    red, green, blue = flat.unbind(1)
    high, low = red.maximum(green).maximum(blue), red.minimum(green).minimum(blue)
    pure = ((high - low).float() / high.clamp_min(1)).mean(1)
    red, green, blue = flat.float().unbind(1)
    spread = _moments(_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue)[1].sqrt() / 255
    (rg, rg_variance), (yb, yb_variance) = _moments(red - green), _moments((red + green) / 2 - blue)
    colour = (rg_variance + yb_variance).sqrt() + 0.3 * (rg.square() + yb.square()).sqrt()
    return {"saturation": pure, "contrast": spread, "colourfulness": colour, "clipped_share": clipped}


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (divided by the number) along the last axis."""
    mean = values.mean(1)
    return mean, (values - mean[:, None]).square_().mean(1)


def magnitude_score(
    latents: Tensor,
    mean: Tensor | Sequence[float] | float = SD_LATENT_MEAN,
    std: Tensor | Sequence[float] | float = SD_LATENT_STD,
    *,
    threshold: float = 3.0,
    pool: int = 4,
) -> Tensor:
    """How much of each sample lies implausibly far out: the divergence artefacts of too long steps.

    Normalise, take absolute values, the largest over channels, then over cells of ``pool x pool`` values; cells below
    ``threshold`` count as 0; their mean (Wizadwongsa et al. 2024, arXiv 2307.11118, section 5 and metrics.py).

    Args:
        latents: ``(N, C, H, W)``, as the sampler sees them. NaN and infinity give themselves.
        mean, std: of good samples, one number or one a channel: Stable Diffusion 1's by default;
            :func:`channel_statistics` measures those of other data.
        threshold: 3 standard deviations in the paper; 0 for the mean magnitude of all cells.
        pool: side of a cell, 4 in the paper; cells at the edges may be smaller.

    Raises:
        InputError: shapes that do not fit, a std that is not positive, a negative threshold, a pool below 1.
    """
    if latents.ndim != 4 or 0 in latents.shape:
        raise InputError(f"latents: got shape {tuple(latents.shape)}; allowed: (N, C, H, W), none of them 0")
    check_number("threshold", threshold, at_least=0)
    check_number("pool", pool, at_least=1, integer=True)
    latents = latents.to(torch.float32)
    mean, std = (_per_channel(name, value, latents) for name, value in (("mean", mean), ("std", std)))
    if not bool((std > 0).all()):
        raise InputError(f"std: got {std.flatten().tolist()}; allowed: numbers > 0")
    far = ((latents - mean) / std).abs().amax(1, keepdim=True)
    cells = F.max_pool2d(far, int(pool), ceil_mode=True)
    return torch.where(cells < threshold, 0, cells).mean((1, 2, 3))


def channel_statistics(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation ``(C,)`` of each channel of ``(N, C, H, W)`` samples, as float64 sums them.

    Raises InputError on another shape, or where a channel is constant.
    """
    if samples.ndim != 4 or samples.numel() < 2:
        raise InputError(f"samples: got shape {tuple(samples.shape)}; allowed: (N, C, H, W) with two values or more")
    std, mean = torch.std_mean(samples.to(torch.float64), (0, 2, 3), correction=0)
    if not bool((std > 0).all()):
        raise InputError(f"samples: the standard deviations are {std.tolist()}; every channel has to vary")
    return mean.to(torch.float32), std.to(torch.float32)


def _unit(images: Tensor) -> Tensor:
    """Checked images in [0, 1], float32."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape or not images.is_floating_point():
        raise InputError(
            f"images: got {images.dtype} {tuple(images.shape)}; allowed: float (N, C, H, W) in [-1, 1], C = 1 or 3"
        )
    images = images.to(torch.float32)
    if not bool((images.abs() <= 1 + _TOLERANCE).all()):  # also where there is NaN
        raise InputError(f"images: values from {float(images.min()):g} to {float(images.max()):g}; allowed: -1 to 1")
    return (images / 2 + 0.5).clamp(0, 1)  # the clamp takes off rounding alone


def _luma(rgb: Tensor) -> Tensor:
    return rgb[:, 0] if rgb.shape[1] == 1 else torch.einsum("nchw,c->nhw", rgb, rgb.new_tensor(_LUMA))


def _per_channel(name: str, value: Tensor | Sequence[float] | float, latents: Tensor) -> Tensor:
    vector = torch.as_tensor(value, dtype=torch.float32, device=latents.device)
    if vector.shape not in ((), (1,), (latents.shape[1],)):
        allowed = f"one number, or {latents.shape[1]}: one a channel"
        raise InputError(f"{name}: got shape {tuple(vector.shape)}; allowed: {allowed}")
    return vector.reshape(1, -1, 1, 1)
