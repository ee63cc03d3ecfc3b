"""A Gaussian mixture in one dimension, whose probability flow is known exactly: it keeps every quantile."""

import numpy as np
import pytest
import torch
from torch import Tensor

from genflow.models import PathModel, from_function
from genflow.paths import Path

WEIGHTS = np.array([0.3, 0.5, 0.2])
MEANS = np.array([-1.1, 0.2, 1.3])
STDS = np.array([0.45, 0.4, 0.5])


class Mixture:
    """Data from the mixture above: the exact denoiser, and the exact flow between two times.

    ``levels`` are noise levels between which some hundred steps are enough to see a rule's order.
    """

    levels = (3.0, 0.4)

    def model(self, path: Path) -> PathModel:
        """The posterior mean of x0."""
        weights, means, stds = (torch.from_numpy(a) for a in (WEIGHTS, MEANS, STDS))

        def posterior_mean(x: Tensor, t: float, **_: object) -> Tensor:
            alpha, sigma = path.alpha(t), path.sigma(t)
            variance = alpha**2 * stds**2 + sigma**2
            offset = x[..., None] - alpha * means
            share = torch.softmax(weights.log() - variance.log() / 2 - offset**2 / (2 * variance), dim=-1)
            return (share * (means + alpha * stds**2 / variance * offset)).sum(-1)

        return from_function(posterior_mean, path, "sample")

    def flow(self, path: Path, x: Tensor, t: float, t_end: float) -> Tensor:
        """The state at ``t_end`` of the same quantile, by bisection to the last bit."""
        target = self._cdf(path, x.numpy(), t)
        low, high = np.full(x.shape, -60.0), np.full(x.shape, 60.0)
        for _ in range(80):
            middle = (low + high) / 2
            below = self._cdf(path, middle, t_end) < target
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return torch.from_numpy((low + high) / 2)

    def _cdf(self, path: Path, x: np.ndarray, t: float) -> np.ndarray:
        from scipy.special import ndtr

        alpha, sigma = path.alpha(float(t)), path.sigma(float(t))
        stds = np.sqrt(alpha**2 * STDS**2 + sigma**2)
        return (WEIGHTS * ndtr((x[..., None] - alpha * MEANS) / stds)).sum(-1)


class Normal(Mixture):
    """Normal data of several standard deviations, one a coordinate (no rule's error vanishes on all): a scaling."""

    mean, stds = 0.7, torch.tensor([0.4, 0.7, 1.3, 2.0], dtype=torch.float64)

    def model(self, path: Path) -> PathModel:
        def posterior_mean(x: Tensor, t: float, **_: object) -> Tensor:
            alpha, sigma = path.alpha(t), path.sigma(t)
            gain = alpha * self.stds**2 / (alpha**2 * self.stds**2 + sigma**2)
            return self.mean + gain * (x - alpha * self.mean)

        return from_function(posterior_mean, path, "sample")

    def flow(self, path: Path, x: Tensor, t: float, t_end: float) -> Tensor:
        (a, s), (b, r) = ((path.alpha(float(u)), path.sigma(float(u))) for u in (t, t_end))
        scale = ((b**2 * self.stds**2 + r**2) / (a**2 * self.stds**2 + s**2)).sqrt()
        return b * self.mean + scale * (x - a * self.mean)


@pytest.fixture(params=["gaussian", "mixture"])
def data(request: pytest.FixtureRequest) -> Mixture:
    """Data whose exact denoiser and exact flow are known."""
    return Normal() if request.param == "gaussian" else Mixture()
