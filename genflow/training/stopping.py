"""Ending a run between two steps, when somebody asks for it."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

__all__ = ["StopRequest"]


class StopRequest:
    """Whether Ctrl-C or SIGTERM came; a loop looks after every step, writes a checkpoint and ends.

    Attributes:
        asked: True from the signal on.
    """

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Take the two signals over while inside."""

        def request(number: int, frame: Any) -> None:
            self.asked = True

        try:
            previous = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: whoever owns that deals with signals
            previous = {}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
