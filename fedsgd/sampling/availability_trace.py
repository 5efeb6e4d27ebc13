"""Clients that come and go, as a file says."""

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
    """Whoever is there, as a file says: m of them uniformly, all of them if they are fewer, none if there is nobody.

    `file` is a CSV file with the header client,first_round,last_round: a client, from 0 on, is there from a round, which count
    from 1, to another, both included. A client may have several lines; one without a line is never there. With `period`, the
    trace repeats every so many rounds. A relative path is looked for in --data DIR (or FEDSGD_DATA), if given, and then where
    you stand.
    """

    name: ClassVar[str] = "trace"
    always_full: ClassVar[bool] = False

    file: str = field(kw_only=True, metadata={"example": '"my_trace.csv"'})
    period: NonNegativeInt = 0

    def bind(self, pool: SamplingPool) -> CohortSampler:
        lines = np.array(_read_lines(self._find_file(pool.data_folder), pool.clients, self.period), dtype=np.int64)
        trace = IntervalTree.from_intervals(*lines.T)

        def sample_cohort(round: int, cohort_size: int) -> SampledCohort:
            check_cohort_size(cohort_size, pool.clients)
            there = trace.owners_at((round - 1) % self.period + 1 if self.period else round)
            ends = np.cumsum([len(some) for some in there], dtype=np.int64)
            if not there or ends[-1] <= cohort_size:
                return SampledCohort(tuple(sorted(client for some in there for client in some.tolist())))
            chosen = derive_generator(pool.seed, "cohort", round).choice(ends[-1], size=cohort_size, replace=False)
            which = np.searchsorted(ends, chosen, side="right")
            return SampledCohort(tuple(sorted(int(there[w][i - ends[w]]) for w, i in zip(which, chosen, strict=True))))

        return sample_cohort

    def _find_file(self, folder: Path | None) -> Path:
        looked = [place / expand_user_path(self.file) for place in (folder, Path()) if place is not None]
        for path in looked:
            if path.is_file():
                return path
        raise DataError(f"trace: {self.file} not found (looked for {', '.join(map(str, looked))})")


def _read_lines(path: Path, clients: int, period: int) -> list[tuple[int, int, int]]:
    """(client, first round, last round) of each line; DataError that names the file and the line where something is wrong."""
    lines = list(read_rows(path, HEADER, lambda cells: _parse_line(cells, clients, period)))
    if not lines:
        raise DataError(f"{path}: nobody is ever there: expected lines below the header, got none")
    return lines


def _parse_line(cells: list[str], clients: int, period: int) -> tuple[int, int, int]:
    """A line's numbers; ValueError says what was expected."""
    for key, cell in zip(HEADER, cells, strict=True):
        if not re.fullmatch(r"\s*[0-9]{1,18}\s*", cell):
            raise ValueError(f"{key}: expected a whole number, got {cell!r}")
    client, first, last = map(int, cells)
    if client >= clients:
        raise ValueError(f"client: expected 0 to {clients - 1}, got {client}")
    if not first:
        raise ValueError("first_round: expected a round, which count from 1, got 0")
    if last < first:
        raise ValueError(f"last_round: expected {first}, the line's first_round, or later, got {last}")
    if last > (period or MAX_POINT):
        raise ValueError(f"last_round: expected at most {f'{period}, the period' if period else MAX_POINT}, got {last}")
    return client, first, last
