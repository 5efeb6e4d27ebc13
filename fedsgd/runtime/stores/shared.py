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

from fedsgd.compression import ClientId, EntryPatch
from fedsgd.federation.client_state import ClientState, UncommittedState
from fedsgd.numerics.arrays import F32, U8
from fedsgd.runtime.workers.shared_memory import ALIGNMENT, SharedFile, align_up

N_SIZE_CLASSES = 64
MIN_SIZE_CLASS = 6
"""Of a slot, as a logarithm: `ALIGNMENT_BYTES`. Where nothing is remembered but the round, that is enough."""
PAGE_BYTES = 4096
"""What systems keep in memory and on disk, or not, in one piece."""
_NUMBER = struct.Struct("<Q")
_COUNT = struct.Struct("<q")
HEADER = struct.Struct("<QI")
_INDEX_BYTES = _NUMBER.size * (1 + N_SIZE_CLASSES)

NamedArray = tuple[str, str, NDArray[Any] | None]
"""(what of a state, the array's name, the array, or None where it says that there is none)."""


class SlotStore:
    """A ClientStore for one process or several: a client is in one worker's hands at a time, slots are everybody's.

    clients: N, all there are; folder: where the file lies on disk, None: in memory. Either way it has no name and is gone with
    the last process that has it open, however that ends; `close` lets go of it. OutputError if there can be no such file.
    """

    def __init__(self, n_clients: int, folder: Path | None = None) -> None:
        self.n_clients = n_clients
        self.file = SharedFile() if folder is None else SharedFile.create_on_disk(folder)
        end = align_up(_INDEX_BYTES + _NUMBER.size * n_clients)
        os.ftruncate(self.file.descriptor, end)
        self._write_number(0, end)

    def load(self, client: ClientId) -> ClientState:
        """The state of one client."""
        at, size = self._find_slot(client)
        if not size:
            return ClientState()
        return deserialize_state(self.file.read_array(at, self._read_number(at)))

    def save(self, client: ClientId, state: ClientState) -> None:
        """Keep it. OSError if there is no more room."""
        parts = serialize_state(state)
        needed = (_sum_lengths(parts) - 1).bit_length()
        at, size = self._find_slot(client)
        place = self._allocate_slot(needed) if needed > size else at
        end = place
        for part in parts:
            end = align_up(self.file.write(end, part))
        if needed > size:  # only now, so that where there is no more room the state is still what it was
            self._write_number(self._locate_entry(client), place | needed)
            self._free_slot(at, size)

    def remove(self, client: ClientId) -> None:
        """Keep nothing of this client."""
        at, size = self._find_slot(client)
        self._write_number(self._locate_entry(client), 0)
        self._free_slot(at, size)

    def has(self, client: ClientId) -> bool:
        """Whether anything was saved of this client."""
        return self._find_slot(client)[1] > 0

    def close(self) -> None:
        """Let go of the file, and of all that is in it if nobody else has it."""
        self.file.close()

    def _locate_entry(self, client: ClientId) -> int:
        if not 0 <= client < self.n_clients:
            raise IndexError(f"client {client} of {self.n_clients}")
        return _INDEX_BYTES + _NUMBER.size * client

    def _find_slot(self, client: ClientId) -> tuple[int, int]:
        """(where the slot is, the logarithm of its size), zeros if there is none."""
        entry = self._read_number(self._locate_entry(client))
        return entry & -ALIGNMENT, entry & (ALIGNMENT - 1)

    def _free_slot(self, offset: int, size_class: int) -> None:
        """The slot of 2^size bytes at `offset`, if there is one, is anybody's."""
        if size_class:
            with lock_file(self.file):
                self._write_number(offset, self._read_number(_NUMBER.size * (1 + size_class)))
                self._write_number(_NUMBER.size * (1 + size_class), offset)

    def _allocate_slot(self, size_class: int) -> int:
        """Where there is now a slot of 2^needed bytes."""
        with lock_file(self.file):
            place = _NUMBER.size * (1 + size_class)
            found = self._read_number(place)
            if found:
                self._write_number(place, self._read_number(found))
                return found
            end = self._read_number(0)
            os.ftruncate(self.file.descriptor, end + (1 << size_class))
            self._write_number(0, end + (1 << size_class))
            return end

    def _read_number(self, offset: int) -> int:
        number: int = _NUMBER.unpack(self.file.read(offset, _NUMBER.size))[0]
        return number

    def _write_number(self, offset: int, number: int) -> None:
        self.file.write(offset, _NUMBER.pack(number))


class SlotModelCache:
    """The `ModelCache` of several processes. rounds: of the whole run."""

    def __init__(self, n_rounds: int) -> None:
        self._models = SlotStore(n_rounds + 1)
        self._reference_counts = SharedFile()
        os.ftruncate(self._reference_counts.descriptor, _COUNT.size * (n_rounds + 1))
        self._earliest_round = 1  # that may still be here, as far as this process knows

    def has(self, round: int) -> bool:
        return self._models.has(round)

    def get(self, round: int) -> F32:
        return self._models.load(round).committed_state["model"]

    def put(self, round: int, model: F32, oldest_useful_round: int = 0) -> F32:
        with lock_file(self._reference_counts):
            if not self.has(round):
                for useless in range(self._earliest_round, oldest_useful_round):
                    self._models.remove(useless)
                self._earliest_round = max(self._earliest_round, oldest_useful_round)
                self._models.save(round, ClientState({"model": model}))
                return model
        return self.get(round)

    def move_reference(self, old_round: int, new_round: int) -> None:
        if old_round == new_round:
            return
        with lock_file(self._reference_counts):
            for round, change in ((new_round, 1), (old_round, -1)):
                (holders,) = _COUNT.unpack(self._reference_counts.read(_COUNT.size * round, _COUNT.size))
                self._reference_counts.write(_COUNT.size * round, _COUNT.pack(holders + change))
            if old_round and holders + change <= 0:
                self._models.remove(old_round)

    def close(self) -> None:
        """Let go of the files."""
        self._models.close()
        self._reference_counts.close()


@contextmanager
def lock_file(file: SharedFile) -> Iterator[None]:
    """Nobody else is in here with this file. The system lets go of the lock if its holder dies."""
    import fcntl  # not on every system, and there it is not needed

    fcntl.lockf(file.descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.lockf(file.descriptor, fcntl.LOCK_UN)


def stored_bytes(state: ClientState) -> int:
    """The bytes that this state takes in a store, in memory or on disk: a power of two, or if that is less whole pages."""
    used = _sum_lengths(serialize_state(state))
    return min(1 << (used - 1).bit_length(), -(-used // PAGE_BYTES) * PAGE_BYTES)


def _sum_lengths(parts: list[bytes | memoryview]) -> int:
    return sum(align_up(len(part)) for part in parts)


def serialize_state(state: ClientState) -> list[bytes | memoryview]:
    """The state as stretches of bytes, each to begin at a multiple of `ALIGNMENT_BYTES`: how much there is in all and a
    description,
    then each array once. TypeError for what is not an array of numbers."""
    described: list[list[Any]] = []
    stretches: list[bytes | memoryview] = []
    places: dict[int, int] = {}
    at = 0
    for what, name, array in _iterate_arrays(state):
        if array is None:
            described.append([what, name, None, None, None])
            continue
        if array.dtype.hasobject or array.dtype.names:
            raise TypeError(f"what a client remembers ({name}) is {array.dtype}, expected an array of numbers")
        if id(array) not in places:
            places[id(array)] = at
            stretches.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            at += align_up(array.nbytes)
        described.append([what, name, array.dtype.str, array.shape, places[id(array)]])
    text = json.dumps([state.model_round, state.uncommitted_state and state.uncommitted_state.round, described]).encode()
    used = align_up(HEADER.size + len(text)) + at
    return [HEADER.pack(used, len(text)) + text, *stretches]


def deserialize_state(data: U8) -> ClientState:
    """Inverse of `serialize_state`, of the stretches one after the other. The arrays are views of `data`."""
    _, length = HEADER.unpack_from(data.data)
    held, round, described = json.loads(data[HEADER.size : HEADER.size + length].tobytes())
    first = align_up(HEADER.size + length)
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
    undo = {name: None if v is None else EntryPatch(indices.get(name), v) for name, v in parts["undo"].items()}
    reply = parts["reply"]["frame"].tobytes() if parts["reply"] else None
    return ClientState(parts["memory"], UncommittedState(round, parts["if_received"], undo, reply), held)


def _iterate_arrays(state: ClientState) -> Iterator[NamedArray]:
    yield from (("memory", name, array) for name, array in state.committed_state.items())
    if state.uncommitted_state is None:
        return
    if state.uncommitted_state.reply_frame is not None:
        yield "reply", "frame", np.frombuffer(state.uncommitted_state.reply_frame, dtype=np.uint8)
    yield from (("if_received", name, array) for name, array in state.uncommitted_state.state_if_accepted.items())
    for name, patch in state.uncommitted_state.rollback.items():
        yield "undo", name, None if patch is None else patch.values
        if patch is not None and patch.indices is not None:
            yield "indices", name, patch.indices
