"""Two processes on gloo share the tiles of nearest neighbours and find to the bit what one process finds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from genflow.metrics import memorization, nearest, neighbour_blocks, neighbour_details
from genflow.processes import Processes

SCRIPT = """
import json, sys
import torch
import torch.distributed as dist
from genflow.metrics import memorization, nearest, neighbour_details
from genflow.processes import Processes, processes

rank, folder = int(sys.argv[1]), sys.argv[2]
generator = torch.Generator().manual_seed(0)
real, generated = torch.randn(230, 7, generator=generator), torch.randn(190, 7, generator=generator)
real[200:] = real[:30]  # copies
generated[:40] = real[:1] + 1e-7 * generated[:40]  # products in float32 do not tell these apart


def figures(everyone):
    options = {"max_bytes": 40_000, "processes": everyone}
    details = neighbour_details(real, generated, **options)
    found = {n: v.tolist() for n, v in vars(details).items() if isinstance(v, torch.Tensor)}
    found["nearest_of_three"] = [part.tolist() for part in nearest(real, generated, count=3, **options)]
    found["ratios"] = memorization(real, generated, scale="own", **options).ratios.tolist()
    return found


alone = figures(Processes())
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
everyone = processes()
assert everyone.count == 2
shared = figures(everyone)
print(json.dumps({"alone": alone, "shared": shared}))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_find_what_one_finds(two_processes: Callable[..., list[Any]]) -> None:
    for found in two_processes(SCRIPT):
        assert found["shared"] == found["alone"]
        assert sum(found["alone"]["held"]) > 0


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("upper", [False, True])
def test_every_tile_is_somebodys_and_nobody_elses(count, upper):
    whole = list(neighbour_blocks.tiles(400, 400, 30_000, upper=upper))
    shares = [
        list(neighbour_blocks.tiles(400, 400, 30_000, upper=upper, processes=Processes(index, count)))
        for index in range(count)
    ]
    assert sorted(str(tile) for share in shares for tile in share) == sorted(map(str, whole))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_tiles_cover_each_pair_once_and_the_upper_half_at_least():
    seen = torch.zeros(190, 330)
    for rows, columns in neighbour_blocks.tiles(190, 330, 30_000):
        seen[rows, columns] += 1
    assert (seen == 1).all()
    seen = torch.zeros(290, 290)
    for rows, columns in neighbour_blocks.tiles(290, 290, 30_000, upper=True):
        seen[rows, columns] += 1
        assert columns.start >= rows.stop or (columns.start == rows.start and columns.stop >= rows.stop)
    assert (seen.triu() == torch.ones(290, 290).triu()).all()
    assert seen.sum() < 0.55 * 290**2


@pytest.mark.parametrize("count", [1, 3, 50])
def test_progress_adds_up_in_each_process(count):
    for index in range(count):
        told = []
        options = {"processes": Processes(index, count), "progress": told.append, "total": 1000}
        assert sum(1 for _ in neighbour_blocks.tiles(100, 100, 1, **options)) <= 26
        assert sum(told) == 1000
        assert all(part > 0 for part in told)


def test_alone_the_default_sends_nothing(monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_gather", lambda *_: pytest.fail("nobody is there"))
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    neighbour_details(x, x)
    nearest(x, x)
    memorization(x, x + 1)
