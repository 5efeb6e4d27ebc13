"""Client states in a folder on disk, with one file for each client that took part.

The folder is for hosts that process each message in a new process. A new file is written completely before it replaces the old
file, so a killed process leaves the old state or the new state. The file of a state or a model ends in a checksum. If it cannot
be read, it counts as missing; `decode_task` handles a client without a state or a model.
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

from fedsgd.compression import ClientId
from fedsgd.federation.client_state import ClientState, ModelCache
from fedsgd.numerics.arrays import F32
from fedsgd.runtime.stores.shared import HEADER, deserialize_state, serialize_state
from fedsgd.runtime.workers.shared_memory import align_up
from fedsgd.storage.durable import sync_path

CLIENT_PREFIX, MODEL_PREFIX, GENERATION_FILE = "client-", "model-", "generation"
_CHECKSUM = Struct("<I")
"""CRC-32 at the end of a file, little-endian."""

SpaceReservation = Callable[[Path, int], AbstractContextManager[None]]
"""Function of (folder, n) to a context for writing n bytes; entering the context raises an error if n bytes are too many."""


def reserve_unlimited(folder: Path, n_bytes: int) -> AbstractContextManager[None]:
    """Return a context for writing any number of bytes."""
    return nullcontext()


class FolderStore:
    """A `ClientStore` whose states are files in a folder. Only one process uses the folder at a time.

    Attributes:
        is_new: True if this store created the folder.
        generation: number of calls of `commit` since the folder was created or cleared, over all processes.
        unreadable_clients: clients whose files could not be read.
    """

    def __init__(self, folder: Path, space_reservation: SpaceReservation = reserve_unlimited, is_durable: bool = False) -> None:
        """Open the folder, or create it.

        Args:
            folder: folder of the files.
            space_reservation: context in which each state and each model is written.
            is_durable: whether all states are on disk after `commit`, so that also a crash of the system loses none.
        """
        self.folder = folder
        self._is_durable = is_durable
        self.unreadable_clients: list[ClientId] = []
        self.is_new = not folder.exists()
        self._space_reservation = space_reservation
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for partial_file in folder.glob(".*"):
            if not _is_running(partial_file.suffix[1:]):
                partial_file.unlink(missing_ok=True)
        self.generation = _read_generation(folder / GENERATION_FILE)

    def load(self, client: ClientId) -> ClientState:
        """Return the state of one client; an empty state if the client has no readable file."""
        path = self.folder / f"{CLIENT_PREFIX}{client}"
        state = _read_state(path)
        if state is None and path.exists():
            self.unreadable_clients.append(client)
        return ClientState() if state is None else state

    def save(self, client: ClientId, state: ClientState) -> None:
        """Store the state of one client. After an error the old state is unchanged.

        Raises:
            OSError: the file cannot be written. The space reservation may raise other errors.
            RuntimeError: another process has committed since this store was opened.
        """
        generation = _read_generation(self.folder / GENERATION_FILE)
        if generation != self.generation:
            raise RuntimeError(
                f"{self.folder}: another process advanced this folder from generation {self.generation} to {generation}"
            )
        self.write(f"{CLIENT_PREFIX}{client}", state)

    def write(self, name: str, state: ClientState) -> None:
        """Write a state to a file of the folder completely, or not at all. Errors as in `save`, without RuntimeError."""
        parts = _serialize_with_checksum(state)
        with self._space_reservation(self.folder, sum(map(len, parts))):
            _write_atomically(self.folder / name, parts, self._is_durable)

    def commit(self) -> int:
        """Count one message as processed, and return the new generation."""
        self.generation += 1
        _write_atomically(self.folder / GENERATION_FILE, [str(self.generation).encode()], self._is_durable)
        if self._is_durable:
            sync_path(self.folder)
        return self.generation

    def clear(self) -> None:
        """Remove all files of the store and reset its generation."""
        for path in self.folder.iterdir():
            if path.name.startswith((CLIENT_PREFIX, MODEL_PREFIX, GENERATION_FILE, ".")):
                path.unlink()
        self.generation = 0

    def read_model_rounds(self) -> Iterator[int]:
        """Yield the round of the model that each client has stored, 0 for none, from the beginning of each client's file."""
        for path in self.folder.glob(f"{CLIENT_PREFIX}*"):
            with suppress(OSError, ValueError, TypeError, LookupError), path.open("rb") as file:
                header = file.read(HEADER.size)
                if len(header) == HEADER.size:
                    yield int(json.loads(file.read(HEADER.unpack(header)[1]))[0])


class FolderModelCache(ModelCache):
    """A `ModelCache` for the clients of a `FolderStore`, in the same folder."""

    def __init__(self, store: FolderStore) -> None:
        self._store, self._folder = store, store.folder
        self._reference_counts = Counter(store.read_model_rounds())
        self._models: dict[int, F32] = {}

    def has(self, round: int) -> bool:
        return round > 0 and self._get_model_path(round).exists() and self._load(round) is not None

    def get(self, round: int) -> F32:
        model = self._load(round)
        if model is None:
            raise KeyError(round)
        return model

    def put(self, round: int, model: F32, oldest_useful_round: int = 0) -> F32:
        if not self.has(round):
            for path in self._folder.glob(f"{MODEL_PREFIX}*"):  # no client has stored the model of a round without a reply
                cached_round = int(path.name.removeprefix(MODEL_PREFIX))
                if cached_round < oldest_useful_round or self._reference_counts[cached_round] <= 0:
                    path.unlink()
            self._store.write(f"{MODEL_PREFIX}{round}", ClientState({"model": model}))
        return self.get(round)

    def move_reference(self, old_round: int, new_round: int) -> None:
        if old_round == new_round:
            return
        self._reference_counts[new_round] += 1
        self._reference_counts[old_round] -= 1
        if old_round and self._reference_counts[old_round] <= 0:
            self._get_model_path(old_round).unlink(missing_ok=True)

    def _get_model_path(self, round: int) -> Path:
        return self._folder / f"{MODEL_PREFIX}{round}"

    def _load(self, round: int) -> F32 | None:
        if round not in self._models:
            state = _read_state(self._get_model_path(round))
            if state is None:
                return None
            self._models[round] = state.committed_state["model"]
        return self._models[round]


def _read_state(path: Path) -> ClientState | None:
    """Return the state in a file; None if the file cannot be read or its checksum is wrong."""
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError:
        return None
    end = len(data) - _CHECKSUM.size
    if end < HEADER.size or zlib.crc32(data[:end].data) != _CHECKSUM.unpack_from(data.data, end)[0]:
        return None
    return deserialize_state(data[:end])


def compute_file_size(state: ClientState) -> int:
    """Return the bytes of the file that a state is stored in."""
    return sum(map(len, _serialize_with_checksum(state)))


def _serialize_with_checksum(state: ClientState) -> list[bytes | memoryview]:
    parts: list[bytes | memoryview] = []
    for part in serialize_state(state):
        parts += [part, bytes(align_up(len(part)) - len(part))]
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return [*parts, _CHECKSUM.pack(checksum)]


def _write_atomically(path: Path, parts: list[bytes | memoryview], is_durable: bool) -> None:
    """Write a file completely or not at all, even if the process is killed, or if the system crashes and `is_durable`."""
    partial_file = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial_file.open("wb") as file:
            file.writelines(parts)
            if is_durable:
                file.flush()
                os.fsync(file.fileno())
        partial_file.replace(path)
    except BaseException:
        partial_file.unlink(missing_ok=True)
        raise


def _is_running(process_id: str) -> bool:
    """Return False if no process has this id; True if the system does not say."""
    if os.name != "posix" or not process_id.isdecimal():
        return True
    try:
        os.kill(int(process_id), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _read_generation(path: Path) -> int:
    try:
        return int(path.read_bytes())
    except (OSError, ValueError):
        return 0
