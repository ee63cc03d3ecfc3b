"""Kernel distances of many resamples at once, for confidence intervals: one pass over blocks of the kernel."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from genflow.errors import InputError, check_number

__all__ = ["resampled_kernel_distances"]

_MAX_BYTES = 64 * 2**20


def resampled_kernel_distances(
    real: Tensor,
    generated: Tensor,
    counts: Tensor,
    *,
    degree: int = 3,
    max_bytes: int = _MAX_BYTES,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Squared kernel distances (KID) of resamples of ``generated``, float64 ``(draws,)``.

    The unbiased estimate with the kernel ``(x . y / D + 1)^degree`` (Binkowski et al. 2018), of all samples. Within a
    resample a pair of one sample with itself does not count, though it may be drawn more than once: such pairs would
    bring in the bias that the estimate is made to be free of.

    Args:
        real: ``(N, D)`` features.
        generated: ``(M, D)`` features.
        counts: ``(draws, M)``, how often each resample holds each sample; all ones give the estimate itself.
        degree: of the kernel; 3 is KID's.
        max_bytes: memory for blocks of the kernel.
        progress: called with the number of rows just done, of ``N + 2 M`` in all.

    Raises:
        InputError: shapes that do not fit, fewer than two samples, NaN; a resample of one sample alone.
    """
    check_number("degree", degree, at_least=1, integer=True)
    for name, features in (("real", real), ("generated", generated)):
        if features.ndim != 2 or len(features) < 2 or features.shape[1] != real.shape[-1]:
            raise InputError(f"{name}: got shape {tuple(features.shape)}; allowed: (N, D), N >= 2, one D for both")
        if not bool(torch.isfinite(features).all()):
            raise InputError(f"{name}: some are NaN or infinite")
    counts = counts.to(generated.device, torch.float64)
    if counts.ndim != 2 or counts.shape[1] != len(generated) or bool((counts < 0).any()):
        raise InputError(f"counts: got shape {tuple(counts.shape)}; allowed: (draws, {len(generated)}), none below 0")
    sizes = counts.sum(1)
    pairs = sizes.square() - counts.square().sum(1)
    if not bool((pairs > 0).all()):
        raise InputError("counts: a resample holds a single sample; there is no pair in it")
    tell = progress or (lambda rows: None)
    within = torch.zeros_like(sizes)
    for rows, block in _blocks(generated, generated, degree, max_bytes, tell):
        block[torch.arange(len(block)), torch.arange(rows.start, rows.stop)] = 0
        within += ((counts[:, rows] @ block) * counts).sum(1)
    across = torch.cat([block.mean(1) for _, block in _blocks(generated, real, degree, max_bytes, tell)])
    own = 0.0
    for rows, block in _blocks(real, real, degree, max_bytes, tell):
        own += float(block.sum() - block[torch.arange(len(block)), torch.arange(rows.start, rows.stop)].sum())
    own /= len(real) * (len(real) - 1)
    return (within / pairs + own - 2 * (counts @ across) / sizes).cpu()


def _blocks(
    rows: Tensor, columns: Tensor, degree: int, max_bytes: int, tell: Callable[[int], None]
) -> Iterator[tuple[slice, Tensor]]:
    """Successive blocks of rows of the kernel matrix in float64, each with its rows as a slice."""
    height = max(1, max_bytes // (3 * 8 * len(columns)))
    columns = columns.to(torch.float64)
    for start in range(0, len(rows), height):
        part = rows[start : start + height].to(torch.float64)
        yield slice(start, start + len(part)), (part @ columns.T).div_(rows.shape[1]).add_(1).pow_(degree)
        tell(len(part))
