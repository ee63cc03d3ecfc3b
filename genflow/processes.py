"""Which of several processes this is, as started by ``accelerate launch`` or torchrun."""

import torch
from accelerate import PartialState

__all__ = ["process_state"]


def process_state(cpu: bool = False) -> PartialState:
    """accelerate's state of this process: its index, their number, its device, a barrier.

    Without an accelerator accelerate takes each process for the only one unless it is told to use the CPU; then all
    of them would do the whole work. ``cpu`` asks for the CPU where there is an accelerator too.
    """
    return PartialState(cpu=cpu or not torch.accelerator.is_available())
