"""What a training run is about, apart from how its loop goes: a network, a loss, a finished pipeline."""

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from genflow.training.dynamics import TrainingDynamics
from genflow.training.recipe import Recipe

__all__ = ["Task"]


class Task(ABC):
    """One thing to train, as :class:`~genflow.training.Trainer` sees it.

    The trainer calls :meth:`create_network` and :meth:`bind` once, then :meth:`loss` for every micro-batch. All random
    draws must be functions of (seed, step, slot), so that a resumed run is the run that never stopped.

    Attributes:
        recipe: the run's settings; the trainer reads its optimizer, schedule, budget, EMA and log sections.
    """

    recipe: Recipe

    @abstractmethod
    def create_network(self) -> nn.Module:
        """The network in its initial weights, on the host."""

    @abstractmethod
    def bind(self, network: nn.Module, prepared: nn.Module, device: torch.device, size: int, slots: int) -> None:
        """Take over the network once accelerate has prepared it.

        Args:
            network: what :meth:`create_network` gave, on ``device`` now.
            prepared: the same inside accelerate's wrapper; gradients must pass through this one.
            device: where the losses are computed.
            size: images in a micro-batch.
            slots: micro-batches in a step, over processes and gradient accumulation.
        """

    @abstractmethod
    def loss(self, step: int, slot: int) -> Tensor:
        """The mean loss of micro-batch ``slot`` of step ``step``, a scalar on the device."""

    @abstractmethod
    def sample_grid(self, network: nn.Module, path: Path) -> None:
        """A picture of what ``network`` (averaged weights, eval mode) gives, to a PNG at ``path``."""

    @abstractmethod
    def save_pipeline(self, network: nn.Module, folder: Path) -> None:
        """Write the finished pipeline around ``network`` to ``folder``, whole or not at all."""

    @abstractmethod
    def dynamics(self, network: nn.Module, optimizer: Optimizer, out: Path, resume_at: int) -> TrainingDynamics:
        """The measurements that the recipe's ``dynamics`` section asks for; called after :meth:`bind`."""
