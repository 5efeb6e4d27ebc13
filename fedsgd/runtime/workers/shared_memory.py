"""Files without names that the processes of a run share. The system removes a file when the last process that uses it ends."""

from __future__ import annotations

import mmap
import os
import pickle
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import reduction
from pathlib import Path
from typing import Any

import numpy as np

from fedsgd.errors import OutputError
from fedsgd.numerics.arrays import U8

ALIGNMENT = 64
"""Alignment of arrays in bytes."""


def align_up(n_bytes: int) -> int:
    """Return a number of bytes, rounded up to a multiple of `ALIGNMENT`."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


class SharedFile:
    """File that several processes can read and write. A process can be passed the file only when the process is started.

    Deleting the object calls `close`, which closes the file descriptor.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        """Adopt the open file of a descriptor, or create a file in memory. Raise an OutputError if memory cannot be shared."""
        with _shared_memory_errors():
            self.descriptor = _open_anonymous_file() if descriptor is None else descriptor
        self.close = weakref.finalize(self, os.close, self.descriptor)

    @staticmethod
    def create_on_disk(folder: Path) -> SharedFile:
        """Create a file without a name in a folder on disk. Raise an OutputError if the file cannot be created."""
        try:
            return SharedFile(_open_unlinked_file(folder))
        except OSError as error:
            raise OutputError(f"{folder}: cannot create a file there ({error.strerror})") from None

    def __reduce__(self) -> tuple[Any, tuple[Any]]:
        return _from_descriptor, (reduction.DupFd(self.descriptor),)

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write all bytes at `offset`, and return the offset of their end."""
        remaining_bytes = memoryview(data)
        while len(remaining_bytes):
            n = os.pwrite(self.descriptor, remaining_bytes, offset)
            remaining_bytes, offset = remaining_bytes[n:], offset + n
        return offset

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Return `n_bytes` bytes from `offset` on. Raise an EOFError if the file is shorter."""
        data = os.pread(self.descriptor, n_bytes, offset)
        return data if len(data) == n_bytes else self.read_array(offset, n_bytes).tobytes()

    def read_array(self, offset: int, n_bytes: int) -> U8:
        """Return `n_bytes` bytes from `offset` on, as a writable uint8 array. Raise an EOFError if the file is shorter."""
        out = np.empty(n_bytes, dtype=np.uint8)
        remaining_bytes = out.data
        while len(remaining_bytes):
            n = os.preadv(self.descriptor, [remaining_bytes], offset)
            if not n:
                raise EOFError(f"{len(remaining_bytes)} bytes are missing at {offset}")
            remaining_bytes, offset = remaining_bytes[n:], offset + n
        return out


@contextmanager
def _shared_memory_errors() -> Iterator[None]:
    """Raise an OutputError in place of an OSError of the body, which creates or fills a file in memory."""
    try:
        yield
    except OSError as error:
        problem = f"memory that processes share cannot be created ({error.strerror})"
        raise OutputError(f"{problem}; use one worker, or free memory and file descriptors") from None


def _from_descriptor(descriptor: Any) -> SharedFile:
    return SharedFile(descriptor.detach())


def _open_anonymous_file() -> int:
    if hasattr(os, "memfd_create"):  # in memory, without the size limit of /dev/shm
        return os.memfd_create("fedsgd", os.MFD_CLOEXEC)
    return _open_unlinked_file(None)


def _open_unlinked_file(folder: Path | None) -> int:
    with tempfile.TemporaryFile(prefix="fedsgd-", dir=folder) as file:
        return os.dup(file.fileno())


@dataclass(frozen=True, eq=False)
class SharedPickle:
    """Pickled value in a shared file. Processes that load the value share the memory of its arrays.

    A process that writes to an array gets its own copy of the pages. `lengths` are the bytes of the pickle and of each array.
    """

    file: SharedFile
    lengths: tuple[int, ...]

    @staticmethod
    def from_value(value: object) -> SharedPickle:
        """Pickle a value into a new shared file."""
        arrays: list[pickle.PickleBuffer] = []
        parts = [memoryview(pickle.dumps(value, protocol=5, buffer_callback=arrays.append))]
        parts += [array.raw() for array in arrays]
        file, offset = SharedFile(), 0
        with _shared_memory_errors():
            for part in parts:
                offset = align_up(file.write(offset, part))
            os.ftruncate(file.descriptor, offset)
        return SharedPickle(file, tuple(len(part) for part in parts))

    def load(self) -> Any:
        """Return a copy of the value whose arrays are in the shared memory."""
        size = sum(map(align_up, self.lengths))
        mapped_file = memoryview(mmap.mmap(self.file.descriptor, size, access=mmap.ACCESS_COPY))
        parts, offset = [], 0
        for length in self.lengths:
            parts.append(mapped_file[offset : offset + length])
            offset += align_up(length)
        return pickle.loads(parts[0], buffers=parts[1:])
