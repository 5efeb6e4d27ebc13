"""Channel between the server and the leader of another machine, over gloo."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from fedsgd.runtime.ranks.rendezvous import RankPlaces, Rendezvous
from fedsgd.runtime.workers import protocol

_NO_TIMEOUT = timedelta(days=365)


def join_leaders(rendezvous: Rendezvous, places: RankPlaces) -> None:
    """Create the gloo group of the leaders, in the order of their machines. Each leader must call this function.

    Args:
        rendezvous: values of the ranks.
        places: machines of all ranks.
    """
    number = places.machine_of_rank(rendezvous.environment.rank)
    store = rendezvous.prefix_store("gloo")
    dist.init_process_group("gloo", store=store, rank=number, world_size=len(places.machines), timeout=_NO_TIMEOUT)


def leave_leaders() -> None:
    """Close the group of the leaders."""
    dist.destroy_process_group()


class GlooChannel:
    """One end of a connection between two leaders. Calls wait as long as the other end lives.

    Args:
        machine: number of the other leader's machine.
        name: description of the other leader, for errors.
    """

    def __init__(self, machine: int, name: str) -> None:
        self._machine = machine
        self._name = name

    def send(self, head: bytes, frames: Sequence[bytes] = ()) -> None:
        """Send a message; raise a ConnectionError if the other end has ended."""
        data = protocol.pack_packets([(head, frames)])
        try:
            dist.send(torch.tensor([len(data)]), self._machine)
            dist.send(torch.from_numpy(np.frombuffer(bytearray(data), dtype=np.uint8)), self._machine)
        except RuntimeError as error:
            raise ConnectionError(f"{self._name} has ended ({str(error).splitlines()[0]})") from None

    def receive(self) -> tuple[bytes, Sequence[bytes]]:
        """Return head and frames of the next message; raise a ConnectionError if the other end has ended."""
        length = torch.zeros(1, dtype=torch.int64)
        try:
            dist.recv(length, self._machine)
            data = torch.empty(int(length), dtype=torch.uint8)
            dist.recv(data, self._machine)
        except RuntimeError as error:
            raise ConnectionError(f"{self._name} has ended ({str(error).splitlines()[0]})") from None
        (packet,) = protocol.unpack_packets(data.numpy().tobytes())
        return packet
