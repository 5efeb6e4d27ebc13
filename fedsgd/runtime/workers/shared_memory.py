"""What the processes of a run share: files without a name, which are gone when the last of them is, however it ends."""

from __future__ import annotations

import mmap
import os
import pickle
import tempfile
import weakref
from dataclasses import dataclass
from multiprocessing import reduction
from pathlib import Path
from typing import Any

import numpy as np

from fedsgd.errors import OutputError
from fedsgd.numerics.arrays import U8

ALIGNMENT = 64
"""Arrays begin at multiples of this many bytes."""


def align_up(n_bytes: int) -> int:
    """n rounded up to a multiple of `ALIGNMENT_BYTES`."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


class SharedFile:
    """Bytes that every process can read and write. It can be handed to a process that is being started, and only then."""

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = _open_anonymous_file() if descriptor is None else descriptor
        self.close = weakref.finalize(self, os.close, self.descriptor)

    @staticmethod
    def create_on_disk(folder: Path) -> SharedFile:
        """One that lies in this folder and not in memory: it has no name there, so nothing is left of it even if every process
        is killed. OutputError if there can be none."""
        try:
            return SharedFile(_open_unlinked_file(folder))
        except OSError as error:
            raise OutputError(f"{folder}: no file can be made there ({error.strerror})") from None

    def __reduce__(self) -> tuple[Any, tuple[Any]]:
        return _from_descriptor, (reduction.DupFd(self.descriptor),)

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """All of it, from byte `offset` on; returns where it ends."""
        left = memoryview(data)
        while len(left):
            n = os.pwrite(self.descriptor, left, offset)
            left, offset = left[n:], offset + n
        return offset

    def read(self, offset: int, n_bytes: int) -> bytes:
        """The bytes from `offset` on; EOFError if there are fewer."""
        data = os.pread(self.descriptor, n_bytes, offset)
        return data if len(data) == n_bytes else self.read_array(offset, n_bytes).tobytes()

    def read_array(self, offset: int, n_bytes: int) -> U8:
        """The same, to be written to."""
        out = np.empty(n_bytes, dtype=np.uint8)
        left = out.data
        while len(left):
            n = os.preadv(self.descriptor, [left], offset)
            if not n:
                raise EOFError(f"{len(left)} bytes are missing at {offset}")
            left, offset = left[n:], offset + n
        return out


def _from_descriptor(descriptor: Any) -> SharedFile:
    return SharedFile(descriptor.detach())


def _open_anonymous_file() -> int:
    if hasattr(os, "memfd_create"):  # in memory, whatever the size of /dev/shm
        return os.memfd_create("fedsgd", os.MFD_CLOEXEC)
    return _open_unlinked_file(None)


def _open_unlinked_file(folder: Path | None) -> int:
    with tempfile.TemporaryFile(prefix="fedsgd-", dir=folder) as file:
        return os.dup(file.fileno())


@dataclass(frozen=True, eq=False)
class SharedPickle:
    """A value, pickled once for all processes. Its arrays lie in memory that all who load it share; what one of them writes
    there, only it sees. lengths: of the pickle and of each array, in bytes."""

    file: SharedFile
    lengths: tuple[int, ...]

    @staticmethod
    def from_value(value: object) -> SharedPickle:
        """The value's blob; whatever error pickling it gives."""
        arrays: list[pickle.PickleBuffer] = []
        parts = [memoryview(pickle.dumps(value, protocol=5, buffer_callback=arrays.append))]
        parts += [array.raw() for array in arrays]
        file, at = SharedFile(), 0
        for part in parts:
            at = align_up(file.write(at, part))
        os.ftruncate(file.descriptor, at)
        return SharedPickle(file, tuple(len(part) for part in parts))

    def load(self) -> Any:
        """A copy of the value, but for its arrays."""
        size = sum(map(align_up, self.lengths))
        whole = memoryview(mmap.mmap(self.file.descriptor, size, access=mmap.ACCESS_COPY))
        parts, at = [], 0
        for length in self.lengths:
            parts.append(whole[at : at + length])
            at += align_up(length)
        return pickle.loads(parts[0], buffers=parts[1:])
