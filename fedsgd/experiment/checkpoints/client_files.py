"""Files of client states: each checkpoint writes only what changed since the checkpoint before.

A file has the states of the clients that took part since the last checkpoint. So the states of all clients are spread over
several files, of which the latest with a client counts. When at most a quarter of a file's bytes still count, the next
checkpoint writes these bytes again, and later checkpoints do without the file: a checkpoint writes at most 4/3 of the changed
bytes on average, and the files take at most four times the bytes of all states. Models that clients store have a file for each
round, while a client stores the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsgd.compression import ClientId
from fedsgd.experiment.checkpoints.tensor_file import Chunk, FileEntry, TensorStream, open_tensors, write_tensors
from fedsgd.federation.client_state import AcknowledgedRounds, ClientStore, ModelCache
from fedsgd.numerics.arrays import F32, I32, I64
from fedsgd.runtime.stores.shared import deserialize_state, serialize_state
from fedsgd.runtime.workers.shared_memory import align_up

_LIVE_SHARE = 0.25
"""Share of a file's bytes at or below which the next checkpoint writes these bytes again."""
_MAX_FILES = 200
"""Number of files from which the next checkpoint joins the smaller half of them."""
_ENTRY_BYTES = 32
"""Bytes of a client in a file besides its state."""


class ClientStorage(NamedTuple):
    """Storage of a process: the states of the clients, and the models that the clients keep."""

    states: ClientStore
    models: ModelCache


class _ClientFile(NamedTuple):
    entry: FileEntry
    clients: I64


class ClientFiles:
    """Files of the client states of one run.

    Args:
        folder: folder of the checkpoints.
        n_clients: N, number of registered clients.
        storage: states and models; None if they are elsewhere, as at the nodes of a deployment.
    """

    def __init__(self, folder: Path, n_clients: int, storage: ClientStorage | None) -> None:
        self._folder = folder
        self._storage = storage
        self._files: dict[int, _ClientFile] = {}
        self._model_files: dict[int, FileEntry] = {}
        self._last_number = 0
        # [N] each; the system gives pages of zeros, so clients that never take part cost no time
        self._file_of_client: I32 = np.zeros(n_clients, dtype=np.int32)
        self._bytes_of_client: I64 = np.zeros(n_clients, dtype=np.int64)
        self._model_round_of_client: I32 = np.zeros(n_clients, dtype=np.int32)
        self._live_bytes: dict[int, int] = {}
        self._model_references: dict[int, int] = {}

    @property
    def entries(self) -> list[FileEntry]:
        """Files with the states of all clients that took part, in the order in which they were written."""
        return [file.entry for file in self._files.values()]

    @property
    def model_entries(self) -> list[tuple[int, FileEntry]]:
        """(round, file) of each model that a client stores."""
        return list(self._model_files.items())

    def write(
        self,
        label: str,
        changed_clients: Iterable[ClientId],
        acknowledged_rounds: AcknowledgedRounds,
        residual_norms: Mapping[ClientId, float],
    ) -> None:
        """Write the states that changed, and the models that no file has, to new files.

        Args:
            label: part of the names of the new files.
            changed_clients: clients that were sent a message since the last call.
            acknowledged_rounds: last accepted round of each client.
            residual_norms: client → Euclidean norm of the client's residual.

        Raises:
            OutputError: a file cannot be written.
        """
        clients = np.array(sorted({*changed_clients, *self._list_clients_to_move()}), dtype=np.int64)
        if not len(clients):
            return
        ends, model_rounds = [0], list[int]()

        def make_arrays() -> dict[str, NDArray[Any]]:
            return {
                "clients": clients,
                "ends": np.array(ends, dtype=np.int64),
                "acknowledged": np.array([acknowledged_rounds.get(client) for client in clients.tolist()], dtype=np.int64),
                "residual_norms": np.array([residual_norms.get(client, np.nan) for client in clients.tolist()]),
            }

        stream = TensorStream("states", self._read_states(clients.tolist(), ends, model_rounds))
        entry = write_tensors(self._folder / f"clients-{label}.safetensors", [stream], make_arrays, 4)
        self._record_file(_ClientFile(entry, clients), _to_lengths(np.array(ends)))
        if self._storage is not None:
            self._record_model_rounds(clients, np.array(model_rounds, dtype=np.int32))
            self._write_models(self._storage.models)

    def read(
        self, entries: Sequence[FileEntry], model_entries: Sequence[tuple[int, FileEntry]]
    ) -> tuple[AcknowledgedRounds, dict[ClientId, float]]:
        """Read the files of an earlier process, and fill the storage with their states and models.

        Args:
            entries: files of states without damage, in the order in which they were written.
            model_entries: (round, file) of each model, without damage.

        Returns:
            Last accepted round of each client, and the norm of each client's residual.
        """
        for entry in entries:
            with open_tensors(self._folder / entry.name) as reader:
                self._record_file(_ClientFile(entry, reader.get_tensor("clients")), _to_lengths(reader.get_tensor("ends")))
        rounds, norms = dict[ClientId, int](), dict[ClientId, float]()
        for number, file in self._files.items():
            with open_tensors(self._folder / file.entry.name) as reader:
                rows = np.flatnonzero(self._file_of_client[file.clients] == number)
                clients = file.clients[rows].tolist()
                rounds |= dict(zip(clients, reader.get_tensor("acknowledged")[rows].tolist(), strict=True))
                norms |= dict(zip(clients, reader.get_tensor("residual_norms")[rows].tolist(), strict=True))
                if self._storage is not None:
                    self._restore_states(reader, rows, clients, self._storage)
        self._model_files = dict(model_entries)
        for round, entry in model_entries:
            if self._storage is not None:
                with open_tensors(self._folder / entry.name) as reader:
                    self._storage.models.put(round, reader.get_tensor("weights"))
        return AcknowledgedRounds.from_rounds(rounds), {client: norm for client, norm in norms.items() if norm == norm}

    def _read_states(self, clients: Sequence[ClientId], ends: list[int], model_rounds: list[int]) -> Iterator[Chunk]:
        """Yield the serialized states, each padded to a multiple of 64 bytes; append to `ends` and `model_rounds`."""
        for client in clients:
            n_bytes = 0
            if self._storage is not None:
                state = self._storage.states.load(client)
                model_rounds.append(state.model_round)
                for part in serialize_state(state):
                    yield part
                    if padding := align_up(len(part)) - len(part):
                        yield bytes(padding)
                    n_bytes += len(part) + padding
            ends.append(ends[-1] + n_bytes)

    def _restore_states(self, reader: Any, rows: I64, clients: Sequence[ClientId], storage: ClientStorage) -> None:
        ends, states = reader.get_tensor("ends"), reader.get_slice("states")
        model_rounds = []
        for row, client in zip(rows.tolist(), clients, strict=True):
            state = deserialize_state(np.array(states[int(ends[row]) : int(ends[row + 1])]))
            storage.states.save(client, state)
            storage.models.move_reference(0, state.model_round)
            model_rounds.append(state.model_round)
        self._record_model_rounds(np.array(clients, dtype=np.int64), np.array(model_rounds, dtype=np.int32))

    def _list_clients_to_move(self) -> Iterator[ClientId]:
        """Yield the clients of each file of which few bytes count, and of the smallest files if there are too many."""
        by_size = sorted(self._files, key=self._live_bytes.__getitem__)
        merged_numbers = set(by_size[: _MAX_FILES // 2] if len(by_size) >= _MAX_FILES else ())
        for number, file in self._files.items():
            limit = _LIVE_SHARE * (file.entry.n_bytes + _ENTRY_BYTES * len(file.clients))
            if number in merged_numbers or self._live_bytes[number] <= limit:
                yield from file.clients[self._file_of_client[file.clients] == number].tolist()

    def _record_file(self, file: _ClientFile, n_bytes: I64) -> None:
        """Add a file, and remove files of which no byte counts any longer. `n_bytes` are the bytes of each client's state."""
        old_numbers = self._file_of_client[file.clients]
        for number in np.unique(old_numbers[old_numbers > 0]).tolist():
            self._live_bytes[number] -= int(self._bytes_of_client[file.clients[old_numbers == number]].sum())
        self._last_number += 1
        self._file_of_client[file.clients] = self._last_number
        self._bytes_of_client[file.clients] = n_bytes + _ENTRY_BYTES
        self._files[self._last_number] = file
        self._live_bytes[self._last_number] = int(n_bytes.sum()) + _ENTRY_BYTES * len(n_bytes)
        for number in [number for number, live_bytes in self._live_bytes.items() if not live_bytes]:
            del self._files[number], self._live_bytes[number]

    def _record_model_rounds(self, clients: I64, model_rounds: I32) -> None:
        references = self._model_references
        for change, rounds in ((-1, self._model_round_of_client[clients]), (1, model_rounds)):
            for round, count in zip(*(values.tolist() for values in np.unique(rounds, return_counts=True)), strict=True):
                references[round] = references.get(round, 0) + change * count
        self._model_round_of_client[clients] = model_rounds
        self._model_references = {round: count for round, count in references.items() if round and count > 0}

    def _write_models(self, models: ModelCache) -> None:
        """Write each model that a client stores and no file has; remove the files of other models from the list."""
        stored_rounds = [round for round in sorted(self._model_references) if models.has(round)]
        for round in stored_rounds:
            if round not in self._model_files:
                path = self._folder / f"model-{round:06d}.safetensors"
                self._model_files[round] = write_tensors(path, [], partial(_name_weights, models.get(round)), 1)
        self._model_files = {round: self._model_files[round] for round in stored_rounds}


def _name_weights(weights: F32) -> dict[str, NDArray[Any]]:
    return {"weights": weights}


def _to_lengths(ends: I64) -> I64:
    """Return the lengths [n] of consecutive parts from their ends [n + 1], of which the first is 0."""
    lengths: I64 = ends[1:] - ends[:-1]
    return lengths
