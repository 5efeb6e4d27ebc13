"""Meeting of the ranks: who is on which machine, and values that ranks publish for the others."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import DistStoreError, PrefixStore, TCPStore  # type: ignore[attr-defined]

from fedsgd.errors import DeploymentError
from fedsgd.system.rank_environment import RankEnvironment

CONNECT_SECONDS = 60.0
"""Seconds in which a rank must reach the launcher's store."""


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

    Args:
        environment: place of this process.
        is_first: False for a further connection of a process.

    Raises:
        DeploymentError: the store cannot be reached.
    """

    def __init__(self, environment: RankEnvironment, is_first: bool = True) -> None:
        self.environment = environment
        is_owner = is_first and environment.rank == 0 and not environment.launcher_has_store
        try:
            self._store = TCPStore(
                environment.address,
                environment.port,
                is_master=is_owner,
                timeout=timedelta(seconds=CONNECT_SECONDS),
                wait_for_workers=False,
            )
        except (RuntimeError, ValueError) as error:
            place = f"{environment.address}:{environment.port}"
            problem = f"cannot {'open' if is_owner else 'reach'} the store of the ranks at {place} (MASTER_ADDR, MASTER_PORT)"
            raise DeploymentError(f"{problem}: {str(error).splitlines()[0]}") from None

    def _key(self, name: str) -> str:
        return f"fedsgd/{self.environment.n_restarts}/{name}"

    def publish(self, name: str, value: Any) -> None:
        """Publish a value that JSON has."""
        self._store.set(self._key(name), json.dumps(value))

    def read(self, name: str, seconds: float | None = None) -> Any:
        """Wait for a published value, and return it; TimeoutError after `seconds`."""
        try:
            self._store.wait([self._key(name)], timedelta(seconds=seconds if seconds is not None else 10**8))
        except DistStoreError:
            raise TimeoutError(f"{name} is not published") from None
        return json.loads(self._store.get(self._key(name)))

    def count(self, name: str, change: int = 0) -> int:
        """Change a counter, which starts at 0, and return its value."""
        return int(self._store.add(self._key(name), change))

    def prefix_store(self, name: str) -> Any:
        """Return a store for a process group."""
        return PrefixStore(self._key(name), self._store)

    def gather_places(self) -> RankPlaces:
        """Return the machines of all ranks, after all ranks have called this method."""
        environment = self.environment
        self.publish(f"place/{environment.rank}", describe_place())
        return RankPlaces.from_descriptions([self.read(f"place/{rank}") for rank in range(environment.n_ranks)])
