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

from fedsgd.arrays import U8
from fedsgd.errors import OutputError

ALIGNMENT = 64
"""Arrays begin at multiples of this many bytes."""


def aligned(n: int) -> int:
    """n rounded up to a multiple of `ALIGNMENT`."""
    return -(-n // ALIGNMENT) * ALIGNMENT


class SharedFile:
    """Bytes that every process can read and write. It can be handed to a process that is being started, and only then."""

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = _nameless() if descriptor is None else descriptor
        self.close = weakref.finalize(self, os.close, self.descriptor)

    @staticmethod
    def on_disk(folder: Path) -> SharedFile:
        """One that lies in this folder and not in memory: it has no name there, so nothing is left of it even if every process
        is killed. OutputError if there can be none."""
        try:
            return SharedFile(_unlinked(folder))
        except OSError as error:
            raise OutputError(f"{folder}: no file can be made there ({error.strerror})") from None

    def __reduce__(self) -> tuple[Any, tuple[Any]]:
        return _arrived, (reduction.DupFd(self.descriptor),)

    def write(self, at: int, data: bytes | memoryview) -> int:
        """All of it, from byte `at` on; returns where it ends."""
        left = memoryview(data)
        while len(left):
            n = os.pwrite(self.descriptor, left, at)
            left, at = left[n:], at + n
        return at

    def read(self, at: int, n_bytes: int) -> bytes:
        """The bytes from `at` on; EOFError if there are fewer."""
        data = os.pread(self.descriptor, n_bytes, at)
        return data if len(data) == n_bytes else self.read_array(at, n_bytes).tobytes()

    def read_array(self, at: int, n_bytes: int) -> U8:
        """The same, to be written to."""
        out = np.empty(n_bytes, dtype=np.uint8)
        left = out.data
        while len(left):
            n = os.preadv(self.descriptor, [left], at)
            if not n:
                raise EOFError(f"{len(left)} bytes are missing at {at}")
            left, at = left[n:], at + n
        return out


def _arrived(descriptor: Any) -> SharedFile:
    return SharedFile(descriptor.detach())


def _nameless() -> int:
    if hasattr(os, "memfd_create"):  # in memory, whatever the size of /dev/shm
        return os.memfd_create("fedsgd", os.MFD_CLOEXEC)
    return _unlinked(None)


def _unlinked(folder: Path | None) -> int:
    with tempfile.TemporaryFile(prefix="fedsgd-", dir=folder) as file:
        return os.dup(file.fileno())


@dataclass(frozen=True, eq=False)
class Blob:
    """A value, pickled once for all processes. Its arrays lie in memory that all who load it share; what one of them writes
    there, only it sees. lengths: of the pickle and of each array, in bytes."""

    file: SharedFile
    lengths: tuple[int, ...]

    @staticmethod
    def of(value: object) -> Blob:
        """The value's blob; whatever error pickling it gives."""
        arrays: list[pickle.PickleBuffer] = []
        parts = [memoryview(pickle.dumps(value, protocol=5, buffer_callback=arrays.append))]
        parts += [array.raw() for array in arrays]
        file, at = SharedFile(), 0
        for part in parts:
            at = aligned(file.write(at, part))
        os.ftruncate(file.descriptor, at)
        return Blob(file, tuple(len(part) for part in parts))

    def load(self) -> Any:
        """A copy of the value, but for its arrays."""
        size = sum(map(aligned, self.lengths))
        whole = memoryview(mmap.mmap(self.file.descriptor, size, access=mmap.ACCESS_COPY))
        parts, at = [], 0
        for length in self.lengths:
            parts.append(whole[at : at + length])
            at += aligned(length)
        return pickle.loads(parts[0], buffers=parts[1:])
