"""Wall times of several ways to do one thing, measured turn about."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["best_times"]


def best_times(works: Sequence[Callable[[], Any]], repeats: int, device: torch.device | str = "cpu") -> list[float]:
    """Least wall seconds of each over ``repeats`` rounds, in turn, so that all see one load.

    Each round starts with another. What was queued on an accelerator is done when the clock starts and when it stops.
    """
    device = torch.device(device)
    best = [float("inf")] * len(works)
    for turn in range(repeats):
        for position in range(len(works)):
            index = (turn + position) % len(works)
            _wait(device)
            begun = time.perf_counter()
            works[index]()
            _wait(device)
            best[index] = min(best[index], time.perf_counter() - begun)
    return best


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
