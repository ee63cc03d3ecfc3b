"""Where the work runs: the device, and the several processes that ``accelerate launch`` or torchrun start: which one
this is, and what they tell each other."""

from __future__ import annotations

import gc
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from genflow.errors import InputError

if TYPE_CHECKING:
    from accelerate import PartialState

__all__ = ["Processes", "choose_device", "leave_processes", "process_state", "processes"]


def choose_device(name: str) -> torch.device:
    """``auto`` is the first of CUDA, Apple's MPS and the CPU that this machine has.

    Of several GPUs it is the one that a launcher of several processes names in LOCAL_RANK, else the first.

    Raises:
        InputError: no such device, or not on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled with CUDA
        reason = str(error).splitlines()[0].split(". ")[0]
        raise InputError(f"--device: {name!r} cannot be used here: {reason}") from error
    return device


def process_state(cpu: bool = False) -> PartialState:
    """accelerate's state of this process: its index, their number, its device, a barrier.

    Without an accelerator accelerate takes each process for the only one unless it is told to use the CPU; then all
    of them would do the whole work. ``cpu`` asks for the CPU where there is an accelerator too.
    """
    from accelerate import PartialState  # a second's import, which one process alone can do without

    return PartialState(cpu=cpu or not torch.accelerator.is_available())


@dataclass(frozen=True)
class Processes:
    """All processes as one of them sees them; by default it is alone.

    Attributes:
        index: of this process, from 0.
        count: how many there are.
        device: where tensors have to be for the others to get them.
    """

    index: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.index == 0

    def share(self, total: int) -> range:
        """This process's part of ``range(total)``: runs of equal length, give or take one, in the order of indices."""
        return range(total * self.index // self.count, total * (self.index + 1) // self.count)

    def gather_rows(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in the order of their indices, on the host of each.

        ``rows`` is ``(n, ...)``; n may differ, and be 0; all else is the same everywhere. Every process has to call.
        """
        return torch.cat(self._gather(rows)) if self.count > 1 else rows

    def gather_json(self, value: Any) -> list[Any]:
        """One JSON-safe value a process, in the order of their indices. Every process has to call."""
        if self.count == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        return [json.loads(part.numpy().tobytes()) for part in self._gather(text)]

    def _gather(self, rows: Tensor) -> list[Tensor]:
        sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.count)]
        dist.all_gather(sizes, torch.tensor([len(rows)], device=self.device))
        lengths = torch.cat(sizes).tolist()
        padded = torch.zeros(max(lengths), *rows.shape[1:], dtype=rows.dtype, device=self.device)
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in lengths]
        if padded.numel():
            dist.all_gather(parts, padded)
        return [part[:length].cpu() for part, length in zip(parts, lengths, strict=True)]


def processes(cpu: bool = False) -> Processes:
    """The processes that were launched, or those of torch.distributed where it runs already; else this one alone.

    ``cpu`` is that of :func:`process_state`; every process of several has to call.
    """
    if not (dist.is_available() and dist.is_initialized()):
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return Processes()
        process_state(cpu)
    host = dist.get_backend() in ("gloo", "mpi")
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = torch.device("cpu") if host or accelerator is None else accelerator
    return Processes(dist.get_rank(), dist.get_world_size(), device)


def leave_processes() -> None:
    """Part from the processes that a launcher started with this one: a program's last call, once it has succeeded.

    After a failure it must not be called: the others may wait in a collective, and this would wait for them.
    """
    if dist.is_available() and dist.is_initialized():
        # A model wrapped for it holds the group too. The last to let go waits for the group's threads; a model keeps
        # the interpreter's lock then, which those may need to end a barrier: a wait for ever (torch 2.13).
        gc.collect()
        dist.destroy_process_group()
