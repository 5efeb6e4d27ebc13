"""Client states in a file that all processes share, in memory or on disk: a client may be another worker's the next time.

    end of the file u64, first free slot of each size u64 × 64
    for each client: where its slot is plus the logarithm of the slot's size, 0 if it has none   u64
    slots, 2^n bytes each: how much of it is used u64, length of the description u32, description (JSON), arrays

Slots begin at multiples of 64, so that an entry has room for both. A page that nothing was written to takes no room, so sizes
can be powers of two and clients that never take part cost nothing. Saving and loading take as long with ten million clients
registered as with ten. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.arrays import F32, U8
from fedsgd.clients import ClientState, Pending
from fedsgd.compress import ClientId, Patch
from fedsgd.runtime.shared import ALIGNMENT, SharedFile, aligned

SIZES = 64
SMALLEST = 6
"""Of a slot, as a logarithm: `ALIGNMENT`. Where nothing is remembered but the round, that is enough."""
PAGE = 4096
"""What systems keep in memory and on disk, or not, in one piece."""
_NUMBER = struct.Struct("<Q")
_COUNT = struct.Struct("<q")
HEAD = struct.Struct("<QI")
_INDEX = _NUMBER.size * (1 + SIZES)

Named = tuple[str, str, NDArray[Any] | None]
"""(what of a state, the array's name, the array, or None where it says that there is none)."""


class SlotStore:
    """A ClientStore for one process or several: a client is in one worker's hands at a time, slots are everybody's.

    clients: N, all there are; folder: where the file lies on disk, None: in memory. Either way it has no name and is gone with
    the last process that has it open, however that ends; `close` lets go of it. OutputError if there can be no such file.
    """

    def __init__(self, clients: int, folder: Path | None = None) -> None:
        self.clients = clients
        self.file = SharedFile() if folder is None else SharedFile.on_disk(folder)
        end = aligned(_INDEX + _NUMBER.size * clients)
        os.ftruncate(self.file.descriptor, end)
        self._write_number(0, end)

    def load(self, client: ClientId) -> ClientState:
        """The state of one client."""
        at, size = self._slot(client)
        if not size:
            return ClientState()
        return unpacked(self.file.read_array(at, self._number(at)))

    def save(self, client: ClientId, state: ClientState) -> None:
        """Keep it. OSError if there is no more room."""
        parts = packed(state)
        needed = (_length(parts) - 1).bit_length()
        at, size = self._slot(client)
        place = self._taken(needed) if needed > size else at
        end = place
        for part in parts:
            end = aligned(self.file.write(end, part))
        if needed > size:  # only now, so that where there is no more room the state is still what it was
            self._write_number(self._of(client), place | needed)
            self._given_back(at, size)

    def forget(self, client: ClientId) -> None:
        """Keep nothing of this client."""
        at, size = self._slot(client)
        self._write_number(self._of(client), 0)
        self._given_back(at, size)

    def has(self, client: ClientId) -> bool:
        """Whether anything was saved of this client."""
        return self._slot(client)[1] > 0

    def close(self) -> None:
        """Let go of the file, and of all that is in it if nobody else has it."""
        self.file.close()

    def _of(self, client: ClientId) -> int:
        if not 0 <= client < self.clients:
            raise IndexError(f"client {client} of {self.clients}")
        return _INDEX + _NUMBER.size * client

    def _slot(self, client: ClientId) -> tuple[int, int]:
        """(where the slot is, the logarithm of its size), zeros if there is none."""
        entry = self._number(self._of(client))
        return entry & -ALIGNMENT, entry & (ALIGNMENT - 1)

    def _given_back(self, at: int, size: int) -> None:
        """The slot of 2^size bytes at `at`, if there is one, is anybody's."""
        if size:
            with locked(self.file):
                self._write_number(at, self._number(_NUMBER.size * (1 + size)))
                self._write_number(_NUMBER.size * (1 + size), at)

    def _taken(self, needed: int) -> int:
        """Where there is now a slot of 2^needed bytes."""
        with locked(self.file):
            place = _NUMBER.size * (1 + needed)
            found = self._number(place)
            if found:
                self._write_number(place, self._number(found))
                return found
            end = self._number(0)
            os.ftruncate(self.file.descriptor, end + (1 << needed))
            self._write_number(0, end + (1 << needed))
            return end

    def _number(self, at: int) -> int:
        number: int = _NUMBER.unpack(self.file.read(at, _NUMBER.size))[0]
        return number

    def _write_number(self, at: int, number: int) -> None:
        self.file.write(at, _NUMBER.pack(number))


class SlotModels:
    """The `Models` of several processes. rounds: of the whole run."""

    def __init__(self, rounds: int) -> None:
        self._models = SlotStore(rounds + 1)
        self._holders = SharedFile()
        os.ftruncate(self._holders.descriptor, _COUNT.size * (rounds + 1))
        self._earliest = 1  # that may still be here, as far as this process knows

    def has(self, round: int) -> bool:
        return self._models.has(round)

    def get(self, round: int) -> F32:
        return self._models.load(round).memory["model"]

    def keep(self, round: int, model: F32, since: int = 0) -> F32:
        with locked(self._holders):
            if not self.has(round):
                for useless in range(self._earliest, since):
                    self._models.forget(useless)
                self._earliest = max(self._earliest, since)
                self._models.save(round, ClientState({"model": model}))
                return model
        return self.get(round)

    def moved(self, before: int, after: int) -> None:
        if before == after:
            return
        with locked(self._holders):
            for round, change in ((after, 1), (before, -1)):
                (holders,) = _COUNT.unpack(self._holders.read(_COUNT.size * round, _COUNT.size))
                self._holders.write(_COUNT.size * round, _COUNT.pack(holders + change))
            if before and holders + change <= 0:
                self._models.forget(before)

    def close(self) -> None:
        """Let go of the files."""
        self._models.close()
        self._holders.close()


@contextmanager
def locked(file: SharedFile) -> Iterator[None]:
    """Nobody else is in here with this file. The system lets go of the lock if its holder dies."""
    import fcntl  # not on every system, and there it is not needed

    fcntl.lockf(file.descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.lockf(file.descriptor, fcntl.LOCK_UN)


def footprint(state: ClientState) -> int:
    """The bytes that this state takes in a store, in memory or on disk: a power of two, or if that is less whole pages."""
    used = _length(packed(state))
    return min(1 << (used - 1).bit_length(), -(-used // PAGE) * PAGE)


def _length(parts: list[bytes | memoryview]) -> int:
    return sum(aligned(len(part)) for part in parts)


def packed(state: ClientState) -> list[bytes | memoryview]:
    """The state as stretches of bytes, each to begin at a multiple of `ALIGNMENT`: how much there is in all and a description,
    then each array once. TypeError for what is not an array of numbers."""
    described: list[list[Any]] = []
    stretches: list[bytes | memoryview] = []
    places: dict[int, int] = {}
    at = 0
    for what, name, array in _arrays(state):
        if array is None:
            described.append([what, name, None, None, None])
            continue
        if array.dtype.hasobject or array.dtype.names:
            raise TypeError(f"what a client remembers ({name}) is {array.dtype}, expected an array of numbers")
        if id(array) not in places:
            places[id(array)] = at
            stretches.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            at += aligned(array.nbytes)
        described.append([what, name, array.dtype.str, array.shape, places[id(array)]])
    text = json.dumps([state.held, state.pending and state.pending.round, described]).encode()
    used = aligned(HEAD.size + len(text)) + at
    return [HEAD.pack(used, len(text)) + text, *stretches]


def unpacked(data: U8) -> ClientState:
    """Inverse of `packed`, of the stretches one after the other. The arrays are views of `data`."""
    _, length = HEAD.unpack_from(data.data)
    held, round, described = json.loads(data[HEAD.size : HEAD.size + length].tobytes())
    first = aligned(HEAD.size + length)
    parts: dict[str, dict[str, Any]] = {"memory": {}, "if_received": {}, "undo": {}, "indices": {}, "reply": {}}
    for what, name, dtype, shape, at in described:
        array = None
        if dtype is not None:
            begin, kind = first + at, np.dtype(dtype)
            n_bytes = kind.itemsize * int(np.prod(shape, dtype=np.int64))
            array = data[begin : begin + n_bytes].view(kind).reshape(shape)
        parts[what][name] = array
    if round is None:
        return ClientState(parts["memory"], None, held)
    indices = parts["indices"]
    undo = {name: None if v is None else Patch(indices.get(name), v) for name, v in parts["undo"].items()}
    reply = parts["reply"]["frame"].tobytes() if parts["reply"] else None
    return ClientState(parts["memory"], Pending(round, parts["if_received"], undo, reply), held)


def _arrays(state: ClientState) -> Iterator[Named]:
    yield from (("memory", name, array) for name, array in state.memory.items())
    if state.pending is None:
        return
    if state.pending.reply is not None:
        yield "reply", "frame", np.frombuffer(state.pending.reply, dtype=np.uint8)
    yield from (("if_received", name, array) for name, array in state.pending.if_received.items())
    for name, patch in state.pending.undo.items():
        yield "undo", name, None if patch is None else patch.values
        if patch is not None and patch.indices is not None:
            yield "indices", name, patch.indices
