"""Meeting of the ranks: who is on which machine, and values that ranks publish for the others."""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import DistStoreError, PrefixStore, TCPStore  # type: ignore[attr-defined]

from fedsgd.errors import DeploymentError
from fedsgd.system.rank_environment import RankEnvironment

JOIN_SECONDS = 60.0
"""Seconds in which all ranks must reach the store and meet."""
_POLL_SECONDS = 0.05
_FOREVER = timedelta(days=365)


@dataclass(frozen=True)
class RankPlaces:
    """Machines of all ranks.

    Attributes:
        machines: ranks of each machine, ascending; machine 0 has rank 0.
        hosts: name of the host of each rank.
    """

    machines: tuple[tuple[int, ...], ...]
    hosts: tuple[str, ...]

    @staticmethod
    def from_descriptions(descriptions: Sequence[Mapping[str, str]]) -> RankPlaces:
        """Return the places of ranks that describe themselves with `describe_place`.

        >>> ranks = [{"machine": "b", "host": "x"}, {"machine": "a", "host": "y"}, {"machine": "b", "host": "x"}]
        >>> RankPlaces.from_descriptions(ranks).machines
        ((0, 2), (1,))
        """
        machines: dict[str, list[int]] = {}
        for rank, description in enumerate(descriptions):
            machines.setdefault(description["machine"], []).append(rank)
        return RankPlaces(tuple(map(tuple, machines.values())), tuple(description["host"] for description in descriptions))

    @property
    def n_ranks(self) -> int:
        """Number of ranks."""
        return len(self.hosts)

    def machine_of_rank(self, rank: int) -> int:
        """Return the number of the machine of a rank."""
        return next(number for number, ranks in enumerate(self.machines) if rank in ranks)

    def machine_of_client(self, client: int) -> int:
        """Return the number of the machine that owns a client: machines with more ranks own more clients."""
        return self.machine_of_rank(client % self.n_ranks)

    def name_rank(self, rank: int) -> str:
        """Return a rank with its host, for messages.

        >>> RankPlaces(((0, 1),), ("x", "x")).name_rank(1)
        'rank 1 on x'
        """
        return f"rank {rank} on {self.hosts[rank]}"


def describe_place() -> dict[str, str]:
    """Return the machine of this process: processes with equal machines can share memory and local sockets."""
    host, parts = socket.gethostname(), list[str]()
    with suppress(OSError):  # not on every system
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts += [str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("net", "pid")]
    return {"machine": " ".join([host, *parts]), "host": host}


class Rendezvous:
    """Values that the ranks of one start publish for each other, in the launcher's store.

    Names have the session in front, which the ranks agree on when they meet: the store of torchrun outlives a restart.

    Args:
        environment: place of this process.
        session: session of the ranks, None before they have met.

    Raises:
        DeploymentError: the store cannot be reached.
    """

    def __init__(self, environment: RankEnvironment, session: str | None = None) -> None:
        self.environment = environment
        self.session = session
        is_owner = session is None and environment.rank == 0 and not environment.launcher_has_store
        try:
            self._store = TCPStore(
                environment.address,
                environment.port,
                is_master=is_owner,
                timeout=timedelta(seconds=JOIN_SECONDS),
                wait_for_workers=False,
            )
        except (RuntimeError, ValueError) as error:
            place = f"{environment.address}:{environment.port}"
            problem = f"cannot {'open' if is_owner else 'reach'} the store of the ranks at {place} (MASTER_ADDR, MASTER_PORT)"
            raise DeploymentError(f"{problem}: {str(error).splitlines()[0]}") from None

    def _key(self, name: str, session: str | None = None) -> str:
        return f"fedsgd/{session or self.session}/{name}"

    def publish(self, name: str, value: Any) -> None:
        """Publish a value that JSON has."""
        with _store_errors():
            self._store.set(self._key(name), json.dumps(value))

    def read(self, name: str) -> Any:
        """Wait for a published value, and return it."""
        with _store_errors():
            self._store.wait([self._key(name)], _FOREVER)
            return json.loads(self._store.get(self._key(name)))

    def read_if_published(self, name: str, session: str | None = None) -> Any | None:
        """Return a value of a session, by default of this process's, None if it is not published."""
        key = self._key(name, session)
        with _store_errors():
            return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def count(self, name: str, change: int = 0) -> int:
        """Change a counter, which starts at 0, and return its value."""
        with _store_errors():
            return int(self._store.add(self._key(name), change))

    def prefix_store(self, name: str) -> Any:
        """Return a store for a process group."""
        return PrefixStore(self._key(name), self._store)

    def meet(self) -> RankPlaces:
        """Agree on a session with all ranks, and return the machines of the ranks.

        Each rank publishes a random number. Rank 0 publishes a session with the numbers that it has read, again after each
        change, until all ranks have found their own number in it. So values of an earlier start in the same store do no harm.

        Raises:
            DeploymentError: a rank does not come.
        """
        me, end = {"nonce": secrets.token_hex(8), **describe_place()}, time.monotonic() + JOIN_SECONDS
        rank, n_ranks = self.environment.rank, self.environment.n_ranks
        self.publish(f"join/{rank}", me)
        session = self._find_session(rank, me["nonce"], end) if rank else self._open_session(n_ranks, end)
        self.session = session["id"]
        self.publish(f"joined/{rank}", me["nonce"])
        return RankPlaces.from_descriptions(session["ranks"])

    def _open_session(self, n_ranks: int, end: float) -> dict[str, Any]:
        """Publish sessions until all ranks have joined one of them."""
        session: dict[str, Any] = {"id": secrets.token_hex(8), "ranks": []}
        while True:
            ranks = [self.read_if_published(f"join/{rank}") for rank in range(n_ranks)]
            if None not in ranks and ranks != session["ranks"]:
                session["ranks"] = ranks
                self.publish("session", session)
            absent = [rank for rank in range(1, n_ranks) if not self._has_joined(session, rank)]
            if not absent:
                return session
            if time.monotonic() > end:
                names = f"rank{'s' * (len(absent) > 1)} {', '.join(map(str, absent))}"
                raise DeploymentError(f"{names} did not start within {JOIN_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)

    def _has_joined(self, session: Mapping[str, Any], rank: int) -> bool:
        nonce = self.read_if_published(f"joined/{rank}", session["id"])
        return nonce is not None and bool(session["ranks"]) and nonce == session["ranks"][rank]["nonce"]

    def _find_session(self, rank: int, nonce: str, end: float) -> dict[str, Any]:
        """Wait for a session that has this process's number."""
        while True:
            session: dict[str, Any] | None = self.read_if_published("session")
            if session is not None and rank < len(session["ranks"]) and session["ranks"][rank]["nonce"] == nonce:
                return session
            if time.monotonic() > end:
                raise DeploymentError(f"rank 0 did not start within {JOIN_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)

    def claim_folder(self, folder: Path) -> None:
        """Record that this launch, which may start the ranks several times, has begun a run in a folder."""
        with _store_errors():
            self._store.set(f"fedsgd/folder/{folder.absolute()}", "claimed")

    def has_claimed(self, folder: Path) -> bool:
        """Return whether this launch has begun a run in a folder."""
        with _store_errors():
            return bool(self._store.check([f"fedsgd/folder/{folder.absolute()}"]))


@contextmanager
def _store_errors() -> Iterator[None]:
    """Raise a DeploymentError if the process of the store has ended."""
    try:
        yield
    except (RuntimeError, DistStoreError) as error:
        text = str(error).splitlines()[0]
        raise DeploymentError(f"rank 0 has ended, or its launcher (the store of the ranks does not answer: {text})") from None
