"""Client states in memory that all processes share, since a client may be another worker's the next time.

    end of the file u64, first free slot of each size u64 × 64
    for each client: where its slot is, the logarithm of the slot's size, how much of it is used   u64 × 3
    slots, 2^n bytes each: length of the description u32, description (JSON), arrays

A page that nothing was written to takes no memory, so sizes can be powers of two. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.arrays import U8
from fedsgd.clients import ClientState, Pending
from fedsgd.compress import ClientId, Patch
from fedsgd.runtime.shared import SharedFile, aligned

SIZES = 64
SMALLEST = 12
"""A slot is at least a page."""
_NUMBER = struct.Struct("<Q")
_SLOT = struct.Struct("<QQQ")
_LENGTH = struct.Struct("<I")
_INDEX = _NUMBER.size * (1 + SIZES)

Named = tuple[str, str, NDArray[Any] | None]
"""(what of a state, the array's name, the array, or None where it says that there is none)."""


class SharedStore:
    """A ClientStore for several processes. A client is in one worker's hands at a time; slots are everybody's."""

    def __init__(self, clients: int) -> None:
        self.clients = clients
        self.file = SharedFile()
        first = 1 << SMALLEST
        end = -(-(_INDEX + _SLOT.size * clients) // first) * first
        os.ftruncate(self.file.descriptor, end)
        self._write_number(0, end)

    def load(self, client: ClientId) -> ClientState:
        """The state of one client."""
        at, _, used = self._slot(client)
        return unpacked(self.file.read_array(at, used)) if used else ClientState()

    def save(self, client: ClientId, state: ClientState) -> None:
        """Keep it."""
        parts = packed(state)
        used = sum(aligned(len(part)) for part in parts)
        needed = max(SMALLEST, (used - 1).bit_length())
        at, size, _ = self._slot(client)
        if needed > size:
            at, size = self._moved(at, size, needed), needed
        self.file.write(self._of(client), _SLOT.pack(at, size, used))
        for part in parts:
            at = aligned(self.file.write(at, part))

    def _of(self, client: ClientId) -> int:
        if not 0 <= client < self.clients:
            raise IndexError(f"client {client} of {self.clients}")
        return _INDEX + _SLOT.size * client

    def _slot(self, client: ClientId) -> tuple[int, int, int]:
        at, size, used = _SLOT.unpack(self.file.read(self._of(client), _SLOT.size))
        return at, size, used

    def _moved(self, at: int, size: int, needed: int) -> int:
        """Where a slot of 2^needed bytes is, in place of the one at `at`, if there is one."""
        with self._locked():
            if size:
                self._write_number(at, self._number(_NUMBER.size * (1 + size)))
                self._write_number(_NUMBER.size * (1 + size), at)
            place = _NUMBER.size * (1 + needed)
            found = self._number(place)
            if found:
                self._write_number(place, self._number(found))
                return found
            end = self._number(0)
            os.ftruncate(self.file.descriptor, end + (1 << needed))
            self._write_number(0, end + (1 << needed))
            return end

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The system lets go of the lock if its holder dies."""
        import fcntl  # not on every system, and there it is not needed

        fcntl.lockf(self.file.descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self.file.descriptor, fcntl.LOCK_UN)

    def _number(self, at: int) -> int:
        number: int = _NUMBER.unpack(self.file.read(at, _NUMBER.size))[0]
        return number

    def _write_number(self, at: int, number: int) -> None:
        self.file.write(at, _NUMBER.pack(number))


def packed(state: ClientState) -> list[bytes | memoryview]:
    """The state as stretches of bytes, each to begin at a multiple of `ALIGNMENT`: a description, then each array once."""
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
    text = json.dumps([state.pending and state.pending.round, described]).encode()
    return [_LENGTH.pack(len(text)) + text, *stretches]


def unpacked(data: U8) -> ClientState:
    """Inverse of `packed`, of the stretches one after the other. The arrays are views of `data`."""
    (length,) = _LENGTH.unpack_from(data.data)
    round, described = json.loads(data[_LENGTH.size : _LENGTH.size + length].tobytes())
    first = aligned(_LENGTH.size + length)
    parts: dict[str, dict[str, Any]] = {"scheme": {}, "if_received": {}, "undo": {}, "indices": {}}
    for what, name, dtype, shape, at in described:
        array = None
        if dtype is not None:
            begin, kind = first + at, np.dtype(dtype)
            n_bytes = kind.itemsize * int(np.prod(shape, dtype=np.int64))
            array = data[begin : begin + n_bytes].view(kind).reshape(shape)
        parts[what][name] = array
    if round is None:
        return ClientState(parts["scheme"])
    indices = parts["indices"]
    undo = {name: None if v is None else Patch(indices.get(name), v) for name, v in parts["undo"].items()}
    return ClientState(parts["scheme"], Pending(round, parts["if_received"], undo))


def _arrays(state: ClientState) -> Iterator[Named]:
    yield from (("scheme", name, array) for name, array in state.scheme.items())
    if state.pending is None:
        return
    yield from (("if_received", name, array) for name, array in state.pending.if_received.items())
    for name, patch in state.pending.undo.items():
        yield "undo", name, None if patch is None else patch.values
        if patch is not None and patch.indices is not None:
            yield "indices", name, patch.indices
