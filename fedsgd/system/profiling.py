"""Where the time of a run goes, by phase; nothing is measured unless somebody asks.

    gather     the examples of batches, out of the data set
    train      local training
    compress   the client's scheme: choosing what to send, remembering the rest
    encode     numbers to bytes, at either end
    decode     bytes to numbers, at either end
    aggregate  folding the replies, and the server's step
    evaluate   the model on test examples
    ledger     the account of what crossed the wire, and progress
    other      the rest, and waiting for workers

A phase within another is not counted in that one, so the phases add up to the time that passed.
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
"""Of the seconds of a process in memory that processes share."""

P = ParamSpec("P")
R = TypeVar("R")


class Profile:
    """Seconds by phase, of one process."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._phase_stack: list[Phase] = ["other"]
        self._last_time = time.perf_counter()

    def enter(self, phase: Phase) -> None:
        """What passes from now on is this phase's."""
        self.accrue()
        self._phase_stack.append(phase)

    def leave(self) -> None:
        """What passes from now on is what it was before."""
        self.accrue()
        self._phase_stack.pop()

    def pack(self) -> bytes:
        """`seconds`, in the order of PHASES."""
        return struct.pack(PROFILE_FORMAT, *self.seconds.values())

    def accrue(self) -> None:
        """Bring `seconds` up to now."""
        now = time.perf_counter()
        self.seconds[self._phase_stack[-1]] += now - self._last_time
        self._last_time = now


class RoundProfile:
    """What rounds take: all but the first, in which much is done for the first time, unless it is the only one."""

    def __init__(self) -> None:
        self.profile = Profile()
        self._n_rounds = 0
        self._first_seconds: list[dict[Phase, float]] = []
        self._last_seconds: list[dict[Phase, float]] = []

    def record_round(self, read_worker_seconds: Callable[[], dict[Phase, float]] | None) -> None:
        """A round is over. workers: seconds by phase of all workers together, None if there are none."""
        self.profile.accrue()
        self._n_rounds += 1
        self._last_seconds = [dict(self.profile.seconds), *([] if read_worker_seconds is None else [read_worker_seconds()])]
        self._first_seconds = self._first_seconds or self._last_seconds

    def average_per_round(self) -> dict[str, dict[Phase, float]]:
        """Seconds a round by phase: of "server", this process, and, if there are any, of all "workers" together."""
        rounds = max(1, self._n_rounds - 1)
        before = self._first_seconds if self._n_rounds > 1 else [dict.fromkeys(PHASES, 0.0) for _ in self._last_seconds]
        spent = [
            {phase: (late[phase] - early[phase]) / rounds for phase in PHASES}
            for early, late in zip(before, self._last_seconds, strict=True)
        ]
        return dict(zip(("server", "workers"), spent, strict=False))


def unpack_seconds(data: bytes) -> dict[Phase, float]:
    """What `Profile.pack` wrote."""
    return dict(zip(PHASES, struct.unpack(PROFILE_FORMAT, data), strict=True))


_active_profile: Profile | None = None


@contextmanager
def profiling_into(profile: Profile | None) -> Iterator[None]:
    """Charge what happens in this process to `profile`; to nothing if it is None."""
    global _active_profile
    before, _active_profile = _active_profile, profile
    try:
        yield
    finally:
        _active_profile = before


class PhaseTimer:
    """A context whose time is that phase's."""

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
    """Decorates a function whose time is that phase's."""

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
    """The results; the time that each takes to come is that phase's, what is done with it in between is not."""
    while True:
        with PhaseTimer(phase):
            try:
                result = next(results)
            except StopIteration:
                return
        yield result
