"""Membership of a process in the ranks, from its start to its end."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from fedsgd.runtime.ranks.heartbeat import Heartbeat, pronounce_verdict
from fedsgd.runtime.ranks.rendezvous import RankPlaces, Rendezvous
from fedsgd.system.rank_environment import RankEnvironment

EXIT_FAILURE = 1
"""Exit status of a rank that ends because another rank has failed."""
VERDICT_SECONDS = 3.0
"""Seconds in which the server says why it ended, if it still can."""
END_SECONDS = 10.0
"""Seconds in which the other ranks end after the last round."""


@dataclass(frozen=True, eq=False)
class RankGroup:
    """The ranks, as one of them sees them.

    Attributes:
        rendezvous: values that the ranks publish.
        places: machines of the ranks.
    """

    rendezvous: Rendezvous
    places: RankPlaces

    @property
    def rank(self) -> int:
        """Number of this rank."""
        return self.rendezvous.environment.rank

    @property
    def machine(self) -> int:
        """Number of this rank's machine."""
        return self.places.machine_of_rank(self.rank)

    @property
    def leader(self) -> int:
        """Leader of this rank's machine, its lowest rank."""
        return self.places.machines[self.machine][0]

    def explain_lost_leader(self) -> str:
        """Return a line about a leader that has ended; "" if a rank has explained it."""
        end = time.monotonic() + VERDICT_SECONDS
        with suppress(RuntimeError):
            while time.monotonic() < end:
                if self.rendezvous.count("n_verdicts"):
                    return ""
                time.sleep(0.1)
        return f"{self.places.name_rank(self.leader)} has ended"


def wait_for_others(rendezvous: Rendezvous) -> None:
    """Wait, but not for long, until all ranks but rank 0 have confirmed that they end.

    Args:
        rendezvous: values of the ranks.
    """
    end = time.monotonic() + END_SECONDS
    while rendezvous.count("n_ended") < rendezvous.environment.n_ranks - 1 and time.monotonic() < end:
        time.sleep(0.01)


def confirm_end(rendezvous: Rendezvous) -> None:
    """Confirm that this rank, which is not rank 0, ends.

    Args:
        rendezvous: values of the ranks.
    """
    with suppress(RuntimeError):  # rank 0, which may run the store, has not waited
        rendezvous.count("n_ended", 1)


@contextmanager
def join_ranks(environment: RankEnvironment) -> Iterator[RankGroup]:
    """Return a context in which this process is a rank. An error ends all ranks.

    Args:
        environment: place of this process.

    Raises:
        DeploymentError: the store of the ranks cannot be reached.
    """
    rendezvous = Rendezvous(environment)
    heartbeat = Heartbeat(environment, partial(_end_process, rendezvous))
    try:
        group = RankGroup(rendezvous, rendezvous.gather_places())
        heartbeat.name_rank = group.places.name_rank
        yield group
    except BaseException as error:
        heartbeat.stop()  # this rank need not learn its own verdict
        with suppress(RuntimeError):
            pronounce_verdict(rendezvous, f"rank {environment.rank}: {error}")
            if environment.rank == 0 and not environment.launcher_has_store:  # the store ends with this process
                wait_for_others(rendezvous)
        raise
    finally:
        heartbeat.stop()


def _end_process(rendezvous: Rendezvous, verdict: str, is_own: bool) -> None:
    """End this process, whose main thread may be waiting for the dead rank."""
    is_server = rendezvous.environment.rank == 0
    if is_own or is_server:
        sys.stdout.flush()
        print(f"fedsgd: {verdict}", file=sys.stderr, flush=True)
    if not is_server:
        confirmation = threading.Thread(target=confirm_end, args=[rendezvous], daemon=True)
        confirmation.start()
        confirmation.join(1.0)  # a store that does not answer blocks the thread
    os._exit(EXIT_FAILURE)
