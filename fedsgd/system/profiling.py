"""Time of a run by phase, measured only on request.

    gather     copies of the examples of batches
    train      local training
    compress   schemes of the clients: selection of coordinates, residuals
    encode     numbers to bytes, at client and server
    decode     bytes to numbers, at client and server
    aggregate  aggregation of updates, and the server's step
    evaluate   evaluation of models, on test and training examples
    ledger     ledger of frames, and progress
    other      all else, and waiting for workers

A nested phase's time is not counted in the outer phase, so the phases add up to the elapsed time.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Literal, ParamSpec, TypeVar

Phase = Literal["gather", "train", "compress", "encode", "decode", "aggregate", "evaluate", "ledger", "other"]
PHASES: tuple[Phase, ...] = ("gather", "train", "compress", "encode", "decode", "aggregate", "evaluate", "ledger", "other")

PROFILE_FORMAT = f"<{len(PHASES)}d"
"""`struct` format of the seconds of all phases, for memory that processes share."""

P = ParamSpec("P")
R = TypeVar("R")


class Profile:
    """Seconds of one process by phase."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._phase_stack: list[Phase] = ["other"]
        self._last_time = time.perf_counter()

    def enter(self, phase: Phase) -> None:
        """Start a phase inside the current one."""
        self.accrue()
        self._phase_stack.append(phase)

    def leave(self) -> None:
        """Return to the phase before the last `enter`."""
        self.accrue()
        self._phase_stack.pop()

    def pack(self) -> bytes:
        """Return `seconds` as bytes, in the order of PHASES."""
        return struct.pack(PROFILE_FORMAT, *self.seconds.values())

    def accrue(self) -> None:
        """Add the time since the last call to the current phase."""
        now = time.perf_counter()
        self.seconds[self._phase_stack[-1]] += now - self._last_time
        self._last_time = now


class RoundProfile:
    """Mean time of a round by phase. The first round, which includes set-up, only counts if the run has no other round."""

    def __init__(self) -> None:
        self.profile = Profile()
        self._n_rounds = 0
        self._first_seconds: list[dict[Phase, float]] = []
        self._last_seconds: list[dict[Phase, float]] = []

    def record_round(self, read_worker_seconds: Callable[[], dict[Phase, float]] | None) -> None:
        """Record the end of a round; `read_worker_seconds` returns the sum over workers by phase, None without workers."""
        self.profile.accrue()
        self._n_rounds += 1
        self._last_seconds = [dict(self.profile.seconds), *([] if read_worker_seconds is None else [read_worker_seconds()])]
        self._first_seconds = self._first_seconds or self._last_seconds

    def average_per_round(self) -> dict[str, dict[Phase, float]]:
        """Return mean seconds of a round by phase, for "server" (this process) and, if any, the sum over "workers"."""
        n_rounds = max(1, self._n_rounds - 1)
        start_seconds = self._first_seconds if self._n_rounds > 1 else [dict.fromkeys(PHASES, 0.0) for _ in self._last_seconds]
        averages = [
            {phase: (end[phase] - start[phase]) / n_rounds for phase in PHASES}
            for start, end in zip(start_seconds, self._last_seconds, strict=True)
        ]
        return dict(zip(("server", "workers"), averages, strict=False))


def unpack_seconds(data: bytes) -> dict[Phase, float]:
    """Return the seconds by phase from the bytes of `Profile.pack`."""
    return dict(zip(PHASES, struct.unpack(PROFILE_FORMAT, data), strict=True))


_active_profile: Profile | None = None


@contextmanager
def profiling_into(profile: Profile | None) -> Iterator[None]:
    """Measure the body's phases with `profile`; None: measure nothing."""
    global _active_profile
    previous_profile, _active_profile = _active_profile, profile
    try:
        yield
    finally:
        _active_profile = previous_profile


class PhaseTimer:
    """Context that counts its time to a phase."""

    __slots__ = ("_phase",)

    def __init__(self, phase: Phase) -> None:
        self._phase = phase

    def __enter__(self) -> None:
        if _active_profile is not None:
            _active_profile.enter(self._phase)

    def __exit__(self, *error: object) -> None:
        if _active_profile is not None:
            _active_profile.leave()


def timed(phase: Phase) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that counts a function's time to a phase."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            if _active_profile is None:
                return function(*args, **kwargs)
            with PhaseTimer(phase):
                return function(*args, **kwargs)

        return wrapper

    return decorate


def timed_iterator(phase: Phase, results: Iterator[R]) -> Iterator[R]:
    """Yield the results and count the time of the iterator, without the time between results, to a phase."""
    while True:
        with PhaseTimer(phase):
            try:
                result = next(results)
            except StopIteration:
                return
        yield result
