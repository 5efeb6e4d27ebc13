"""Named arrays in a file in the format of safetensors, written as a stream, with a checksum.

The library's own writer needs a second copy of all arrays in memory, which may be many gigabytes of client states. So this
module writes the format itself: the length of the header (u64), the header (JSON, padded with spaces), the arrays. The library
reads the files.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsgd.errors import OutputError
from fedsgd.storage.durable import replace_file, write_fully

_TYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
}
"""numpy type → name of the type in the format."""
_LENGTH = Struct("<Q")
_ALIGNMENT = 64
_BUFFER_BYTES = 1 << 20
_READ_BYTES = 1 << 24

Chunk = bytes | bytearray | memoryview


class FileEntry(NamedTuple):
    """A file of a checkpoint, as the manifest has it.

    Attributes:
        name: name in the folder.
        n_bytes: length of the file.
        crc32: checksum over the arrays, and then over everything before them.
    """

    name: str
    n_bytes: int
    crc32: int


@dataclass(frozen=True, eq=False)
class TensorStream:
    """Array of bytes, [n] uint8, whose length is not known before its last chunk.

    Attributes:
        name: name of the array.
        chunks: parts of the array. They are read once, before arrays that follow in the file are made.
    """

    name: str
    chunks: Iterable[Chunk]


def write_tensors(
    path: Path, streams: Sequence[TensorStream], make_arrays: Callable[[], dict[str, NDArray[Any]]], n_arrays: int
) -> FileEntry:
    """Write streams and then arrays to a file, durably.

    Args:
        path: file that is written or replaced.
        streams: arrays of bytes, written first.
        make_arrays: function that returns the arrays by name, called after the streams were read.
        n_arrays: maximum number of these arrays, for which the header has room.

    Raises:
        OutputError: the file cannot be written, or an array has a type that the format lacks.
    """

    def write(file: BinaryIO) -> FileEntry:
        start = -(-(_LENGTH.size + 512 * (len(streams) + n_arrays + 1)) // _ALIGNMENT) * _ALIGNMENT
        file.seek(start)
        body = _Body(file)
        header: dict[str, Any] = {}
        for stream in streams:
            header[stream.name] = body.write("U8", None, stream.chunks)
        for name, array in make_arrays().items():
            kind = _TYPES.get(array.dtype.name)
            if kind is None:
                raise OutputError(f"{path}: {name} has type {array.dtype}, expected one of {', '.join(_TYPES)}")
            contiguous_array = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
            header[name] = body.write(kind, array.shape, [contiguous_array.reshape(-1).view(np.uint8).data])
        body.flush()
        text = json.dumps(header, separators=(",", ":")).encode()
        if len(text) > start - _LENGTH.size:
            raise OutputError(f"{path}: the header takes {len(text)} bytes, expected at most {start - _LENGTH.size}")
        head = _LENGTH.pack(start - _LENGTH.size) + text.ljust(start - _LENGTH.size)
        file.seek(0)
        write_fully(file, head)
        return FileEntry(path.name, start + body.n_bytes, zlib.crc32(head, body.crc32))

    return replace_file(path, write)


class _Body:
    """Arrays of a file after its header: the bytes so far, and their checksum."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._buffer = bytearray()
        self.n_bytes = 0
        self.crc32 = 0

    def write(self, kind: str, shape: tuple[int, ...] | None, chunks: Iterable[Chunk]) -> dict[str, Any]:
        """Write an array and return its entry of the header. Without a shape, the array is flat, of types of one byte."""
        start = self.n_bytes
        for chunk in chunks:
            self.n_bytes += len(chunk)
            if len(chunk) >= _BUFFER_BYTES:
                self.flush()
                self._write(chunk)
            else:
                self._buffer += chunk
                if len(self._buffer) >= _BUFFER_BYTES:
                    self.flush()
        length = self.n_bytes - start
        return {"dtype": kind, "shape": [length] if shape is None else [*shape], "data_offsets": [start, self.n_bytes]}

    def flush(self) -> None:
        """Write the bytes of small chunks."""
        self._write(self._buffer)
        self._buffer = bytearray()

    def _write(self, data: Chunk) -> None:
        self.crc32 = zlib.crc32(data, self.crc32)
        write_fully(self._file, data)


def find_damage(folder: Path, entry: FileEntry) -> str | None:
    """Return the reason why a file is not the file that was written, None if it is.

    Args:
        folder: folder of the file.
        entry: name, length and checksum of the file that was written.
    """
    path = folder / entry.name
    try:
        with path.open("rb") as file:
            n_bytes = path.stat().st_size
            if n_bytes != entry.n_bytes:
                return f"{entry.name} has {n_bytes:,} bytes, expected {entry.n_bytes:,}"
            length = file.read(_LENGTH.size)
            start = min(_LENGTH.size + _LENGTH.unpack(length)[0], n_bytes)
            head, crc32 = length + file.read(start - _LENGTH.size), 0
            while data := file.read(_READ_BYTES):
                crc32 = zlib.crc32(data, crc32)
    except OSError as error:
        return f"{entry.name} cannot be read ({error.strerror})"
    return None if zlib.crc32(head, crc32) == entry.crc32 else f"the checksum of {entry.name} is wrong"


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Open a file without damage, and yield a reader of safetensors: `keys`, `get_tensor(name)`, `get_slice(name)[i:j]`."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as reader:
        yield reader
