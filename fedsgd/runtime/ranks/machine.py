"""Ranks of one machine: the leader opens the store of client states, and the other ranks work for it as workers do."""

from __future__ import annotations

import os
import secrets
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import AuthenticationError, reduction
from multiprocessing.connection import Client, Connection, Listener

from fedsgd.runtime.ranks.rendezvous import RankPlaces, Rendezvous
from fedsgd.runtime.stores.shared import SlotModelCache, SlotStore
from fedsgd.runtime.workers import protocol
from fedsgd.runtime.workers.channel import PipeChannel, SharedOutbox
from fedsgd.runtime.workers.pool import WorkerHandle
from fedsgd.runtime.workers.shared_memory import SharedFile

_CREDENTIALS = struct.Struct("3i")
"""Process, user and group of the other end of a local socket."""


@dataclass(frozen=True, eq=False)
class MachineStorage:
    """States and models of the clients of one machine, which all its ranks use.

    Attributes:
        store: states of the clients.
        models: models that clients keep.
    """

    store: SlotStore
    models: SlotModelCache

    @property
    def files(self) -> list[SharedFile]:
        """Files of the storage."""
        return [self.store.file, *self.models.files]


@contextmanager
def accept_members(
    rendezvous: Rendezvous, places: RankPlaces, storage: MachineStorage, outbox: SharedOutbox
) -> Iterator[list[WorkerHandle]]:
    """Return a context with the other ranks of the leader's machine; they end with the context, or with this process.

    Args:
        rendezvous: values of the ranks.
        places: machines of all ranks.
        storage: states and models, which the other ranks open, too.
        outbox: file for large messages to the other ranks.
    """
    number = places.machine_of_rank(rendezvous.environment.rank)
    n_members = len(places.machines[number]) - 1
    key, address = secrets.token_bytes(32), f"\0fedsgd-{secrets.token_hex(16)}" if sys.platform == "linux" else None
    handles: list[WorkerHandle] = []
    with ExitStack() as resources:
        if n_members:
            with Listener(address, "AF_UNIX", backlog=n_members, authkey=key) as listener:
                rendezvous.publish(f"machine/{number}", {"address": address or listener.address, "key": key.hex()})
                while len(handles) < n_members:
                    with suppress(AuthenticationError, EOFError, ConnectionError):  # of a stranger, or of a rank that has died
                        connection = resources.enter_context(listener.accept())
                        if _is_of_this_user(connection):
                            handles.append(_welcome(connection, storage, outbox, places))
        yield handles
        for handle in handles:
            with suppress(OSError):
                handle.channel.send(*protocol.END)


def _is_of_this_user(connection: Connection) -> bool:
    """Return whether the other end is a process of the same user, whose messages may be unpickled; True if unknown."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    with socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        _, uid, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return bool(uid == os.geteuid())


def _welcome(connection: Connection, storage: MachineStorage, outbox: SharedOutbox, places: RankPlaces) -> WorkerHandle:
    rank = int.from_bytes(connection.recv_bytes(), "little")
    inbox = SharedFile(reduction.recv_handle(connection))
    for file in (outbox.file, *storage.files):
        reduction.send_handle(connection, file.descriptor, 0)
    return WorkerHandle(PipeChannel(connection, outbox, inbox), partial("{} has ended".format, places.name_rank(rank)))


@contextmanager
def join_machine(
    rendezvous: Rendezvous, places: RankPlaces, n_clients: int, n_rounds: int
) -> Iterator[tuple[PipeChannel, SharedOutbox, MachineStorage]]:
    """Return a context with the channel to the leader, the file for large messages to it, and the machine's storage.

    Args:
        rendezvous: values of the ranks.
        places: machines of all ranks.
        n_clients: number of registered clients.
        n_rounds: number of the run's rounds.
    """
    rank = rendezvous.environment.rank
    meeting = rendezvous.read(f"machine/{places.machine_of_rank(rank)}")
    with Client(meeting["address"], "AF_UNIX", authkey=bytes.fromhex(meeting["key"])) as connection:
        outbox = SharedOutbox()
        connection.send_bytes(rank.to_bytes(8, "little"))
        reduction.send_handle(connection, outbox.file.descriptor, 0)
        inbox, *files = (_receive_file(connection) for _ in range(4))
        storage = MachineStorage(SlotStore.attach(n_clients, files[0]), SlotModelCache.attach(n_rounds, files[1:]))
        with ExitStack() as resources:
            for file in (outbox.file, inbox, *files):
                resources.callback(file.close)
            yield PipeChannel(connection, outbox, inbox), outbox, storage


def _receive_file(connection: Connection) -> SharedFile:
    descriptor = reduction.recv_handle(connection)
    os.set_inheritable(descriptor, False)
    return SharedFile(descriptor)
