"""Small networks whose whole Hessian can be written down."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

Problem = tuple[nn.Module, Callable[[tuple[Tensor, Tensor]], Tensor], tuple[Tensor, Tensor]]


@pytest.fixture
def problem() -> Problem:
    """A float64 network of 79 parameters, its loss of a batch, and 32 samples."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.sin(0.7 * torch.arange(192, dtype=torch.float64)).view(32, 6)
    y = torch.cos(torch.arange(64, dtype=torch.float64)).view(32, 2)

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        return (network(inputs) - targets).square().mean()

    return network, loss, (x, y)


@pytest.fixture
def exact(problem: Problem) -> Tensor:
    """Its Hessian, entry by entry, by torch.func."""
    network, _, (x, y) = problem
    names = [name for name, _ in network.named_parameters()]
    shapes = [p.shape for p in network.parameters()]
    flat = torch.cat([p.detach().reshape(-1) for p in network.parameters()])

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes])
        params = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return (torch.func.functional_call(network, params, (x,)) - y).square().mean()

    return torch.func.hessian(loss)(flat)
