"""The Frechet distance between Gaussians fitted to features, exact and real.

    d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)        (Dowson and Landau 1982; Heusel et al. 2017, eq. 6)

With ``S1 = F1 F1^T`` and ``S2 = F2 F2^T`` the last trace is the sum of the singular values of ``F1^T F2``. No general
matrix square root is taken, so there is no imaginary part to drop, and singular covariances need no ridge: their
factors are narrow. Where there are fewer samples than dimensions, the features themselves are such a factor.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor

from genflow.errors import InputError
from genflow.metrics.statistics import ROWS, FeatureStatistics, check_gaussian

__all__ = [
    "FrechetReference",
    "FrechetReport",
    "frechet_bias",
    "frechet_distance",
    "frechet_distance_from_features",
    "frechet_distance_from_statistics",
    "frechet_report",
]

_EPS = torch.finfo(torch.float64).eps
_NEGATIVE = 1e-5  # of the largest eigenvalue: more than float32 files lose
_TARGET = 1e-7  # relative error of a distance above which singular values are computed the slow way

RECOMMENDED = 10_000
"""Samples below which :class:`FrechetReport` warns: what papers take is 10,000 to 50,000."""


def frechet_distance(mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor) -> float:
    """Squared Frechet distance between two Gaussians: means ``(D,)``, covariances ``(D, D)`` symmetric.

    Computed in float64. Raises InputError on shapes that do not fit, on NaN, and on a covariance that is not
    symmetric or has a negative eigenvalue beyond what float32 rounding leaves.
    """
    gaussians = [
        _Gaussian.from_moments(mean, covariance, number)
        for number, mean, covariance in ((1, mean1, covariance1), (2, mean2, covariance2))
    ]
    if len(gaussians[0].mean) != len(gaussians[1].mean):
        raise InputError(f"mean2: got shape {tuple(mean2.shape)}; mean1 has {tuple(mean1.shape)}")
    return _between(*gaussians).distance


def frechet_distance_from_statistics(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """:func:`frechet_distance` of two :class:`~genflow.metrics.statistics.FeatureStatistics`."""
    return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


def frechet_distance_from_features(features1: Tensor, features2: Tensor) -> float:
    """Squared Frechet distance between the Gaussians fitted to features ``(N1, D)`` and ``(N2, D)``.

    Covariances are divided by ``N - 1``. Whichever form is cheapest is taken; all agree to rounding.
    """
    return frechet_report(features1, features2).distance


@dataclass(frozen=True)
class FrechetReport:
    """A Frechet distance and what it rests on.

    Attributes:
        distance: squared, the FID where the features are Inception's.
        mean_part: ``|m1 - m2|^2``; the rest of the distance is the covariances'.
        traces: of each covariance.
        counts: samples of each side; None where a statistics file does not say.
        ranks: of each covariance.
        dimensions: D.
        spectrum: the singular values of ``F1^T F2``, which are the eigenvalues of ``(S1 S2)^(1/2)``, descending.
    """

    distance: float
    mean_part: float
    traces: tuple[float, float]
    counts: tuple[int | None, int | None]
    ranks: tuple[int, int]
    dimensions: int
    spectrum: Tensor = field(repr=False)

    @property
    def bias(self) -> float:
        """What the finite samples add to the distance, see :func:`frechet_bias`."""
        known = [count for count in self.counts if count is not None]
        means = sum(trace / n for trace, n in zip(self.traces, self.counts, strict=True) if n is not None)
        lost = sum(1 / (count - 1) for count in known) / 2 * _curvature(self.spectrum)
        total = float(self.spectrum.sum())
        return means + (lost * total / (total - lost) if lost < total else total)

    def warnings(self, names: Sequence[str] = ("first", "second")) -> list[str]:
        """A line for each trap: singular covariances, and samples too few for the distance to be taken as it is."""
        lines = []
        for name, rank in zip(names, self.ranks, strict=True):
            if rank < self.dimensions:
                lines.append(
                    f"{name}: its covariance has rank {rank} of {self.dimensions}; the distance is exact here, but "
                    "tools that take a matrix square root drop an imaginary part or add 1e-6 to the diagonal"
                )
        few = [
            f"{name} {count}"
            for name, count in zip(names, self.counts, strict=True)
            if count is not None and count < RECOMMENDED
        ]
        if few:
            about = "about" if min(filter(None, self.counts)) > self.dimensions else "at least"
            lines.append(
                f"samples: {', '.join(few)}, fewer than {RECOMMENDED}: {about} {self.bias:.3g} of the distance "
                f"{self.distance:.4g} comes from the finite samples; compare it at equal counts only"
            )
        return lines


def frechet_report(first: FeatureStatistics | Tensor, second: FeatureStatistics | Tensor) -> FrechetReport:
    """The Frechet distance of two samples with its bias and ranks.

    Each side is ``(N, D)`` features or their statistics; from features, fewer than D of them take a fraction of the
    time. Raises InputError on other shapes, NaN, fewer than two samples, and a matrix that is no covariance.
    """
    one, two = _Gaussian.of(first, 1), _Gaussian.of(second, 2)
    if len(one.mean) != len(two.mean):
        raise InputError(f"{two.name}: {len(two.mean)} dimensions; {one.name} has {len(one.mean)}")
    return _between(one, two)


def frechet_bias(first: FeatureStatistics | Tensor, second: FeatureStatistics | Tensor) -> float:
    """How much larger than that of their laws the Frechet distance of two finite samples is, on average.

    Of ``n`` and ``m`` samples of Gaussians, to the first order in 1/n and 1/m,

        tr S1 / n + tr S2 / m + (1/(n-1) + 1/(m-1)) / 2 * (sum_ij s_i s_j / (s_i + s_j) + sum_i s_i / 2)

    where ``s`` are the eigenvalues of ``(S1 S2)^(1/2)``: the error of the means, then the second derivative of the
    trace in each covariance times the variance of a sample covariance. With ``S1 = S2 = s I`` that is
    ``s D (D + 5) / 4 * (1/n + 1/m)``: it grows with the square of the dimension. The samples' own covariances stand
    for the unknown ones; as the last term is what their spectrum has lost, it is put back on to the spectrum.

    By simulation (tests/genflow/metrics/test_frechet_bias.py) this is within a tenth from n = 2 D on, a quarter low at
    n = D, and a lower bound below, where directions are missing altogether. Tails heavier than a Gaussian's add to it;
    :func:`~genflow.metrics.extrapolation.fd_infinity` assumes no law. A side of unknown count is taken for exact.
    """
    return frechet_report(first, second).bias


class FrechetReference:
    """Frechet distances of many subsets or resamples of some features to one reference.

    The reference is factored, and the features multiplied by the factor, once: what is left to each subset of n are
    products and eigenvalues of a matrix of min(n, D) rows.
    """

    def __init__(self, reference: FeatureStatistics | Tensor, features: Tensor) -> None:
        self._reference = _Gaussian.of(reference, 1)
        _check_features("features", features, len(self._reference.mean))
        self._features, self._mean = features, features.mean(0, dtype=torch.float64)
        self._factor = self._reference.root.factor.to(features.device)
        parts = [(part @ self._factor, part.square().sum(1)) for part in self._centred()]
        self._projected, self._norms = (torch.cat(column) for column in zip(*parts, strict=True))

    def __len__(self) -> int:
        return len(self._features)

    def __call__(self, indices: Tensor | None = None) -> float:
        """Distance of the features at ``indices``, int64 ``(n,)``, repeats allowed; of all of them without."""
        projected, norms, mean = self._projected, self._norms, self._mean
        if indices is not None:
            if indices.ndim != 1 or len(indices) < 2:
                raise InputError(f"indices: got shape {tuple(indices.shape)}; allowed: (n,), n >= 2")
            shares = torch.bincount(indices, minlength=len(self)).to(norms) / len(indices)
            parts = zip(shares.split(ROWS), self._centred(), strict=True)
            offset = sum(share @ part for share, part in parts)
            projected = projected[indices].sub_(offset @ self._factor)
            norms, mean = norms[indices] - offset.square().sum(), mean + offset
        degrees = len(projected) - 1
        if degrees < projected.shape[1]:
            projected = _contrasts(projected)
        shift = mean.cpu() - self._reference.mean
        base = float(shift.square().sum() + self._reference.trace) + float(norms.sum()) / degrees
        values = _singular_values(projected, base * degrees**0.5) / degrees**0.5
        return max(0.0, base - 2 * float(values.sum()))

    def _centred(self) -> Iterator[Tensor]:
        return (part.to(torch.float64) - self._mean for part in self._features.split(ROWS))


class _Root:
    """A factor ``F (D, rank)`` of a covariance ``F F^T``, on the CPU; by Cholesky, a triangle and an order of rows."""

    def __init__(self, factor: Tensor | None = None, triangle: np.ndarray | None = None, order: Any = None) -> None:
        self._factor, self.triangle, self.order = factor, triangle, order

    @classmethod
    def of(cls, name: str, covariance: Tensor) -> "_Root":
        """Cholesky's with pivots: columns fall, and a singular matrix ends where its rank does. A matrix that rounding
        has made indefinite makes it grow wild; then eigenvectors, thirty times slower, sort out the noise."""
        covariance = covariance.cpu()
        largest = float(covariance.diagonal().max())
        packed, pivots, rank, _ = lapack.dpstrf(covariance.numpy().T, tol=8 * _EPS * largest, lower=1)
        root = cls(triangle=packed[:, :rank], order=pivots - 1)
        if root.regular:
            return root
        residual = (root.factor @ root.factor.T - covariance).abs_().max()
        if float(residual) <= 100 * len(covariance) ** 0.5 * _EPS * largest:
            return root
        values, vectors = torch.linalg.eigh(covariance)
        if float(values[0]) < -_NEGATIVE * float(values[-1]):
            raise InputError(f"{name}: not a covariance: its eigenvalues go from {values[0]:.3g} to {values[-1]:.3g}")
        kept = values > len(values) * _EPS * values[-1]
        return cls((vectors[:, kept] * values[kept].sqrt()).flip(1))

    @property
    def rank(self) -> int:
        return self.triangle.shape[1] if self._factor is None else self._factor.shape[1]

    @property
    def regular(self) -> bool:
        return self.triangle is not None and self.triangle.shape[0] == self.triangle.shape[1]

    @property
    def factor(self) -> Tensor:
        if self._factor is None:
            self._factor = torch.zeros(self.triangle.shape, dtype=torch.float64)
            self._factor[torch.from_numpy(self.order).long()] = torch.from_numpy(self.triangle).tril()
        return self._factor

    @property
    def log_determinant(self) -> float:
        """Of a regular factor."""
        return float(np.log(self.triangle.diagonal()).sum())


@dataclass(frozen=True)
class _Gaussian:
    """A Gaussian on the CPU; of one that has fewer samples than dimensions, the covariance is None."""

    name: str
    mean: Tensor
    covariance: Tensor | None
    root: _Root
    trace: Tensor
    count: int | None

    @classmethod
    def of(cls, sample: FeatureStatistics | Tensor, number: int) -> "_Gaussian":
        if isinstance(sample, FeatureStatistics):
            return cls.from_moments(sample.mean, sample.covariance, number, sample.count)
        return cls.from_features(sample, number)

    @classmethod
    def from_moments(cls, mean: Tensor, covariance: Tensor, number: int, count: int | None = None) -> "_Gaussian":
        mean, covariance = (torch.as_tensor(value).to("cpu", torch.float64) for value in (mean, covariance))
        name = f"covariance{number}"
        check_gaussian(f"mean{number}", mean, name, covariance)
        return cls(name, mean, covariance, _Root.of(name, covariance), covariance.trace(), count)

    @classmethod
    def from_features(cls, features: Tensor, number: int) -> "_Gaussian":
        name = f"features{number}"
        _check_features(name, features)
        features = features.to(torch.float64)
        mean, degrees = features.mean(0), len(features) - 1
        centred = features - mean
        if degrees < features.shape[1]:
            covariance, root = None, _Root((_contrasts(centred).T / degrees**0.5).cpu())
            trace = centred.square().sum() / degrees
        else:
            covariance = (_gram(centred) / degrees).cpu()
            root, trace = _Root.of(name, covariance), covariance.trace()
        return cls(name, mean.cpu(), covariance, root, trace.cpu(), len(features))


def _between(one: _Gaussian, two: _Gaussian) -> FrechetReport:
    mean_part = float((one.mean - two.mean).square().sum())
    base = mean_part + float(one.trace + two.trace)
    spectrum = None
    if one.root.regular and two.root.regular:
        # L1^T S2 L1, symmetric and triangular as they are, takes an eighth of what matrix products would
        order = torch.from_numpy(one.root.order).long()
        turned = two.covariance[order][:, order].numpy().T  # in Fortran's order, as LAPACK wants it
        product, _ = lapack.dsygst(turned, one.root.triangle, itype=2, lower=1, overwrite_a=True)
        known = one.root.log_determinant + two.root.log_determinant
        spectrum = _roots_of_eigenvalues(torch.from_numpy(product), base, known)
    if spectrum is None:
        spectrum = _singular_values(one.root.factor.T @ two.root.factor, base)
    return FrechetReport(
        distance=max(0.0, base - 2 * float(spectrum.sum())),  # rounding can leave equal Gaussians a hair below zero
        mean_part=mean_part,
        traces=(float(one.trace), float(two.trace)),
        counts=(one.count, two.count),
        ranks=(one.root.rank, two.root.rank),
        dimensions=len(one.mean),
        spectrum=spectrum,
    )


def _curvature(spectrum: Tensor) -> float:
    """``sum_ij s_i s_j / (s_i + s_j) + sum_i s_i / 2``: the second derivative met by the noise of a covariance."""
    s = spectrum[spectrum > 0]
    return float((s[:, None] * s / (s[:, None] + s)).sum() + s.sum() / 2)


def _contrasts(centred: Tensor) -> Tensor:
    """``(N, D)`` rows of sum zero to ``(N - 1, D)`` with the same scatter matrix ``X^T X``.

    A Householder reflection turns the direction of all ones, in which they have nothing, into the first row.
    """
    return centred[1:] - centred[0] / (1 + len(centred) ** 0.5)


def _singular_values(matrix: Tensor, base: float) -> Tensor:
    """Singular values, descending, good enough for ``base - 2 * sum`` to have a relative error of 1e-7."""
    if not matrix.numel():
        return matrix.new_zeros(0)
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    values = _roots_of_eigenvalues(_gram(tall), base)
    return torch.linalg.svdvals(tall) if values is None else values


def _roots_of_eigenvalues(gram: Tensor, base: float, log_determinant: float | None = None) -> Tensor | None:
    """Square roots of the eigenvalues of ``G = M^T M``, given by its lower triangle, where those are good enough.

    They take a quarter of the time of the singular values of M, and may lose the small ones: each is known to some
    ``noise``, by the general bound 10 eps of the largest. Where columns fall, as with factors by pivots, they are far
    better, and how much shows in the determinant, which is known from the factors or by Cholesky. None where the error
    would matter still: at near-equal Gaussians, and all but singular ones.
    """
    squares = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0)
    values = squares.sqrt()
    allowed = _TARGET / 2 * (base - 2 * float(values.sum()))
    noise = 10 * _EPS * float(squares[0])
    if _lost(values, noise) <= allowed:
        return values
    if not float(values[-1]):
        return None
    if log_determinant is None:
        triangle, failed = torch.linalg.cholesky_ex(gram)
        if failed:
            return None
        log_determinant = float(triangle.diagonal().log().sum())
    # the smallest eigenvalue has most of the gap; the factor is for errors that cancel in it
    gap = 2 * abs(float(values.log().sum()) - log_determinant) + len(values) * _EPS
    return values if _lost(values, min(noise, 300 * gap * float(squares[-1]))) <= allowed else None


def _lost(values: Tensor, noise: float) -> float:
    """Most that the sum of square roots is wrong by where each square is known to ``noise``."""
    return float((noise / (2 * values).clamp_min(noise**0.5)).sum()) if noise else 0.0


def _gram(rows: Tensor) -> Tensor:
    """``X^T X``: numpy's takes half the time, as it knows that the result is symmetric."""
    if rows.device.type != "cpu":
        return rows.T @ rows
    array = rows.numpy()
    return torch.from_numpy(array.T @ array)


def _check_features(name: str, features: Tensor, dimensions: int | None = None) -> None:
    width = "D" if dimensions is None else dimensions
    if features.ndim != 2 or len(features) < 2 or (dimensions is not None and features.shape[1] != dimensions):
        raise InputError(f"{name}: got shape {tuple(features.shape)}; allowed: (N, {width}), N >= 2")
    if not features.shape[1]:
        raise InputError(f"{name}: got shape {tuple(features.shape)}; allowed: (N, D), D >= 1")
    if not torch.isfinite(features).all():
        raise InputError(f"{name}: some are NaN or infinite")
