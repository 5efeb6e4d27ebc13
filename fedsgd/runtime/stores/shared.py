"""Client states in a file that all processes of a run share, in memory or on disk.

    end of the file u64, first free slot of each size u64 × 64
    for each client: offset of the client's slot plus the binary logarithm of the slot's size, 0 for no slot   u64
    slots of 2^n bytes each: used bytes u64, length of the description u32, description (JSON), arrays

Slots begin at multiples of 64, so that an entry has room for offset and size. Pages that were never written take no memory, so
neither the rest of a slot nor clients that never take part cost much memory. Loading and saving take O(1) for any N.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.compression import ClientId, EntryPatch
from fedsgd.federation.client_state import ClientState, ModelCache, UncommittedState, to_host_state
from fedsgd.numerics.arrays import F32, U8
from fedsgd.runtime.workers.shared_memory import ALIGNMENT, SharedFile, align_up

N_SIZE_CLASSES = 64
"""Number of slot sizes."""
PAGE_BYTES = 4096
"""Bytes of a page, the unit in which systems allocate memory and disk space."""
_NUMBER = struct.Struct("<Q")
_COUNT = struct.Struct("<q")
HEADER = struct.Struct("<QI")
"""Number of used bytes, and length of the description."""
_NORMS = struct.Struct("<dd")
_INDEX_BYTES = _NUMBER.size * (1 + N_SIZE_CLASSES)

NamedArray = tuple[str, str, NDArray[Any] | None]
"""(group of the state, name of the array, the array or None for a patch that removes the entry)."""


class SlotStore:
    """A `ClientStore` for several processes, of which only one uses the state of a client at a time.

    The file has no name, so the system removes it when the last process that has the file open ends.
    """

    def __init__(self, n_clients: int, folder: Path | None = None) -> None:
        """Create the file in a folder on disk, or in memory if `folder` is None. `n_clients` is N, the registered clients."""
        self.n_clients = n_clients
        self.file = SharedFile() if folder is None else SharedFile.create_on_disk(folder)
        end = align_up(_INDEX_BYTES + _NUMBER.size * n_clients)
        os.ftruncate(self.file.descriptor, end)
        self._write_number(0, end)

    @classmethod
    def attach(cls, n_clients: int, file: SharedFile) -> SlotStore:
        """Return the store whose file another process has created for `n_clients` clients."""
        store = cls.__new__(cls)
        store.n_clients, store.file = n_clients, file
        return store

    def load(self, client: ClientId) -> ClientState:
        """Return the state of one client, empty if none is stored."""
        offset, size = self._find_slot(client)
        if not size:
            return ClientState()
        return deserialize_state(self.file.read_array(offset, self._read_number(offset)))

    def save(self, client: ClientId, state: ClientState) -> None:
        """Store the state of one client. If memory or disk is full, raise an OSError.

        After the error, the old state is unchanged if the new state needs a larger slot.
        """
        parts = serialize_state(state)
        needed_class = (_sum_lengths(parts) - 1).bit_length()
        old_offset, old_class = self._find_slot(client)
        offset = self._allocate_slot(needed_class) if needed_class > old_class else old_offset
        end = offset
        for part in parts:
            end = align_up(self.file.write(end, part))
        if needed_class > old_class:  # only after writing, so that the old state survives if the memory or disk is full
            self._write_number(self._locate_entry(client), offset | needed_class)
            self._free_slot(old_offset, old_class)

    def remove(self, client: ClientId) -> None:
        """Remove the state of one client."""
        offset, size_class = self._find_slot(client)
        self._write_number(self._locate_entry(client), 0)
        self._free_slot(offset, size_class)

    def has(self, client: ClientId) -> bool:
        """Return whether a state of this client is stored."""
        return self._find_slot(client)[1] > 0

    def close(self) -> None:
        """Close the file. The system removes the file unless another process has the file open."""
        self.file.close()

    def _locate_entry(self, client: ClientId) -> int:
        if not 0 <= client < self.n_clients:
            raise IndexError(f"client: got {client}, expected 0 to {self.n_clients - 1}")
        return _INDEX_BYTES + _NUMBER.size * client

    def _find_slot(self, client: ClientId) -> tuple[int, int]:
        """Return the offset of a client's slot and the binary logarithm of the slot's size; zeros if the client has no slot."""
        entry = self._read_number(self._locate_entry(client))
        return entry & -ALIGNMENT, entry & (ALIGNMENT - 1)

    def _free_slot(self, offset: int, size_class: int) -> None:
        """Add the slot of 2^size_class bytes at `offset` to the free slots of its size. A size class of 0 means no slot."""
        if size_class:
            with lock_file(self.file):
                self._write_number(offset, self._read_number(_NUMBER.size * (1 + size_class)))
                self._write_number(_NUMBER.size * (1 + size_class), offset)

    def _allocate_slot(self, size_class: int) -> int:
        """Return the offset of a free slot of 2^size_class bytes."""
        with lock_file(self.file):
            free_list = _NUMBER.size * (1 + size_class)
            slot = self._read_number(free_list)
            if slot:
                self._write_number(free_list, self._read_number(slot))
                return slot
            end = self._read_number(0)
            os.ftruncate(self.file.descriptor, end + (1 << size_class))
            self._write_number(0, end + (1 << size_class))
            return end

    def _read_number(self, offset: int) -> int:
        number: int = _NUMBER.unpack(self.file.read(offset, _NUMBER.size))[0]
        return number

    def _write_number(self, offset: int, number: int) -> None:
        self.file.write(offset, _NUMBER.pack(number))


class SlotModelCache(ModelCache):
    """A `ModelCache` for several processes, with one slot for each of the run's `n_rounds` rounds."""

    def __init__(self, n_rounds: int) -> None:
        self._models = SlotStore(n_rounds + 1)
        self._reference_counts = SharedFile()
        os.ftruncate(self._reference_counts.descriptor, _COUNT.size * (n_rounds + 1))
        self._earliest_round = 1  # earliest round that may still be cached, as far as this process knows

    @classmethod
    def attach(cls, n_rounds: int, files: Sequence[SharedFile]) -> SlotModelCache:
        """Return the cache whose `files` another process has created for `n_rounds` rounds."""
        cache = cls.__new__(cls)
        cache._models, cache._reference_counts = SlotStore.attach(n_rounds + 1, files[0]), files[1]
        cache._earliest_round = 1
        return cache

    @property
    def files(self) -> tuple[SharedFile, SharedFile]:
        """Files of the cache, for `attach` in another process."""
        return self._models.file, self._reference_counts

    def has(self, round: int) -> bool:
        return self._models.has(round)

    def get(self, round: int) -> F32:
        return self._models.load(round).committed_state["model"]

    def put(self, round: int, model: F32, oldest_useful_round: int = 0) -> F32:
        with lock_file(self._reference_counts):
            if not self.has(round):
                for old_round in range(self._earliest_round, oldest_useful_round):
                    self._models.remove(old_round)
                self._earliest_round = max(self._earliest_round, oldest_useful_round)
                self._models.save(round, ClientState({"model": model}))
                return model
        return self.get(round)

    def move_reference(self, old_round: int, new_round: int) -> None:
        if old_round == new_round:
            return
        with lock_file(self._reference_counts):
            for round, change in ((new_round, 1), (old_round, -1)):
                (count,) = _COUNT.unpack(self._reference_counts.read(_COUNT.size * round, _COUNT.size))
                self._reference_counts.write(_COUNT.size * round, _COUNT.pack(count + change))
            if old_round and count + change <= 0:
                self._models.remove(old_round)

    def close(self) -> None:
        """Close the files."""
        self._models.close()
        self._reference_counts.close()


@contextmanager
def lock_file(file: SharedFile) -> Iterator[None]:
    """Return a context in which this process has the file's lock. The system releases the lock if the process dies."""
    import fcntl  # not available on every system

    fcntl.lockf(file.descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.lockf(file.descriptor, fcntl.LOCK_UN)


def stored_bytes(state: ClientState) -> int:
    """Return the bytes of memory or disk that a state takes: a power of two, or whole pages if these are fewer bytes."""
    n_used_bytes = _sum_lengths(serialize_state(state))
    return min(1 << (n_used_bytes - 1).bit_length(), -(-n_used_bytes // PAGE_BYTES) * PAGE_BYTES)


def _sum_lengths(parts: list[bytes | memoryview]) -> int:
    return sum(align_up(len(part)) for part in parts)


def serialize_state(state: ClientState) -> list[bytes | memoryview]:
    """Return the state as byte strings, each of which begins at a multiple of `ALIGNMENT` in a file.

    The first string has the number of used bytes and a description; each other string has one array. An array that occurs twice
    is stored once. Tensors of a GPU are stored as arrays.
    """
    state = to_host_state(state)
    descriptions: list[list[Any]] = []
    arrays: list[bytes | memoryview] = []
    offsets: dict[int, int] = {}
    offset = 0
    for group, name, array in _iterate_arrays(state):
        if array is None:
            descriptions.append([group, name, None, None, None])
            continue
        if array.dtype.hasobject or array.dtype.names:
            raise TypeError(f"the client state entry {name} is {array.dtype}, expected an array of numbers")
        if id(array) not in offsets:
            offsets[id(array)] = offset
            arrays.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            offset += align_up(array.nbytes)
        descriptions.append([group, name, array.dtype.str, array.shape, offsets[id(array)]])
    round = None if state.uncommitted_state is None else state.uncommitted_state.round
    text = json.dumps([state.model_round, round, descriptions, *_describe_reply(state.uncommitted_state)]).encode()
    n_used_bytes = align_up(HEADER.size + len(text)) + offset
    return [HEADER.pack(n_used_bytes, len(text)) + text, *arrays]


def deserialize_state(data: U8) -> ClientState:
    """Return the state that `serialize_state` wrote. Its arrays are views of `data`."""
    _, length = HEADER.unpack_from(data.data)
    model_round, round, descriptions, *reply_values = json.loads(data[HEADER.size : HEADER.size + length].tobytes())
    first_offset = align_up(HEADER.size + length)
    groups: dict[str, dict[str, Any]] = {"memory": {}, "if_received": {}, "undo": {}, "indices": {}, "reply": {}}
    for group, name, dtype, shape, offset in descriptions:
        array = None
        if dtype is not None:
            start, numpy_type = first_offset + offset, np.dtype(dtype)
            n_bytes = numpy_type.itemsize * int(np.prod(shape, dtype=np.int64))
            array = data[start : start + n_bytes].view(numpy_type).reshape(shape)
        groups[group][name] = array
    if round is None:
        return ClientState(groups["memory"], None, model_round)
    indices = groups["indices"]
    rollback = {name: None if v is None else EntryPatch(indices.get(name), v) for name, v in groups["undo"].items()}
    reply_frame = groups["reply"]["frame"].tobytes() if groups["reply"] else None
    statistics = _read_reply_statistics(*reply_values)
    return ClientState(
        groups["memory"], UncommittedState(round, groups["if_received"], rollback, reply_frame, *statistics), model_round
    )


def _describe_reply(uncommitted_state: UncommittedState | None) -> list[int | str]:
    """Return the values of the last reply: rounds missed, and both norms of the residual, if any, in a text of fixed length."""
    if uncommitted_state is None:
        return []
    norms = uncommitted_state.residual_norm, uncommitted_state.residual_norm_if_lost
    text = [] if math.isnan(norms[0]) else [_NORMS.pack(*norms).hex()]
    return [uncommitted_state.rounds_missed, *text]


def _read_reply_statistics(rounds_missed: int = -1, norms: str | None = None) -> tuple[float, float, int]:
    """Return both norms and the rounds missed; the defaults are for states without values of a reply."""
    if norms is None:
        return math.nan, math.nan, rounds_missed
    return *_NORMS.unpack(bytes.fromhex(norms)), rounds_missed


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
