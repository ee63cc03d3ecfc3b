"""Small heads on a frozen teacher's features that tell data from a student's samples, at every noise level.

In the manner of DMD2 (Yin et al. 2024, arXiv 2405.14867, section 4.3) and f-distill: convolutions with group
normalization from the teacher's middle to one logit. The features know time and label, so that the heads need not.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genflow.distillation.features import FeatureTeacher
from genflow.errors import InputError, check_number

__all__ = ["Discriminator"]

_CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
_NARROWEST = 4  # normalization over one value alone would leave nothing of it
_SMALL = 4  # a side below which a feature map is no longer halved


def _group_norm(channels: int) -> nn.GroupNorm:
    """As many groups of 4 channels or more as divide the width, 32 at most."""
    groups = next(g for g in range(min(32, channels // _NARROWEST), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def _grid(shape: tuple[int, ...]) -> tuple[int, ...]:
    """``(channels, *sides)`` of a feature: tokens (N, C) as a square where N is one, or else as a row."""
    if len(shape) != 2:
        return shape
    side = math.isqrt(shape[0])
    return (shape[1], side, side) if side * side == shape[0] else (shape[1], 1, shape[0])


class _Head(nn.Module):
    """One feature to one logit: halved by convolutions to a few positions, averaged, weighed. Starts at 0."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        channels, *sides = _grid(shape)
        layers: list[nn.Module] = []
        if not sides:
            layers += [nn.Linear(channels, width), _group_norm(width), nn.SiLU()]
        else:
            conv = _CONVOLUTIONS[len(sides)]
            while min(sides) >= _SMALL:  # kernel 4, so that every position counts alike in the gradient
                layers += [conv(channels, width, 4, stride=2, padding=1), _group_norm(width), nn.SiLU()]
                channels, sides = width, [side // 2 for side in sides]
            if not layers:
                kernel = [3 if side > 1 else 1 for side in sides]
                if 1 in sides:  # a row of tokens has no order
                    kernel = [1] * len(sides)
                layers += [conv(channels, width, kernel, padding=[k // 2 for k in kernel]), _group_norm(width)]
                layers += [nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.out = nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)  # every ratio begins at 1: reverse-KL, until something is known
        nn.init.zeros_(self.out.bias)

    def forward(self, feature: Tensor) -> Tensor:
        if feature.ndim == 3:
            channels, *sides = _grid(tuple(feature.shape[1:]))
            feature = feature.transpose(1, 2).reshape(-1, channels, *sides)
        x = self.layers(feature)
        return self.out(x.mean(dim=tuple(range(2, x.ndim))) if x.ndim > 2 else x)[:, 0]


class Discriminator(nn.Module):
    """Logits ``log(p / q)`` of data against the student from features of both: one head a feature, averaged.

    Samples do not see each other, so real and fake may stand in one batch.

    Args:
        shapes: of the features, without the batch: (C,), tokens (N, C), maps (C, H, W) or volumes (C, T, H, W).
        width: channels of a head, 4 at least; by default as many as its feature has, within 32 and 256.

    Raises:
        InputError: no features, a shape of another kind, or a width below 4.
    """

    def __init__(self, shapes: Sequence[Sequence[int]], width: int | None = None) -> None:
        super().__init__()
        if not shapes:
            raise InputError("shapes: none; allowed: the shape of one feature or more")
        if width is not None:
            check_number("width", width, at_least=_NARROWEST, integer=True)
        self.heads = nn.ModuleList()
        for shape in shapes:
            if not 1 <= len(shape) <= 4 or min(shape) < 1:
                raise InputError(f"shapes: got {tuple(shape)}; allowed: (C,), (N, C), (C, H, W) or (C, T, H, W)")
            channels = _grid(tuple(shape))[0]
            self.heads.append(_Head(tuple(shape), int(width or min(max(channels, 32), 256))))

    @classmethod
    def on_teacher(
        cls, teacher: FeatureTeacher, x: Tensor, width: int | None = None, **conditioning: Any
    ) -> "Discriminator":
        """Heads that fit the features of ``teacher`` for states like ``x`` (B, ...), on its device."""
        return cls(teacher.feature_shapes(x, **conditioning), width).to(x.device)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits (B,) of features (B, ...), one for each head.

        Raises:
            InputError: another number of features.
        """
        if len(features) != len(self.heads):
            raise InputError(f"features: got {len(features)}; allowed: {len(self.heads)}, one for each head")
        dtype = self.heads[0].out.weight.dtype
        logits = [head(feature.to(dtype)) for head, feature in zip(self.heads, features, strict=True)]
        return torch.stack(logits).mean(0)
