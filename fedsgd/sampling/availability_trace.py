"""Sampling of clients whose availability is read from a file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from fedsgd.config.component import NonNegativeInt
from fedsgd.errors import DataError
from fedsgd.numerics.rng import derive_generator
from fedsgd.sampling.base import CohortSampler, SampledCohort, Sampler, SamplingPool, check_cohort_size
from fedsgd.sampling.interval_tree import MAX_POINT, IntervalTree
from fedsgd.storage.csv_reader import read_rows
from fedsgd.system.user_files import expand_user_path

HEADER = ("client", "first_round", "last_round")


@dataclass(frozen=True)
class TraceSampler(Sampler):
    """Uniform sampling of the clients that are available in a round, as listed in a file.

    The cohort has m available clients, or all available clients if fewer than m are available; the cohort may be empty. No
    inclusion probabilities are returned, so the mean is not corrected for clients that are rarely available.

    Attributes:
        file: path of a CSV file with the header client,first_round,last_round. Clients count from 0 and rounds from 1; a client
            is available from the line's first round to its last, both included. A client may have several lines, or none. A
            relative path is looked for in --data DIR (or FEDSGD_DATA), then in the current folder.
        period: rounds after which the trace repeats; 0 for no repetition.
    """

    name: ClassVar[str] = "trace"
    always_full: ClassVar[bool] = False

    file: str = field(kw_only=True, metadata={"example": '"my_trace.csv"'})
    period: NonNegativeInt = 0

    def bind(self, pool: SamplingPool) -> CohortSampler:
        intervals = np.array(_read_lines(self._find_file(pool.data_folder), pool.clients, self.period), dtype=np.int64)
        trace = IntervalTree.from_intervals(*intervals.T)

        def sample_cohort(round: int, cohort_size: int) -> SampledCohort:
            check_cohort_size(cohort_size, pool.clients)
            available_groups = trace.owners_at((round - 1) % self.period + 1 if self.period else round)
            ends = np.cumsum([len(group) for group in available_groups], dtype=np.int64)
            if not available_groups or ends[-1] <= cohort_size:
                return SampledCohort(tuple(sorted(client for group in available_groups for client in group.tolist())))
            drawn_positions = derive_generator(pool.seed, "cohort", round).choice(ends[-1], size=cohort_size, replace=False)
            group_numbers = np.searchsorted(ends, drawn_positions, side="right")
            drawn_pairs = zip(group_numbers, drawn_positions, strict=True)
            return SampledCohort(tuple(sorted(int(available_groups[group][i - ends[group]]) for group, i in drawn_pairs)))

        return sample_cohort

    def _find_file(self, folder: Path | None) -> Path:
        candidates = [parent / expand_user_path(self.file) for parent in (folder, Path()) if parent is not None]
        for path in candidates:
            if path.is_file():
                return path
        raise DataError(f"trace: {self.file} not found (looked for {', '.join(map(str, candidates))})")


def _read_lines(path: Path, clients: int, period: int) -> list[tuple[int, int, int]]:
    """Return (client, first round, last round) of each line. Raise a DataError with the file and the line of a fault."""
    lines = list(read_rows(path, HEADER, lambda cells: _parse_line(cells, clients, period)))
    if not lines:
        raise DataError(f"{path}: no client is ever available: expected lines below the header, got none")
    return lines


def _parse_line(cells: list[str], clients: int, period: int) -> tuple[int, int, int]:
    """Return the numbers of a line. Raise a ValueError that names the expected values."""
    for key, cell in zip(HEADER, cells, strict=True):
        if not re.fullmatch(r"\s*[0-9]{1,18}\s*", cell):
            raise ValueError(f"{key}: expected a whole number, got {cell!r}")
    client, first, last = map(int, cells)
    if client >= clients:
        raise ValueError(f"client: expected 0 to {clients - 1}, got {client}")
    if not first:
        raise ValueError("first_round: expected 1 or more, got 0")
    if last < first:
        raise ValueError(f"last_round: expected {first}, the line's first_round, or later, got {last}")
    if last > (period or MAX_POINT):
        raise ValueError(f"last_round: expected at most {f'{period}, the period' if period else MAX_POINT}, got {last}")
    return client, first, last
