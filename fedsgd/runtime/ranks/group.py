"""Membership of a process in the ranks, from its start to its end."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from fedsgd.errors import DeploymentError
from fedsgd.runtime.ranks.heartbeat import Heartbeat, pronounce_verdict
from fedsgd.runtime.ranks.rendezvous import RankPlaces, Rendezvous
from fedsgd.system.rank_environment import RankEnvironment

EXIT_FAILURE = 1
"""Exit status of a rank that ends because another rank has failed."""
VERDICT_SECONDS = 3.0
"""Seconds in which the server explains why it ended, if it still can."""
END_SECONDS = 10.0
"""Seconds in which the other ranks end after the last round."""


@dataclass(frozen=True, eq=False)
class RankGroup:
    """The ranks, as one of them sees them.

    Attributes:
        rendezvous: values that the ranks publish.
        places: machines of the ranks.
        heartbeat: watch over the other ranks.
    """

    rendezvous: Rendezvous
    places: RankPlaces
    heartbeat: Heartbeat

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

    def fail(self, error: BaseException) -> None:
        """Let all other ranks end because of an error of this rank, if no rank has failed before."""
        self.heartbeat.stop()  # this rank need not learn its own verdict
        with suppress(DeploymentError):
            text = str(error) or type(error).__name__
            pronounce_verdict(self.rendezvous, f"{self.places.name_rank(self.rank)}: {text}")

    def explain_lost_server(self) -> str:
        """Return a line about the end of the rank that gives this rank its work; "" if a rank has explained it."""
        end = time.monotonic() + VERDICT_SECONDS
        with suppress(DeploymentError):
            while time.monotonic() < end:
                if self.rendezvous.count("n_verdicts"):
                    return ""
                time.sleep(0.1)
        return f"{self.places.name_rank(0 if self.rank == self.leader else self.leader)} has ended"

    def wait_for_others(self) -> None:
        """Wait, but not for long, until all ranks but rank 0 have confirmed that they end, and watch them no longer."""
        self.heartbeat.stop()
        end = time.monotonic() + END_SECONDS
        with suppress(DeploymentError):
            while self.rendezvous.count("n_ended") < self.places.n_ranks - 1 and time.monotonic() < end:
                time.sleep(0.01)


def confirm_end(rendezvous: Rendezvous) -> None:
    """Confirm that this rank, which is not rank 0, ends.

    Args:
        rendezvous: values of the ranks.
    """
    with suppress(DeploymentError):  # rank 0, which may run the store, has not waited
        rendezvous.count("n_ended", 1)


@contextmanager
def join_ranks(environment: RankEnvironment) -> Iterator[RankGroup]:
    """Return a context in which this process is a rank. An error ends all ranks.

    Args:
        environment: place of this process.

    Raises:
        DeploymentError: the store of the ranks cannot be reached, or a rank does not come.
    """
    rendezvous = Rendezvous(environment)
    places = rendezvous.meet()
    assert rendezvous.session is not None
    heartbeat = Heartbeat(
        environment, rendezvous.session, places, lambda *verdict: _end_process(heartbeat, environment, *verdict)
    )
    group = RankGroup(rendezvous, places, heartbeat)
    try:
        yield group
    except BaseException as error:
        if not isinstance(error, SystemExit):  # of a rank whose leader has explained why it ended
            group.fail(error)
        if environment.rank == 0 and not environment.launcher_has_store:  # the store ends with this process
            group.wait_for_others()
        raise
    finally:
        heartbeat.stop()
        if environment.rank:
            confirm_end(heartbeat.rendezvous)


def _end_process(heartbeat: Heartbeat, environment: RankEnvironment, verdict: str, is_own: bool) -> None:
    """End this process, whose main thread may be waiting for the dead rank."""
    if is_own or environment.rank == 0:
        sys.stdout.flush()
        print(f"fedsgd: {verdict}", file=sys.stderr, flush=True)
    if environment.rank:
        confirmation = threading.Thread(target=confirm_end, args=[heartbeat.rendezvous], daemon=True)
        confirmation.start()
        confirmation.join(1.0)  # a store that does not answer blocks the thread
    os._exit(EXIT_FAILURE)
