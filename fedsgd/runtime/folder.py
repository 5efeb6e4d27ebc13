"""Client states in a folder on disk, for a host whose process is another one each time: a file for each client that was seen.

A file is written beside the one that it takes the place of, so a process that is killed leaves the state before or the one
after. Each ends in a checksum: what cannot be read is as good as lost, and its client is caught up as one that was away.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
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


class FolderStore:
    """A ClientStore whose states are in this folder, which is made if need be. OSError if it cannot be used.

    generation: how often `commit` was called here, over all processes. lost: the clients whose files could not be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lost: list[ClientId] = []
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.generation = _number(folder / GENERATION)

    def load(self, client: ClientId) -> ClientState:
        """The state of one client."""
        path = self.folder / f"{CLIENT}{client}"
        state = _read(path)
        if state is None and path.exists():
            self.lost.append(client)
        return ClientState() if state is None else state

    def save(self, client: ClientId, state: ClientState) -> None:
        """Keep it. OSError if there is no more room, RuntimeError if another process has committed since this store was opened:
        then this one was taken for dead, and what it has is old. Either way the state is still what it was."""
        now = _number(self.folder / GENERATION)
        if now != self.generation:
            raise RuntimeError(f"{self.folder}: another process went on from here, from generation {self.generation} to {now}")
        _write(self.folder / f"{CLIENT}{client}", state)

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
        self._folder = store.folder
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
            _write(self._path(round), ClientState({"model": model}))
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


def _write(path: Path, state: ClientState) -> None:
    parts: list[bytes | memoryview] = []
    for part in packed(state):
        parts += [part, bytes(aligned(len(part)) - len(part))]
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    _replace(path, [*parts, _CHECKSUM.pack(checksum)])


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


def _number(path: Path) -> int:
    try:
        return int(path.read_bytes())
    except (OSError, ValueError):
        return 0
