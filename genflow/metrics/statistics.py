"""Running mean and covariance of feature vectors, in float64, that merge exactly and live in safetensors files."""

import math
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from genflow.errors import InputError, check_number
from genflow.files import atomic_path

__all__ = ["FeatureStatistics"]

ROWS = 8192
"""Samples at a time, so that float64 copies of large sets are not made."""


class FeatureStatistics:
    """Count, mean and covariance of ``D``-dimensional feature vectors.

    Batches are folded in by the pairwise update of Chan, Golub and LeVeque (1983), so that neither a large mean nor
    a long run costs precision, and parts computed apart (by process, by file) :meth:`merge` to what one pass gives.

    Attributes:
        count: samples seen; None where it is not known, as with the statistics files that other tools write. Then
            :attr:`mean` and :attr:`covariance` are all there is: nothing can be folded in.
    """

    def __init__(self, dimensions: int, device: str | torch.device = "cpu") -> None:
        check_number("dimensions", dimensions, at_least=1, integer=True)
        self.count: int | None = 0
        # one tensor, so that it can be sent to another process: the mean, a row for the count, the scatter matrix
        self._moments = torch.zeros(dimensions + 2, dimensions, dtype=torch.float64, device=device)
        self._given: Tensor | None = None  # a covariance as it came, bit for bit, until more is folded in

    @classmethod
    def from_features(cls, features: Tensor) -> "FeatureStatistics":
        """Statistics of ``(N, D)`` features."""
        if features.ndim != 2:
            raise InputError(f"features: got shape {tuple(features.shape)}; allowed: (N, D)")
        statistics = cls(features.shape[1])
        for part in features.split(ROWS):
            statistics.update(part)
        return statistics

    @classmethod
    def from_moments(
        cls, mean: Tensor | np.ndarray, covariance: Tensor | np.ndarray, count: int | None = None
    ) -> "FeatureStatistics":
        """Statistics known by their mean ``(D,)`` and covariance ``(D, D)``, which divides by ``count - 1``.

        Both are given back as they came, in float64. Without a ``count`` it is unknown. Raises InputError on shapes
        that do not fit, NaN, a matrix that is not symmetric or has negative variances, and a count below 2.
        """
        mean, covariance = (torch.as_tensor(value).detach().to("cpu", torch.float64) for value in (mean, covariance))
        check_gaussian("mean", mean, "covariance", covariance)
        if count is not None:
            check_number("count", count, at_least=2, integer=True)
        statistics = cls(len(mean))
        statistics.count = None if count is None else int(count)
        statistics._mean.copy_(mean)
        statistics._scatter.copy_(covariance).mul_(statistics._divisor)
        statistics._given = covariance.clone()
        return statistics

    @classmethod
    def from_packed(cls, packed: Tensor) -> "FeatureStatistics":
        """Statistics over the storage of what :meth:`packed` returned; what is folded in changes it."""
        statistics = cls.__new__(cls)
        statistics._moments, statistics._given = packed, None
        statistics.count = int(packed[1, 0])
        return statistics

    def packed(self) -> Tensor:
        """Mean, count and scatter matrix in one float64 tensor ``(D + 2, D)`` that shares this object's storage.

        Its second row holds the count. Raises InputError where the count is not known.
        """
        self._need(0)
        return self._moments

    @property
    def dimensions(self) -> int:
        """D."""
        return self._moments.shape[1]

    @property
    def mean(self) -> Tensor:
        """``(D,)`` float64. Raises InputError before the first sample."""
        self._need(1, moments=True)
        return self._mean.clone()

    @property
    def covariance(self) -> Tensor:
        """``(D, D)`` float64, symmetric, divided by ``count - 1``. Raises InputError below two samples."""
        self._need(2, moments=True)
        return self._scatter / self._divisor if self._given is None else self._given.clone()

    @property
    def _mean(self) -> Tensor:
        return self._moments[0]

    @property
    def _scatter(self) -> Tensor:
        return self._moments[2:]

    @property
    def _divisor(self) -> int:
        return 1 if self.count is None else self.count - 1

    def update(self, features: Tensor) -> "FeatureStatistics":
        """Fold in a ``(N, D)`` batch of any dtype and device. Raises InputError on another width or on NaN."""
        self._need(0)
        if features.ndim != 2 or features.shape[1] != self.dimensions:
            raise InputError(f"features: got shape {tuple(features.shape)}; allowed: (N, {self.dimensions})")
        if not torch.isfinite(features).all():
            raise InputError("features: some are NaN or infinite")
        if len(features):
            batch = features.detach().to(self._moments.device, torch.float64)
            mean = batch.mean(0)
            centred = batch - mean
            self._scatter.addmm_(centred.T, centred)
            self._shift(len(batch), mean)
        return self

    def merge(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """Fold in the samples that ``other`` has seen. Raises InputError where a count is not known."""
        if other.dimensions != self.dimensions:
            raise InputError(f"other: has {other.dimensions} dimensions; allowed: {self.dimensions}")
        self._need(0)
        other._need(0)
        if other.count:
            self._scatter.add_(other._scatter.to(self._moments.device))
            self._shift(other.count, other._mean.to(self._moments.device))
        return self

    def _shift(self, count: int, mean: Tensor) -> None:
        """Account for the mean of ``count`` more samples, whose own scatter is in already."""
        self._given = None
        total = self.count + count
        shift = mean - self._mean
        self._scatter.addr_(shift, shift, alpha=self.count * count / total)
        self._mean.add_(shift, alpha=count / total)
        self._moments[1] = total
        self.count = total

    def _need(self, count: int, moments: bool = False) -> None:
        if self.count is None:
            if not moments:
                raise InputError("statistics: of an unknown number of samples; nothing can be added to them")
        elif self.count < count:
            raise InputError(f"statistics: {self.count} samples seen; at least {count} are needed")

    def save(self, path: str | Path, metadata: dict[str, str] | None = None) -> None:
        """Write mean, covariance and, where it is known, count atomically; string ``metadata`` goes in the header."""
        tensors = {"mean": self.mean, "covariance": self.covariance}
        if self.count is not None:
            tensors["count"] = torch.tensor([self.count])
        with atomic_path(path) as temporary:
            temporary.write_bytes(save(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path) -> "FeatureStatistics":
        """Read what :meth:`save` wrote. Raises InputError naming the file where that cannot be done."""
        if not Path(path).is_file():
            raise InputError(f"statistics: {path} does not exist")
        try:
            with safe_open(path, framework="pt") as file:
                mean, covariance = (file.get_tensor(name) for name in ("mean", "covariance"))
                count = int(file.get_tensor("count")) if "count" in file.keys() else None  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise InputError(f"statistics: cannot read {path} ({error})") from error
        try:
            return cls.from_moments(mean, covariance, count)
        except InputError as error:
            raise InputError(f"statistics: {path}: {error}") from error


def check_gaussian(mean_name: str, mean: Tensor, covariance_name: str, covariance: Tensor) -> None:
    """Raise InputError, naming the argument, unless these are a mean ``(D,)`` and a covariance ``(D, D)``."""
    dimensions = len(mean) if mean.ndim == 1 else -1
    for name, value, shape in (
        (mean_name, mean, (dimensions,)),
        (covariance_name, covariance, (dimensions, dimensions)),
    ):
        if tuple(value.shape) != shape or not dimensions:
            allowed = "(D,)" if name == mean_name else f"(D, D), D being {mean_name}'s length, {len(mean)}"
            raise InputError(f"{name}: got shape {tuple(value.shape)}; allowed: {allowed}")
        scale = float(value.abs().max())  # NaN where one entry is
        if not math.isfinite(scale):
            raise InputError(f"{name}: some entries are NaN or infinite")
    if float((covariance - covariance.T).abs_().max()) > 1e-6 * scale:
        raise InputError(f"{covariance_name}: not symmetric")
    if float(covariance.diagonal().min()) < -1e-6 * scale:
        raise InputError(f"{covariance_name}: a variance is {float(covariance.diagonal().min()):g}; allowed: >= 0")
