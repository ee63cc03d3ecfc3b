"""Two processes on gloo: parameters sharded by FSDP2 step as whole ones do, and their state is saved and loaded."""

import json
from collections.abc import Callable
from typing import Any

import pytest

SCRIPT = """
import json, sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
import genflow.optim

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
x = torch.randn(6, 8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def make(name, options, shard):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    if shard:
        fully_shard(network, mesh=mesh)
    cls = getattr(genflow.optim, name)
    return network, cls(network.parameters(), lr=0.01, weight_decay=0.1, **options)


def steps(network, optimizer, times, shard):
    for t in times:
        optimizer.zero_grad()
        network(x[t, rank::2] if shard else x[t]).square().mean().backward()
        optimizer.step()


def whole(network):
    return [p.full_tensor().detach() if hasattr(p, "full_tensor") else p.detach() for p in network.parameters()]


found = {}
for name, options in json.loads(sys.argv[3]):
    runs = {}
    for shard in (False, True):
        runs[shard] = make(name, options, shard)
        steps(*runs[shard], range(4), shard)
    apart = max((a - b).abs().max().item() for a, b in zip(whole(runs[False][0]), whole(runs[True][0]), strict=True))

    network, optimizer = runs[True]
    dcp.save({"optimizer": get_optimizer_state_dict(network, optimizer)}, checkpoint_id=f"{folder}/{name}")
    other, again = make(name, options, True)
    for p, q in zip(other.parameters(), network.parameters(), strict=True):
        p.data.copy_(q.data)
    state = {"optimizer": get_optimizer_state_dict(other, again)}
    dcp.load(state, checkpoint_id=f"{folder}/{name}")
    set_optimizer_state_dict(other, again, state["optimizer"])
    steps(network, optimizer, range(4, 6), True)
    steps(other, again, range(4, 6), True)
    same = all(torch.equal(a, b) for a, b in zip(whole(network), whole(other), strict=True))
    found[name] = [apart, same]
print(json.dumps(found))
dist.destroy_process_group()
"""
CASES = [
    ("AdaBelief", {}),
    ("AdaGradNorm", {}),
    ("AdamP", {}),
    ("Adan", {"max_grad_norm": 0.5}),
    ("DiffGrad", {}),
    ("Lion", {}),
    ("LionK", {"kappa": "l2"}),
    ("SGDP", {"momentum": 0.9}),
    ("StableSPAM", {}),
]


@pytest.mark.slow
def test_sharded_parameters_step_as_whole_ones_and_their_state_survives(
    two_processes: Callable[..., list[Any]],
) -> None:
    found, _ = two_processes(SCRIPT, json.dumps(CASES))
    assert set(found) == {name for name, _ in CASES}
    for name, (apart, same) in found.items():
        assert apart < 1e-12, name
        assert same, name
