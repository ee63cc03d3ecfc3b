"""What the commands share about the processes they run in."""

import os
from collections.abc import Callable
from typing import Any

__all__ = ["launched"]


def launched(device: str) -> tuple[tuple[int, int], Callable[[], Any]]:
    """This process's index and their number, and what waits for the others, under ``accelerate launch`` or torchrun."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return (0, 1), lambda: None
    from genflow.processes import process_state

    state = process_state(cpu=device == "cpu")
    return (state.process_index, state.num_processes), state.wait_for_everyone
