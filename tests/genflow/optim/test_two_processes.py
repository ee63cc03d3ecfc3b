"""Two processes on gloo with half the batch each: what is averaged over processes is that of the whole batch."""

from collections.abc import Callable
from typing import Any

import pytest

SCRIPT = """
import json, sys
import torch
import torch.distributed as dist
from torch import nn
from genflow.optim import FRUGAL, MKOR, MKORH, gradient_statistics

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.manual_seed(rank)  # what is drawn must not depend on it
x = torch.randn(6, 8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def train(make, shared):
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    for p in network.parameters():
        p.data.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / 2)
    optimizer = make(network)
    for t in range(6):
        optimizer.zero_grad()
        loss = network(x[t, rank::2] if shared else x[t]).square().mean()
        loss.backward()
        if shared:
            for p in network.parameters():
                dist.all_reduce(p.grad)
                p.grad /= 2
        if isinstance(optimizer, MKORH):
            optimizer.observe(loss)
        optimizer.step()
    counts = [optimizer.param_groups[0].get("loss_mean"), optimizer.param_groups[0].get("first_order")]
    return torch.cat([p.detach().flatten() for p in network.parameters()]), counts


makers = {
    "mkor": lambda n: MKOR(n, lr=0.1, inverse_gap=2),
    "mkor-h": lambda n: MKORH(n, lr=0.1, inverse_gap=1, patience=2, fallback_ratio=0.9, loss_beta=0.0),
    "frugal": lambda n: FRUGAL(n.parameters(), lr=0.1, update_gap=2, select="entries"),
}
rows = x[0].repeat(1, 3) + 0.1
alone = {name: train(make, False) for name, make in makers.items()}
expected = gradient_statistics([rows[:, :7], rows[:, 7:]])
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
found = {}
for name, make in makers.items():
    weights, counts = train(make, True)
    found[name] = [(weights - alone[name][0]).abs().max().item(), counts[1] == alone[name][1][1]]
mine = rows[:3] if rank else rows[3:]
got = gradient_statistics([mine[:, :7], mine[:, 7:]])
found["statistics"] = [max(abs(a - b) / (abs(b) + 1e-12) for a, b in zip(got, expected)), True]
print(json.dumps(found))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_halves_of_a_batch_on_two_processes_are_the_whole(two_processes: Callable[..., list[Any]]) -> None:
    for found in two_processes(SCRIPT):
        for name, (apart, same) in found.items():
            assert apart < 1e-9, name
            assert same, name
