"""Guidance rescale (Lin, Liu, Li and Yang 2024, arXiv 2305.08891, section 3.4)."""

import torch
from torch import Tensor

__all__ = ["rescale_std"]


def rescale_std(guided: Tensor, cond: Tensor, amount: float) -> Tensor:
    """Scale each sample of ``guided`` towards the standard deviation of ``cond``; both ``(B, ...)``.

    ``amount`` is the paper's phi: 0 leaves ``guided`` as it is, 1 gives it the standard deviation of ``cond``. The
    mean is scaled along, as in the paper. A constant sample is left as it is.
    """
    dims = tuple(range(1, guided.ndim))
    if guided[0].numel() < 2:  # one value has no standard deviation
        return guided
    ours, theirs = (x.std(dim=dims, keepdim=True) for x in (guided, cond))
    ratio = torch.where(ours > 0, theirs / ours, 1.0)
    return guided * torch.lerp(torch.ones_like(ratio), ratio, amount)
