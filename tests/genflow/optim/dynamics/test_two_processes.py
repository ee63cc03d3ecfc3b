"""Two processes on gloo with a share of the batches each measure what one process measures on all."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from genflow.errors import InputError
from genflow.optim.dynamics import Hessian

SCRIPT = """
import json, sys
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from genflow.errors import NonFiniteError
from genflow.optim.dynamics import Hessian, StabilityMonitor, trace

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
x, y = torch.randn(24, 6).double(), torch.randint(0, 3, (24,))
optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
F.cross_entropy(network(x), y).backward()
optimizer.step()
sizes = [4, 6, 8, 6]  # uneven: the first three are one process's, the last the other's
batches = list(zip(x.split(sizes), y.split(sizes)))


def loss(batch):
    return F.cross_entropy(network(batch[0]), batch[1])


def measured(share, weights, distributed):
    monitor = StabilityMonitor(optimizer, steps=12, probes=2, distributed=distributed)
    record = monitor.measure(loss, share, weights=weights, step=3).to_json()
    hessian = Hessian(loss, network.parameters(), share, weights=weights, distributed=distributed)
    numbers = [record[key] for key in sorted(record) if isinstance(record[key], float) and key != "seconds"]
    nodes = [value for row in record["spectrum"]["nodes"] for value in row]
    return [*numbers, *nodes, *hessian.dense().flatten().tolist(), *trace(hessian, probes=3)]


alone = measured(batches, sizes, False)
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
mine = slice(3, 4) if rank else slice(0, 3)
together = measured(batches[mine], sizes[mine], True)
apart = max(abs(a - b) / (1e-3 + abs(a)) for a, b in zip(alone, together, strict=True))

bad = Hessian(lambda: loss(batches[0]) * (float("nan") if rank else 1.0), network.parameters(), distributed=True)
try:
    bad.gradient()
    raised = False
except NonFiniteError:  # on both, though one of them alone has it
    raised = True
print(json.dumps([apart, raised, together]))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_shares_of_the_batches_on_two_processes_are_the_whole(two_processes: Callable[..., list[Any]]) -> None:
    found = two_processes(SCRIPT)
    for apart, raised, _ in found:
        assert apart < 1e-9
        assert raised
    assert found[0][2] == found[1][2]  # to the bit: every process takes the same decisions


def test_it_needs_a_process_group() -> None:
    weight = torch.ones(2, requires_grad=True)
    with pytest.raises(InputError, match="distributed: True without torch.distributed"):
        Hessian(lambda: weight.square().sum(), [weight], distributed=True)
