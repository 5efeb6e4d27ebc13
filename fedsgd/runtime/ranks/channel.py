"""Channel between the server and the leader of another machine, over gloo."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from fedsgd.runtime.ranks.rendezvous import RankPlaces, Rendezvous

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
        parts = [head, *frames]
        with self._connection_errors():
            dist.send(torch.tensor([len(parts)]), self._machine)
            dist.send(torch.tensor([len(part) for part in parts]), self._machine)
            for part in parts:
                if part:
                    dist.send(_view_bytes(part), self._machine)

    def receive(self) -> tuple[bytes, list[bytes]]:
        """Return head and frames of the next message; raise a ConnectionError if the other end has ended."""
        n_parts = torch.zeros(1, dtype=torch.int64)
        with self._connection_errors():
            dist.recv(n_parts, self._machine)
            lengths = torch.zeros(int(n_parts), dtype=torch.int64)
            dist.recv(lengths, self._machine)
            head, *frames = (self._receive_part(length) for length in lengths.tolist())
        return head, frames

    def _receive_part(self, length: int) -> bytes:
        if not length:
            return b""
        part = torch.empty(length, dtype=torch.uint8)
        dist.recv(part, self._machine)
        return part.numpy().tobytes()

    @contextmanager
    def _connection_errors(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise ConnectionError(f"{self._name} has ended") from error


def _view_bytes(data: bytes) -> Tensor:
    """Return a tensor in the memory of `data`, of which torch warns that it must not be written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.frombuffer(data, dtype=torch.uint8)
