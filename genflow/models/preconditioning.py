"""EDM's preconditioning: scalings that give a network inputs and targets of unit variance at every noise level."""

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from genflow.errors import check_number
from genflow.paths import expand_like

__all__ = ["EDMPreconditioning"]

Level = TypeVar("Level", float, Tensor)


@dataclass(frozen=True)
class EDMPreconditioning:
    """``D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)`` (Karras et al. 2022, arXiv 2206.00364, table 1).

    Every scaling takes a noise level as a number or a tensor and gives back the same kind. Raises InputError for a
    sigma_data that is not positive.

    Attributes:
        sigma_data: standard deviation of the data; 0.5 in the paper, for images in [-1, 1].
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        check_number("sigma_data", self.sigma_data, above=0)

    def _variance(self, sigma: Level) -> Level:
        return sigma**2 + self.sigma_data**2

    def c_skip(self, sigma: Level) -> Level:
        """How much of x passes around the network."""
        return self.sigma_data**2 / self._variance(sigma)

    def c_out(self, sigma: Level) -> Level:
        """Scale of the network's output."""
        return sigma * self.sigma_data / self._variance(sigma) ** 0.5

    def c_in(self, sigma: Level) -> Level:
        """Scale of the network's input."""
        return self._variance(sigma) ** -0.5

    def c_noise(self, sigma: Level) -> Level:
        """What the network is told of the noise level: ``log(sigma) / 4``."""
        return torch.log(sigma) / 4 if isinstance(sigma, Tensor) else math.log(sigma) / 4

    def loss_weight(self, sigma: Level) -> Level:
        """``1 / c_out^2``: with it the squared error of D weighs the network's own error equally at every level."""
        return self._variance(sigma) / (sigma * self.sigma_data) ** 2

    def denoised(self, x: Tensor, output: Tensor, sigma: float | Tensor) -> Tensor:
        """D from the state ``x`` ``(B, ...)`` and the network's output, at ``sigma`` (a number or ``(B,)``)."""
        return expand_like(self.c_skip(sigma), x) * x + expand_like(self.c_out(sigma), x) * output

    def target(self, x0: Tensor, x: Tensor, sigma: float | Tensor) -> Tensor:
        """What the network should give for ``D = x0``: ``(x0 - c_skip x) / c_out``."""
        return (x0 - expand_like(self.c_skip(sigma), x) * x) / expand_like(self.c_out(sigma), x)
