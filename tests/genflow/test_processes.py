"""What processes tell each other, and which part of the work is whose."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genflow.processes import Processes, processes

SCRIPT = """
import json, sys
import torch
import torch.distributed as dist
from genflow.processes import processes

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
team = processes(cpu=True)
found = {
    "place": [team.index, team.count, team.first, str(team.device)],
    "uneven": team.gather_rows(torch.arange(6).reshape(3, 2)[: 3 - 2 * rank] + 10 * rank).tolist(),
    "one has none": team.gather_rows(torch.ones(2 * rank, 3)).tolist(),
    "nobody has any": list(team.gather_rows(torch.ones(0, 3)).shape),
    "bytes": team.gather_rows(torch.full((1,), 200 + rank, dtype=torch.uint8)).tolist(),
    "doubles": team.gather_rows(torch.full((1,), 1 + 2.0**-50 * rank, dtype=torch.float64)).diff().item() == 2.0**-50,
    "json": team.gather_json([None, "\\u00e9" * rank] if rank else {"a": 1}),
}
print(json.dumps(found))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_both_processes_get_everything_in_order(two_processes) -> None:
    first, second = two_processes(SCRIPT)
    assert first.pop("place") == [0, 2, True, "cpu"]
    assert second.pop("place") == [1, 2, False, "cpu"]
    assert first == second
    assert first == {
        "uneven": [[0, 1], [2, 3], [4, 5], [10, 11]],
        "one has none": [[1, 1, 1], [1, 1, 1]],
        "nobody has any": [0, 3],
        "bytes": [200, 201],
        "doubles": True,
        "json": [{"a": 1}, [None, "\u00e9"]],
    }


PARTING = """
import json, sys, weakref
import torch
import torch.distributed as dist
from torch import nn
from genflow.processes import leave_processes

rank, folder = int(sys.argv[1]), sys.argv[2]
left = []
destroy = dist.destroy_process_group
dist.destroy_process_group = lambda: (left.append(model() is None), destroy())


def train(turn):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous-{turn}", rank=rank, world_size=2)
    network = nn.parallel.DistributedDataParallel(nn.Linear(4, 4))
    network(torch.ones(3, 4)).sum().backward()
    network.optimizer = [network]  # a ring, which outlives the call
    dist.barrier()
    return weakref.ref(network)


for turn in range(4):
    model = train(turn)
    leave_processes()
leave_processes()
print(json.dumps([left, dist.is_initialized()]))
"""


@pytest.mark.slow
def test_parting_waits_for_wrapped_models(two_processes) -> None:
    """Destroyed before its models, a group hangs once in some thirty times."""
    for left, still in two_processes(PARTING):
        assert left == [True] * 4
        assert not still


def test_one_process_alone_needs_no_group(monkeypatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = processes()
    assert alone == Processes()
    assert alone.first
    rows = torch.arange(3)
    assert alone.gather_rows(rows) is rows
    assert alone.gather_json("x") == ["x"]
    assert not torch.distributed.is_initialized()


@given(total=st.integers(0, 50), count=st.integers(1, 9))
def test_shares_are_runs_that_cover_everything_once(total, count) -> None:
    shares = [Processes(index, count).share(total) for index in range(count)]
    assert [place for share in shares for place in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
