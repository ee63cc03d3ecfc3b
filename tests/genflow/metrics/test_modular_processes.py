"""Two processes on gloo with unequal shares, one of them without generated samples, find what one process finds."""

import pytest

SCRIPT = """
import json, sys
import torch
import torch.distributed as dist
from genflow.metrics import (
    FDInfinity, FrechetDistance, ImageStatistics, InceptionScore, KernelDistance, PrecisionRecall
)

rank, folder = int(sys.argv[1]), sys.argv[2]
generator = torch.Generator().manual_seed(0)
real = 1e3 + torch.randn(60, 5, generator=generator)  # a mean that plain sums of squares would not survive
generated = 1e3 + 1.5 * torch.randn(50, 5, generator=generator)
images = torch.randint(256, (20, 3, 4, 4), dtype=torch.uint8, generator=generator)
torch.manual_seed(rank)  # what is drawn must not depend on it


def values(metric):
    found = metric.compute()
    found = found.values() if isinstance(found, dict) else found if isinstance(found, tuple) else [found]
    return [float(value) for value in found]


def run(real, generated, scored, images):
    pair = [
        FrechetDistance(), KernelDistance(subsets=3, subset_size=20), PrecisionRecall(), FDInfinity(points=4)
    ]
    for metric in pair:
        for part in real:
            metric.update(part, real=True)
        for part in generated:
            metric.update(part, real=False)
    score, statistics = InceptionScore(splits=2), ImageStatistics()
    for part in scored:
        score.update(part)
    statistics.update(images)
    metrics = [*pair, score, statistics]
    return metrics, [values(metric) for metric in metrics]


_, alone = run([real], [generated], [real / 1e3], images)
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
if rank:
    metrics, shared = run(real[:7].split(3), [], (real / 1e3)[:7].split(2), images[:3])
else:
    metrics, shared = run(real[7:].flip(0).split(11), generated.flip(0).split(9), [(real / 1e3)[7:]], images[3:])
# what each has is its own again after compute, and can go on: the real samples twice
metrics[0].update(real[:30] if rank else real[30:], real=True)
again = values(metrics[0])
twice = FrechetDistance(sync_on_compute=False)
for part in (real, real):
    twice.update(part, real=True)
twice.update(generated, real=False)
print(json.dumps({"alone": [*alone, values(twice)], "shared": [*shared, again]}))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_find_what_one_finds(two_processes) -> None:
    found = two_processes(SCRIPT)
    assert found[0]["shared"] == found[1]["shared"]  # to the last bit: all merge in the order of the ranks
    for shared, alone in zip(found[0]["shared"], found[0]["alone"], strict=True):
        assert shared == pytest.approx(alone, rel=1e-8)
