"""A network whose flow is known: the exact velocity of the linear path for data normal(mean, std^2), per class.

Tests reach it as the module ``genflow_closed_form``, under which diffusers finds it when it loads a pipeline.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

__all__ = ["GaussianFlow2DModel"]


class GaussianFlow2DModel(ModelMixin, ConfigMixin):
    """Classes 0, 1, ... have the means ``class_means``; without labels, or with the null label, the mean is 0."""

    @register_to_config
    def __init__(
        self,
        sample_size: int = 4,
        in_channels: int = 1,
        std: float = 0.5,
        class_means: tuple[float, ...] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))  # a network has parameters
        means = [*(class_means or ()), 0.0]
        self.register_buffer("means", torch.tensor(means), persistent=False)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Tensor:
        t = (timestep / 1000).view(-1, 1, 1, 1)
        labels = torch.full((len(sample),), -1) if class_labels is None else class_labels
        mean = self.means[labels].view(-1, 1, 1, 1)
        variance = ((1 - t) * self.config.std) ** 2 + t**2
        # E[eps - x0 | x_t], of variables that are jointly normal with x_t
        gain = (t - (1 - t) * self.config.std**2) / variance
        return self.scale * (gain * (sample - (1 - t) * mean) - mean)
