"""Client states in a folder on disk, for a host whose process is another one each time: a file for each client that was seen.

A file is written next to the file that it replaces, so a process that is killed leaves the state before or the state after.
Each file ends in a checksum. A file that cannot be read counts as lost, and its client is caught up as one that was away.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from struct import Struct

import numpy as np

from fedsgd.arrays import F32
from fedsgd.clients import ClientState
from fedsgd.compress import ClientId
from fedsgd.runtime.shared import aligned
from fedsgd.runtime.store import HEAD, packed, unpacked

CLIENT, MODEL, GENERATION = "client-", "model-", "generation"
_CHECKSUM = Struct("<I")

Room = Callable[[Path, int], AbstractContextManager[None]]
"""A context for writing a file of n bytes in a folder; entering it raises an error if n bytes are too many."""


def unlimited(folder: Path, n_bytes: int) -> AbstractContextManager[None]:
    """Return a context for writing any number of bytes."""
    return nullcontext()


class FolderStore:
    """A ClientStore whose states are in a folder.

    Attributes:
        folder: the folder.
        is_new: True if this store made the folder.
        generation: number of calls of `commit` on this folder, over all processes.
        lost: the clients whose files could not be read.
    """

    def __init__(self, folder: Path, room: Room = unlimited) -> None:
        """Open the folder, and make it if need be.

        Args:
            folder: the folder, which belongs to one process at a time.
            room: the context in which each state and each model is written.

        Raises:
            OSError: the folder cannot be used.
        """
        self.folder = folder
        self.lost: list[ClientId] = []
        self.is_new = not folder.exists()
        self._room = room
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for partial in folder.glob(".*"):
            if not _is_running(partial.suffix[1:]):
                partial.unlink(missing_ok=True)
        self.generation = _number(folder / GENERATION)

    def load(self, client: ClientId) -> ClientState:
        """The state of one client."""
        path = self.folder / f"{CLIENT}{client}"
        state = _read(path)
        if state is None and path.exists():
            self.lost.append(client)
        return ClientState() if state is None else state

    def save(self, client: ClientId, state: ClientState) -> None:
        """Store the state of one client; an error leaves the state before.

        Raises:
            OSError: there is no more room.
            RuntimeError: another process has committed since this store was opened, so this process was taken for dead.
        """
        now = _number(self.folder / GENERATION)
        if now != self.generation:
            raise RuntimeError(f"{self.folder}: another process went on from here, from generation {self.generation} to {now}")
        self.write(f"{CLIENT}{client}", state)

    def write(self, name: str, state: ClientState) -> None:
        """Write a state to a file of the folder, all of it or nothing. OSError if there is no more room."""
        parts = _parts(state)
        with self._room(self.folder, sum(map(len, parts))):
            _replace(self.folder / name, parts)

    def commit(self) -> int:
        """Count one message as done with; returns the generation."""
        self.generation += 1
        _replace(self.folder / GENERATION, [str(self.generation).encode()])
        return self.generation

    def clear(self) -> None:
        """Keep nothing."""
        for path in self.folder.iterdir():
            if path.name.startswith((CLIENT, MODEL, GENERATION, ".")):
                path.unlink()
        self.generation = 0

    def held(self) -> Iterator[int]:
        """The round of the model that each client keeps, 0 for none; only the beginning of each file is read."""
        for path in self.folder.glob(f"{CLIENT}*"):
            with suppress(OSError, ValueError, TypeError, LookupError), path.open("rb") as file:
                head = file.read(HEAD.size)
                if len(head) == HEAD.size:
                    yield int(json.loads(file.read(HEAD.unpack(head)[1]))[0])


class FolderModels:
    """The `Models` that the clients of a `FolderStore` keep, in the same folder."""

    def __init__(self, store: FolderStore) -> None:
        self._store, self._folder = store, store.folder
        self._holders = Counter(store.held())
        self._read: dict[int, F32] = {}

    def has(self, round: int) -> bool:
        return round > 0 and self._path(round).exists() and self._load(round) is not None

    def get(self, round: int) -> F32:
        model = self._load(round)
        if model is None:
            raise KeyError(round)
        return model

    def keep(self, round: int, model: F32, since: int = 0) -> F32:
        if not self.has(round):
            for path in self._folder.glob(f"{MODEL}*"):  # those of rounds in which every client failed have no holder
                known = int(path.name.removeprefix(MODEL))
                if known < since or self._holders[known] <= 0:
                    path.unlink()
            self._store.write(f"{MODEL}{round}", ClientState({"model": model}))
        return self.get(round)

    def moved(self, before: int, after: int) -> None:
        if before == after:
            return
        self._holders[after] += 1
        self._holders[before] -= 1
        if before and self._holders[before] <= 0:
            self._path(before).unlink(missing_ok=True)

    def _path(self, round: int) -> Path:
        return self._folder / f"{MODEL}{round}"

    def _load(self, round: int) -> F32 | None:
        if round not in self._read:
            state = _read(self._path(round))
            if state is None:
                return None
            self._read[round] = state.memory["model"]
        return self._read[round]


def _read(path: Path) -> ClientState | None:
    """None if there is no such file, or its checksum is another."""
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError:
        return None
    end = len(data) - _CHECKSUM.size
    if end < HEAD.size or zlib.crc32(data[:end].data) != _CHECKSUM.unpack_from(data.data, end)[0]:
        return None
    return unpacked(data[:end])


def file_bytes(state: ClientState) -> int:
    """Return the size of the file that a state is stored in."""
    return sum(map(len, _parts(state)))


def _parts(state: ClientState) -> list[bytes | memoryview]:
    parts: list[bytes | memoryview] = []
    for part in packed(state):
        parts += [part, bytes(aligned(len(part)) - len(part))]
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return [*parts, _CHECKSUM.pack(checksum)]


def _replace(path: Path, parts: list[bytes | memoryview]) -> None:
    """All of it or nothing, as far as processes can be killed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.writelines(parts)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _is_running(process: str) -> bool:
    """Return False if there is no process of this id; True where that cannot be known."""
    if os.name != "posix" or not process.isdecimal():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _number(path: Path) -> int:
    try:
        return int(path.read_bytes())
    except (OSError, ValueError):
        return 0
