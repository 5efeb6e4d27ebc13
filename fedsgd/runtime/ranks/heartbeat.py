"""Heartbeat of a rank: every rank learns within a minute that another rank is dead or silent, and which one.

Each rank counts up its own counter in the store of the ranks. Rank 0 watches all counters, the others watch that of rank 0. A
rank that stops counting is named in a verdict, at which all ranks end. The threads have their own connection, because a call
that waits blocks a connection.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from fedsgd.errors import DeploymentError
from fedsgd.runtime.ranks.rendezvous import RankPlaces, Rendezvous
from fedsgd.system.rank_environment import RankEnvironment

BEAT_SECONDS = 3.0
"""Seconds between two beats of a rank."""
SILENCE_SECONDS = 40.0
"""Seconds without a beat after which a rank counts as dead."""


class Heartbeat:
    """Threads that show that this rank lives, and watch other ranks.

    Args:
        environment: place of this process.
        session: session on which the ranks have agreed.
        places: machines of the ranks.
        on_death: called in a thread with a text that names the dead rank, and with True if this rank has found it; the function
            must end the process.

    Attributes:
        rendezvous: connection of the threads, which no call of the main thread blocks.

    Raises:
        DeploymentError: the store cannot be reached.
    """

    def __init__(
        self, environment: RankEnvironment, session: str, places: RankPlaces, on_death: Callable[[str, bool], None]
    ) -> None:
        self.rendezvous = Rendezvous(environment, session)
        self._places = places
        self._rank = environment.rank
        self._watched = range(1, environment.n_ranks) if self._rank == 0 else range(1)
        self._on_death = on_death
        self._is_stopped = threading.Event()
        self._last_exchange = time.monotonic()
        for function in (self._beat, self._watch_store):
            threading.Thread(target=function, name=f"fedsgd{function.__name__}", daemon=True).start()

    def stop(self) -> None:
        """Stop beating and watching. The other ranks must not watch this rank any longer."""
        self._is_stopped.set()

    def _watch_store(self) -> None:
        """Watch the thread that beats, for which no timeout holds if the store's process is stopped and not dead."""
        while not self._is_stopped.wait(BEAT_SECONDS):
            if time.monotonic() - self._last_exchange > SILENCE_SECONDS:
                self._on_death(
                    f"{self._places.name_rank(0)} has not answered for {SILENCE_SECONDS:.0f} s, or its launcher", True
                )
                return

    def _beat(self) -> None:
        last_change = dict.fromkeys(self._watched, time.monotonic())
        counts = dict.fromkeys(self._watched, 0)
        while not self._is_stopped.wait(BEAT_SECONDS):
            try:
                verdict, is_own = self._exchange(counts, last_change)
                self._last_exchange = time.monotonic()
            except DeploymentError:  # the store has ended
                verdict, is_own = f"{self._places.name_rank(0)} has ended, or its launcher", True
            if verdict and not self._is_stopped.is_set():
                self._on_death(verdict, is_own)
                return

    def _exchange(self, counts: dict[int, int], last_change: dict[int, float]) -> tuple[str, bool]:
        """Count up, read the counters of the watched ranks, and return the verdict, if any, and whether it is this rank's."""
        self.rendezvous.count(f"beat/{self._rank}", 1)
        verdict = self.rendezvous.read_if_published("verdict")
        if verdict is not None:
            return str(verdict), False
        now = time.monotonic()
        for rank in self._watched:
            count = self.rendezvous.count(f"beat/{rank}")
            if count != counts[rank]:
                counts[rank], last_change[rank] = count, now
            elif now - last_change[rank] > SILENCE_SECONDS:
                verdict = f"{self._places.name_rank(rank)} has not answered for {now - last_change[rank]:.0f} s"
                return verdict, pronounce_verdict(self.rendezvous, verdict)
        return "", False


def pronounce_verdict(rendezvous: Rendezvous, verdict: str) -> bool:
    """Let all ranks end, whatever they are doing, and return whether this verdict is the first.

    Args:
        rendezvous: values of the ranks.
        verdict: what has happened.
    """
    is_first = rendezvous.count("n_verdicts", 1) == 1
    if is_first:
        rendezvous.publish("verdict", verdict)
    return is_first
