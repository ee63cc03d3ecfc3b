"""Kernel distances between features: KID by subsets and on all samples, CMMD.

    MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y)

The unbiased form leaves out the pairs of a sample with itself; it may be below zero where the laws are equal. KID
(Binkowski et al. 2018) takes the kernel ``(gamma x.y + coef)^degree``, CMMD (Jayasumana et al. 2024) a Gaussian of
unit-length CLIP embeddings. Kernels are summed block by block: no N x N matrix is held.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from genflow.errors import InputError, check_number

__all__ = ["KernelEstimate", "KernelSpread", "cmmd", "kernel_distance", "kernel_distance_full", "subset_indices"]

MAX_BYTES = 64 * 2**20
"""Memory for blocks of kernel values, by default."""

Kernel = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class KernelSpread:
    """Mean and standard deviation (divided by their number) of the distance over ``subsets`` of ``subset_size``."""

    mean: float
    std: float
    subsets: int
    subset_size: int


@dataclass(frozen=True)
class KernelEstimate:
    """The distance on all samples, and the standard error of it by the jackknife over both sets."""

    value: float
    standard_error: float


def kernel_distance(
    real: Tensor,
    generated: Tensor,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
    degree: int = 3,
    gamma: float | None = None,
    coef: float = 1.0,
    dtype: torch.dtype = torch.float64,
    max_bytes: int = MAX_BYTES,
) -> KernelSpread:
    """KID of features ``(N, D)`` and ``(M, D)``: the unbiased estimate on random subsets, without replacement.

    Defaults are those of torch-fidelity and torchmetrics. Small sets, whose subsets overlap much, are gone through
    once for all subsets together.

    Args:
        real, generated: features of any float dtype.
        subsets: how many.
        subset_size: samples of each set in a subset.
        seed: of :func:`subset_indices`.
        degree, gamma, coef: of the kernel ``(gamma x.y + coef)^degree``; gamma is 1 / D by default.
        dtype: of the arithmetic; float32 takes half the time and keeps about four digits of a small distance.
        max_bytes: memory for blocks of kernel values.

    Raises:
        InputError: shapes that do not fit, NaN, numbers out of range, a subset larger than a set.
    """
    kernel = _polynomial(degree, gamma, coef, real)
    real, generated = _check(real, generated, dtype)
    check_number("subsets", subsets, at_least=1, integer=True)
    check_number("subset_size", subset_size, at_least=2, integer=True)
    for name, features in (("real", real), ("generated", generated)):
        if len(features) < subset_size:
            raise InputError(f"subset_size: got {subset_size}; {name} has {len(features)} samples")
    first, second = subset_indices(len(real), len(generated), subsets=subsets, subset_size=subset_size, seed=seed)
    # Each sum over a subset's pairs is w^T K w with its indicator w. For all subsets at once that takes all pairs.
    pairs = len(real) ** 2 / 2 + len(generated) ** 2 / 2 + len(real) * len(generated)
    if pairs <= 2.2 * subsets * subset_size**2:
        sums = _indicator_sums(kernel, real, generated, first, second, max_bytes)
    else:
        drawn = ((real[one], generated[two]) for one, two in zip(first, second, strict=True))
        sums = torch.stack([_pair_sums(kernel, one, two, max_bytes) for one, two in drawn], dim=1)
    size = float(subset_size)
    distances = (sums[0] + sums[1]) / (size * (size - 1)) - 2 * sums[2] / size**2
    return KernelSpread(float(distances.mean()), float(distances.std(correction=0)), int(subsets), int(subset_size))


def subset_indices(
    real: int, generated: int, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The subsets that :func:`kernel_distance` takes from sets of these lengths: int64 ``(subsets, size)`` twice."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [
        [torch.randperm(length, generator=generator)[:subset_size] for length in (real, generated)]
        for _ in range(subsets)
    ]
    first, second = zip(*drawn, strict=True)
    return torch.stack(first), torch.stack(second)


def kernel_distance_full(
    real: Tensor,
    generated: Tensor,
    *,
    degree: int = 3,
    gamma: float | None = None,
    coef: float = 1.0,
    dtype: torch.dtype = torch.float64,
    max_bytes: int = MAX_BYTES,
) -> KernelEstimate:
    """KID on all samples at once: the unbiased U-statistic, which no draw of subsets blurs.

    The standard error is the jackknife's, leaving out one sample at a time; it is a little large where the two laws
    are equal. Takes ``N^2 / 2 + M^2 / 2 + N M`` kernel values. Arguments and errors as in :func:`kernel_distance`.
    """
    kernel = _polynomial(degree, gamma, coef, real)
    real, generated = _check(real, generated, dtype)
    for name, features in (("real", real), ("generated", generated)):
        if len(features) < 3:
            raise InputError(f"{name}: {len(features)} samples; at least 3 are needed for a standard error")
    within = [_row_sums(kernel, features, max_bytes) for features in (real, generated)]
    across = [real.new_zeros(len(features), dtype=torch.float64) for features in (real, generated)]
    for rows, block in _blocks(kernel, real, generated, max_bytes):
        across[0][rows] = block.sum(1, dtype=torch.float64)
        across[1] += block.sum(0, dtype=torch.float64)
    n, m = len(real), len(generated)
    totals = [float(rows.sum()) for rows in within]
    crossing = float(across[0].sum())
    value = totals[0] / (n * (n - 1)) + totals[1] / (m * (m - 1)) - 2 * crossing / (n * m)
    variance = 0.0
    for side, (own, other) in enumerate(((n, m), (m, n))):
        # the estimate without each sample of this side, up to what is the same for all of them
        left = (totals[side] - 2 * within[side]) / ((own - 1) * (own - 2))
        left = left - 2 * (crossing - across[side]) / ((own - 1) * other)
        variance += float(left.var(correction=0)) * (own - 1)
    return KernelEstimate(value, variance**0.5)


def cmmd(
    real: Tensor,
    generated: Tensor,
    *,
    sigma: float = 10.0,
    scale: float = 1000.0,
    dtype: torch.dtype = torch.float64,
    max_bytes: int = MAX_BYTES,
) -> float:
    """CMMD of CLIP embeddings ``(N, D)`` and ``(M, D)``, which are brought to length 1 first.

    The biased estimate, with each sample's pair with itself, of the Gaussian kernel ``exp(-|x - y|^2 / (2 sigma^2))``,
    times ``scale``, as its authors publish it. It means what they say of ViT-L/14-336 embeddings; of other features it
    is a number of its own. Raises InputError on shapes that do not fit, NaN, zero rows and numbers out of range.
    """
    check_number("sigma", sigma, above=0)
    check_number("scale", scale, above=0)
    real, generated = _check(real, generated, dtype)
    for name, features in (("real", real), ("generated", generated)):
        if not bool(features.any(1).all()):
            raise InputError(f"{name}: some embeddings are zero")
    real, generated = normalize(real), normalize(generated)

    def kernel(one: Tensor, two: Tensor) -> Tensor:  # of unit vectors |x - y|^2 = 2 - 2 x.y
        return (one @ two.T).sub_(1).div_(sigma**2).exp_()

    ends = [float(_row_sums(kernel, features, max_bytes).sum()) / len(features) ** 2 for features in (real, generated)]
    itself = 1 / len(real) + 1 / len(generated)
    crossing = sum(float(block.sum(dtype=torch.float64)) for _, block in _blocks(kernel, real, generated, max_bytes))
    return scale * (sum(ends) + itself - 2 * crossing / (len(real) * len(generated)))


def _polynomial(degree: int, gamma: float | None, coef: float, features: Tensor) -> Kernel:
    check_number("degree", degree, at_least=1, integer=True)
    check_number("coef", coef, at_least=0)
    if gamma is not None:
        check_number("gamma", gamma, above=0)
    power, factor = int(degree), gamma

    def kernel(one: Tensor, two: Tensor) -> Tensor:
        base = (one @ two.T).mul_(1 / one.shape[1] if factor is None else factor).add_(coef)
        values = base.clone() if power > 1 else base
        for _ in range(power - 1):  # a product is a tenth of the time of pow
            values.mul_(base)
        return values

    return kernel


def _indicator_sums(
    kernel: Kernel, real: Tensor, generated: Tensor, first: Tensor, second: Tensor, max_bytes: int
) -> Tensor:
    """``(3, subsets)`` sums over each subset's pairs within real, within generated (not with itself), and across."""
    real_in, generated_in = (
        torch.zeros(len(chosen), len(features), dtype=real.dtype).scatter_(1, chosen, 1).T.to(real.device)
        for chosen, features in ((first, real), (second, generated))
    )
    sums = torch.zeros(3, len(first), dtype=torch.float64, device=real.device)
    for row, (features, inside) in enumerate(((real, real_in), (generated, generated_in))):
        for rows, block in _blocks(kernel, features, features, max_bytes, upper=True):
            height = rows.stop - rows.start
            block[:, :height].tril_(-1)  # pairs of the block's own rows: each once, none with itself
            sums[row] += 2 * (inside[rows] * (block @ inside[rows.start :])).sum(0, dtype=torch.float64)
    for rows, block in _blocks(kernel, real, generated, max_bytes):
        sums[2] += (real_in[rows] * (block @ generated_in)).sum(0, dtype=torch.float64)
    return sums.cpu()


def _pair_sums(kernel: Kernel, real: Tensor, generated: Tensor, max_bytes: int) -> Tensor:
    """``(3,)``: the same for two whole sets."""
    across = [block.sum(dtype=torch.float64) for _, block in _blocks(kernel, real, generated, max_bytes)]
    within = [_row_sums(kernel, features, max_bytes).sum() for features in (real, generated)]
    return torch.stack([*within, torch.stack(across).sum()]).cpu()


def _row_sums(kernel: Kernel, features: Tensor, max_bytes: int) -> Tensor:
    """Sum of the kernel of each sample with all others, float64 ``(N,)``; each pair is computed once."""
    sums = features.new_zeros(len(features), dtype=torch.float64)
    for rows, block in _blocks(kernel, features, features, max_bytes, upper=True):
        height = rows.stop - rows.start
        block.diagonal().zero_()
        sums[rows] += block.sum(1, dtype=torch.float64)
        sums[rows.stop :] += block[:, height:].sum(0, dtype=torch.float64)
    return sums


def _blocks(
    kernel: Kernel, rows: Tensor, columns: Tensor, max_bytes: int, upper: bool = False
) -> Iterator[tuple[slice, Tensor]]:
    """Kernel values of successive rows with all columns; with ``upper``, with those from the block's first row on."""
    start = 0
    while start < len(rows):
        others = columns[start:] if upper else columns
        # the values and a temporary of their size; above the diagonal, many low blocks compute fewer pairs twice
        height = max(1, max_bytes // (2 * rows.element_size() * len(others)))
        height = min(height, max(128, len(rows) // 8)) if upper else height
        stop = min(len(rows), start + height)
        yield slice(start, stop), kernel(rows[start:stop], others)
        start = stop


def _check(real: Tensor, generated: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"dtype: got {dtype}; allowed: torch.float32, torch.float64")
    for name, features in (("real", real), ("generated", generated)):
        if features.ndim != 2 or len(features) < 2 or features.shape[1] != real.shape[-1] or not features.shape[1]:
            raise InputError(f"{name}: got shape {tuple(features.shape)}; allowed: (N, D), N >= 2, one D for both")
        if not bool(torch.isfinite(features).all()):
            raise InputError(f"{name}: some features are NaN or infinite")
    return real.to(dtype), generated.to(dtype)
