"""Ctrl-C in two steps: the first lets the work in progress end, the second stops it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType


class InterruptRequest:
    """Request to stop, which the first Ctrl-C makes.

    Attributes:
        is_made: True after the first Ctrl-C.
    """

    def __init__(self) -> None:
        self.is_made = False


@contextmanager
def defer_interrupt(message: str, is_wanted: bool = True) -> Iterator[InterruptRequest]:
    """Yield a request that the first Ctrl-C in the context makes; the second raises KeyboardInterrupt.

    Outside the main thread, and in a program with a handler of its own for Ctrl-C, nothing changes.

    Args:
        message: line that the first Ctrl-C prints on standard error.
        is_wanted: False: nothing changes.
    """
    request = InterruptRequest()
    is_main = threading.current_thread() is threading.main_thread()
    if not (is_wanted and is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if request.is_made:
            raise KeyboardInterrupt
        request.is_made = True
        with suppress(OSError, ValueError, AttributeError):  # a stream without a file, as in a notebook
            os.write(sys.stderr.fileno(), f"\n{message}\n".encode())  # a buffered stream could be in use at this moment

    signal.signal(signal.SIGINT, handle)
    try:
        yield request
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
