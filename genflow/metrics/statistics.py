"""Running mean and covariance of feature vectors, in float64, that merge exactly and live in safetensors files."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from genflow.errors import InputError
from genflow.files import atomic_path

__all__ = ["FeatureStatistics"]


class FeatureStatistics:
    """Count, mean and covariance of ``D``-dimensional feature vectors.

    Batches are folded in by the pairwise update of Chan, Golub and LeVeque (1983), so that neither a large mean nor
    a long run costs precision, and parts computed apart (by process, by file) :meth:`merge` to what one pass gives.
    """

    def __init__(self, dimensions: int) -> None:
        if dimensions < 1:
            raise InputError(f"dimensions: got {dimensions}; allowed: an integer >= 1")
        self.count = 0
        self._mean = torch.zeros(dimensions, dtype=torch.float64)
        self._scatter = torch.zeros(dimensions, dimensions, dtype=torch.float64)

    @classmethod
    def from_features(cls, features: Tensor) -> "FeatureStatistics":
        """Statistics of ``(N, D)`` features."""
        if features.ndim != 2:
            raise InputError(f"features: got shape {tuple(features.shape)}; allowed: (N, D)")
        return cls(features.shape[1]).update(features)

    @property
    def dimensions(self) -> int:
        """D."""
        return len(self._mean)

    @property
    def mean(self) -> Tensor:
        """``(D,)`` float64. Raises InputError before the first sample."""
        self._need(1)
        return self._mean.clone()

    @property
    def covariance(self) -> Tensor:
        """``(D, D)`` float64, symmetric, divided by ``count - 1``. Raises InputError below two samples."""
        self._need(2)
        return self._scatter / (self.count - 1)

    def update(self, features: Tensor) -> "FeatureStatistics":
        """Fold in a ``(N, D)`` batch of any dtype and device. Raises InputError on another width or on NaN."""
        if features.ndim != 2 or features.shape[1] != self.dimensions:
            raise InputError(f"features: got shape {tuple(features.shape)}; allowed: (N, {self.dimensions})")
        if not torch.isfinite(features).all():
            raise InputError("features: some are NaN or infinite")
        if len(features):
            batch = features.detach().to("cpu", torch.float64)
            mean = batch.mean(0)
            centred = batch - mean
            self._fold(len(batch), mean, centred.T @ centred)
        return self

    def merge(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """Fold in the samples that ``other`` has seen."""
        if other.dimensions != self.dimensions:
            raise InputError(f"other: has {other.dimensions} dimensions; allowed: {self.dimensions}")
        if other.count:
            self._fold(other.count, other._mean, other._scatter)
        return self

    def _fold(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        shift = mean - self._mean
        self._scatter = self._scatter + scatter + torch.outer(shift, shift) * (self.count * count / total)
        self._mean = self._mean + shift * (count / total)
        self.count = total

    def _need(self, count: int) -> None:
        if self.count < count:
            raise InputError(f"statistics: {self.count} samples seen; at least {count} are needed")

    def save(self, path: str | Path, metadata: dict[str, str] | None = None) -> None:
        """Write mean, covariance and count atomically, with string ``metadata`` in the file's header."""
        tensors = {"mean": self.mean, "covariance": self.covariance, "count": torch.tensor([self.count])}
        with atomic_path(path) as temporary:
            temporary.write_bytes(save(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path) -> "FeatureStatistics":
        """Read what :meth:`save` wrote. Raises InputError naming the file where that cannot be done."""
        if not Path(path).is_file():
            raise InputError(f"statistics: {path} does not exist")
        try:
            with safe_open(path, framework="pt") as file:
                mean, covariance, count = (file.get_tensor(name) for name in ("mean", "covariance", "count"))
        except (SafetensorError, OSError) as error:
            raise InputError(f"statistics: cannot read {path} ({error})") from error
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise InputError(f"statistics: {path} holds mean {tuple(mean.shape)}, covariance {tuple(covariance.shape)}")
        statistics = cls(len(mean))
        statistics.count = int(count)
        statistics._mean = mean.double()
        statistics._scatter = covariance.double() * (statistics.count - 1)
        return statistics
