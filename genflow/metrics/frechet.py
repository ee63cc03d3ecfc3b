"""The Frechet distance between Gaussians fitted to features, exact and real.

    d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)        (Dowson and Landau 1982; Heusel et al. 2017, eq. 6)

The last trace is that of a symmetric matrix: with ``S1 = F F^T``, the eigenvalues of ``S1 S2`` are those of
``F^T S2 F``, which are real and not negative. No general matrix square root is taken, so there is no imaginary part to
drop, and singular covariances need no ridge. Where there are fewer samples than dimensions, the centred features are
such a factor already, and the trace is the nuclear norm of a small matrix.
"""

import torch
from torch import Tensor

from genflow.errors import InputError
from genflow.metrics.statistics import FeatureStatistics

__all__ = ["frechet_distance", "frechet_distance_from_features", "frechet_distance_from_statistics"]


def frechet_distance(mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor) -> float:
    """Squared Frechet distance between two Gaussians: means ``(D,)``, covariances ``(D, D)`` symmetric.

    Computed in float64. Raises InputError on shapes that do not fit, on NaN, and on a covariance that is not
    symmetric or has a clearly negative eigenvalue on its diagonal.
    """
    mean1, mean2, covariance1, covariance2 = (
        torch.as_tensor(value).to(torch.float64) for value in (mean1, mean2, covariance1, covariance2)
    )
    dimensions = len(mean1) if mean1.ndim == 1 else -1
    for name, value, shape in (
        ("mean1", mean1, (dimensions,)),
        ("mean2", mean2, (dimensions,)),
        ("covariance1", covariance1, (dimensions, dimensions)),
        ("covariance2", covariance2, (dimensions, dimensions)),
    ):
        if tuple(value.shape) != shape:
            raise InputError(f"{name}: got shape {tuple(value.shape)}; mean1 has {tuple(mean1.shape)}")
        if not torch.isfinite(value).all():
            raise InputError(f"{name}: some entries are NaN or infinite")
        if value.ndim == 2 and not torch.allclose(value, value.T, rtol=1e-6, atol=1e-8 * float(value.abs().max())):
            raise InputError(f"{name}: not symmetric")
    factor = _factor(covariance1)
    cross = _sum_of_roots(factor.T @ covariance2 @ factor)
    return _combine(mean1 - mean2, covariance1.trace(), covariance2.trace(), cross)


def frechet_distance_from_statistics(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """:func:`frechet_distance` of two :class:`~genflow.metrics.statistics.FeatureStatistics`."""
    return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


def frechet_distance_from_features(features1: Tensor, features2: Tensor) -> float:
    """Squared Frechet distance between the Gaussians fitted to features ``(N1, D)`` and ``(N2, D)``.

    Covariances are divided by ``N - 1``. Whichever form is cheapest is taken; all agree to rounding.
    """
    centred, means = [], []
    for name, features in (("features1", features1), ("features2", features2)):
        if features.ndim != 2 or len(features) < 2 or features.shape[1] != features1.shape[-1]:
            raise InputError(f"{name}: got shape {tuple(features.shape)}; allowed: (N, D), N >= 2, one D for both")
        if not torch.isfinite(features).all():
            raise InputError(f"{name}: some are NaN or infinite")
        features = features.to(torch.float64)
        means.append(features.mean(0))
        centred.append((features - means[-1]) / (len(features) - 1) ** 0.5)
    # From the smaller set: its rows are the factor F^T when there are fewer of them than dimensions.
    small, large = sorted(centred, key=len)
    if len(large) < large.shape[1]:
        cross = torch.linalg.svdvals(small @ large.T).sum()
    else:
        factor = small.T if len(small) < small.shape[1] else _factor(small.T @ small)
        spread = large @ factor
        cross = _sum_of_roots(spread.T @ spread)
    return _combine(means[0] - means[1], small.square().sum(), large.square().sum(), cross)


def _factor(covariance: Tensor) -> Tensor:
    """``F (D, rank)`` with ``F F^T = covariance``; eigenvalues at the level of rounding count as zero."""
    triangle, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:  # positive definite: a twentieth of the time of eigenvectors, and as accurate
        return triangle
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > _rounding(values)
    return vectors[:, kept] * values[kept].sqrt()


def _sum_of_roots(matrix: Tensor) -> Tensor:
    """Sum of the square roots of a symmetric matrix's eigenvalues, those at the level of rounding being zero."""
    if not matrix.numel():
        return matrix.new_zeros(())
    values = torch.linalg.eigvalsh(matrix)
    return values[values > _rounding(values)].sqrt().sum()


def _rounding(values: Tensor) -> Tensor:
    return values.abs().max() * len(values) * torch.finfo(values.dtype).eps


def _combine(shift: Tensor, trace1: Tensor, trace2: Tensor, cross: Tensor) -> float:
    # Rounding can leave equal Gaussians a hair below zero.
    return max(0.0, float(shift.square().sum() + trace1 + trace2 - 2 * cross))
