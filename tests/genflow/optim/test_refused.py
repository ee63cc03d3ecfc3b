"""What FRUGAL and MKOR cannot take: named at once, or at the first step, before anything changes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.optim import Optimizer

from genflow.errors import InputError
from genflow.optim import FRUGAL, MKOR, MKORH

Make = Callable[[nn.Module], Optimizer]
MAKERS: list[Any] = [
    pytest.param(lambda network: FRUGAL(network.named_parameters(), lr=0.1), id="frugal"),
    pytest.param(lambda network: MKOR(network, lr=0.1, unsupported="base"), id="mkor"),
    pytest.param(lambda network: MKORH(network, lr=0.1, unsupported="base"), id="mkor-h"),
]
every = pytest.mark.parametrize("make", MAKERS)


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def step(network: nn.Module, optimizer: Optimizer) -> None:
    loss = network(torch.tensor([0, 2])).square().mean()
    loss.backward()
    optimizer.step(lambda: loss.detach())


@every
def test_a_sparse_gradient_is_refused_by_name_at_the_first_step(make: Make) -> None:
    network = nn.Sequential(nn.Embedding(4, 3, sparse=True), nn.Linear(3, 2))
    optimizer = make(network)
    before = [param.detach().clone() for param in network.parameters()]
    with pytest.raises(RuntimeError, match=r"does not support sparse gradients: parameter '0.weight' has one"):
        step(network, optimizer)
    for param, old in zip(network.parameters(), before, strict=True):
        assert torch.equal(param, old)
    assert not optimizer.state
    dense = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 2))
    step(dense, make(dense))


@every
def test_a_complex_parameter_is_refused_by_name(make: Make) -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    network[1].bias = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(InputError, match=r"parameter '1.bias' is complex; .* takes whole, real tensors"):
        make(network)


@every
def test_a_sharded_parameter_is_refused_by_name(make: Make, mesh: DeviceMesh) -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    network[1].weight = nn.Parameter(distribute_tensor(network[1].weight.detach(), mesh, [Shard(0)]))
    with pytest.raises(InputError, match=r"parameter '1.weight' is a DTensor; .* takes whole, real tensors"):
        make(network)


@every
def test_a_group_added_later_is_refused_and_leaves_no_trace(make: Make) -> None:
    network = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 2))
    optimizer = make(network)
    with pytest.raises(InputError, match=r"parameter 'late' is complex"):
        optimizer.add_param_group({"params": [("late", nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64)))]})
    assert len(optimizer.param_groups) == 1
    step(network, optimizer)
