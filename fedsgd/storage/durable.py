"""Writing of files completely or not at all, and waiting until bytes and names are on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from fedsgd.errors import make_write_error

T = TypeVar("T")


def replace_file(path: Path, write: Callable[[BinaryIO], T]) -> T:
    """Write a file completely or not at all, and return the value of `write`: an error or an interrupt leaves no partial file.

    The bytes are on disk before the file has its name; `sync_path` on the folder makes the name durable, too.

    Args:
        path: file that is written or replaced.
        write: function that writes the content to an open file without a buffer.

    Raises:
        OutputError: the file cannot be written.
    """
    partial_file = path.with_name(f".{path.name}.partial")
    try:
        with partial_file.open("wb", buffering=0) as file:
            result = write(file)
            os.fsync(file.fileno())
        partial_file.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial_file.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise make_write_error(path, error) from None
        raise
    return result


def write_fully(file: BinaryIO, data: bytes | bytearray | memoryview) -> None:
    """Write all bytes to a file without a buffer, of which one call may write only a part."""
    remaining_bytes = memoryview(data).cast("B")
    while len(remaining_bytes):
        remaining_bytes = remaining_bytes[file.write(remaining_bytes) :]


def sync_path(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on disk. OutputError if this fails."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if os.name == "posix":  # other systems cannot open a folder
            raise make_write_error(path, error) from None
