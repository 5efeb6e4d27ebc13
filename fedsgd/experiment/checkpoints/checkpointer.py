"""Checkpoints of a run: when they are written, and what they have."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsgd.compression import ClientId
from fedsgd.experiment.checkpoints.client_files import ClientFiles
from fedsgd.experiment.checkpoints.manifest import Manifest, remove_other_files
from fedsgd.experiment.checkpoints.server_state import read_server_state, write_server_state
from fedsgd.federation import ServerState
from fedsgd.storage.run_directory import create_folder


@dataclass(frozen=True)
class CheckpointInterval:
    """Rounds or seconds between two checkpoints; without either, checkpoints are written on demand only."""

    rounds: int | None = None
    seconds: float | None = None


class Checkpointer:
    """Writer of a run's checkpoints into one folder, of which the last ones are kept.

    Args:
        folder: folder of the checkpoints, created with the first checkpoint.
        client_files: files of the client states.
        interval: rounds or seconds between two checkpoints.
        keep: number of checkpoints that are kept.
        manifests: checkpoints of the run so far, the latest last.
    """

    def __init__(
        self,
        folder: Path,
        client_files: ClientFiles,
        interval: CheckpointInterval,
        keep: int,
        manifests: Iterable[Manifest] = (),
    ) -> None:
        self.folder = folder
        self._client_files = client_files
        self._interval = interval
        self._keep = keep
        self._manifests = list(manifests)
        self._changed_clients: set[ClientId] = set()
        self._last_time = time.monotonic()

    @property
    def last_round(self) -> int:
        """Last round of the latest checkpoint; 0 without one."""
        return self._manifests[-1].round if self._manifests else 0

    def add_cohort(self, cohort: Iterable[ClientId]) -> None:
        """Record the clients of a finished round, whose states the next checkpoint writes."""
        self._changed_clients.update(cohort)

    def is_due(self, round: int) -> bool:
        """Return whether the interval asks for a checkpoint after this round."""
        rounds, seconds = self._interval.rounds, self._interval.seconds
        if rounds is not None:
            return round % rounds == 0
        return seconds is not None and time.monotonic() - self._last_time >= seconds

    def write(
        self,
        server: ServerState,
        residual_norms: Mapping[ClientId, float],
        tables: Mapping[str, int],
        run: Mapping[str, Any],
    ) -> None:
        """Write a checkpoint between two rounds, and remove the oldest. Without an error, a crash loses nothing of it.

        Args:
            server: state of the server before the next round.
            residual_norms: client → Euclidean norm of the client's residual.
            tables: number of rows of each table that are on disk, by file name.
            run: all other values of the run, which JSON must hold.

        Raises:
            OutputError: a file cannot be written; the earlier checkpoints are unchanged.
        """
        round = server.round - 1
        label = f"{round:06d}"
        try:
            create_folder(self.folder)
            server_file, numbers = write_server_state(self.folder / f"server-{label}.safetensors", server)
            files = self._client_files
            files.write(label, self._changed_clients, server.acknowledged_rounds, residual_norms)
            manifest = Manifest(round, server_file, numbers, tuple(files.entries), tuple(files.model_entries), tables, run)
            manifest.write(self.folder)
            earlier = [other for other in self._manifests if other.round != round]
            self._manifests = [*earlier, manifest][-self._keep :]
        finally:  # also the files of a checkpoint that could not be completed
            remove_other_files(self.folder, self._manifests)
        self._changed_clients = set()
        self._last_time = time.monotonic()


def restore(client_files: ClientFiles, folder: Path, manifest: Manifest) -> tuple[ServerState, dict[ClientId, float]]:
    """Return the server's state and the norms of the clients' residuals, and fill the storage of the clients.

    Args:
        client_files: files of the client states, none of which is read yet.
        folder: folder of the checkpoints.
        manifest: a checkpoint without damage.
    """
    acknowledged_rounds, residual_norms = client_files.read(manifest.client_files, manifest.model_files)
    return read_server_state(folder / manifest.server_file.name, manifest.server, acknowledged_rounds), residual_norms
