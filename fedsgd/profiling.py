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

LAYOUT = f"<{len(PHASES)}d"
"""Of the seconds of a process in memory that processes share."""

P = ParamSpec("P")
R = TypeVar("R")


class Profile:
    """Seconds by phase, of one process."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._within: list[Phase] = ["other"]
        self._since = time.perf_counter()

    def enter(self, phase: Phase) -> None:
        """What passes from now on is this phase's."""
        self.charge()
        self._within.append(phase)

    def leave(self) -> None:
        """What passes from now on is what it was before."""
        self.charge()
        self._within.pop()

    def pack(self) -> bytes:
        """`seconds`, in the order of PHASES."""
        return struct.pack(LAYOUT, *self.seconds.values())

    def charge(self) -> None:
        """Bring `seconds` up to now."""
        now = time.perf_counter()
        self.seconds[self._within[-1]] += now - self._since
        self._since = now


class Account:
    """What rounds take: all but the first, in which much is done for the first time, unless it is the only one."""

    def __init__(self) -> None:
        self.profile = Profile()
        self._rounds = 0
        self._first: list[dict[Phase, float]] = []
        self._last: list[dict[Phase, float]] = []

    def after_round(self, workers: Callable[[], dict[Phase, float]] | None) -> None:
        """A round is over. workers: seconds by phase of all workers together, None if there are none."""
        self.profile.charge()
        self._rounds += 1
        self._last = [dict(self.profile.seconds), *([] if workers is None else [workers()])]
        self._first = self._first or self._last

    def per_round(self) -> dict[str, dict[Phase, float]]:
        """Seconds a round by phase: of "server", this process, and, if there are any, of all "workers" together."""
        rounds = max(1, self._rounds - 1)
        before = self._first if self._rounds > 1 else [dict.fromkeys(PHASES, 0.0) for _ in self._last]
        spent = [
            {phase: (late[phase] - early[phase]) / rounds for phase in PHASES}
            for early, late in zip(before, self._last, strict=True)
        ]
        return dict(zip(("server", "workers"), spent, strict=False))


def unpack(data: bytes) -> dict[Phase, float]:
    """What `Profile.pack` wrote."""
    return dict(zip(PHASES, struct.unpack(LAYOUT, data), strict=True))


_profile: Profile | None = None


@contextmanager
def measured(profile: Profile | None) -> Iterator[None]:
    """Charge what happens in this process to `profile`; to nothing if it is None."""
    global _profile
    before, _profile = _profile, profile
    try:
        yield
    finally:
        _profile = before


class Within:
    """A context whose time is that phase's."""

    __slots__ = ("_name",)

    def __init__(self, name: Phase) -> None:
        self._name = name

    def __enter__(self) -> None:
        if _profile is not None:
            _profile.enter(self._name)

    def __exit__(self, *error: object) -> None:
        if _profile is not None:
            _profile.leave()


def phased(name: Phase) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a function whose time is that phase's."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            if _profile is None:
                return function(*args, **kwargs)
            with Within(name):
                return function(*args, **kwargs)

        return timed

    return decorate


def each_phased(name: Phase, results: Iterator[R]) -> Iterator[R]:
    """The results; the time that each takes to come is that phase's, what is done with it in between is not."""
    while True:
        with Within(name):
            try:
                result = next(results)
            except StopIteration:
                return
        yield result
