"""Tables of a run directory: one row for each frame, for each round, and for each client that failed.

Columns of failures.parquet, which only a run with such a client has:

| column | type | meaning |
|---|---|---|
| round | int | from 1 |
| message | str | error of the client, or of its reply |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fedsgd.errors import CheckpointError, OutputError, ReportError
from fedsgd.experiment.ledger import Ledger, RoundMembers
from fedsgd.experiment.summary import build_table_row
from fedsgd.federation.round_record import RoundRecord
from fedsgd.storage.parquet import TableWriter, list_values, read_batches
from fedsgd.storage.run_directory import FAILURES_FILE, LEDGER_FILE, ROUND_COLUMNS, ROUNDS_FILE
from fedsgd.storage.table_recovery import remove_table

FAILURE_COLUMNS: Mapping[str, type] = {"round": int, "message": str}
"""Columns of failures.parquet."""


class RunTables:
    """Tables of a run.

    Args:
        folder: run directory; None keeps the rows in memory.
        metric_names: names of the metrics, each of which is a column of rounds.parquet.
        evaluation_every: interval of the evaluations, in rounds.
        n_kept_rows: rows of an earlier process that stay, by the name of the table; None for new tables.

    Attributes:
        ledger: table of the frames.
    """

    def __init__(
        self,
        folder: Path | None,
        metric_names: Sequence[str],
        evaluation_every: int,
        n_kept_rows: Mapping[str, int] | None = None,
    ) -> None:
        self._folder = folder
        self._metric_names = metric_names
        self._evaluation_every = evaluation_every
        kept_rows = (lambda name: None) if n_kept_rows is None else n_kept_rows.get
        with ExitStack() as opened_tables:  # if a table is missing or damaged, the others become files again
            self.ledger = Ledger(folder and folder / LEDGER_FILE, kept_rows(LEDGER_FILE))
            opened_tables.callback(self.ledger.close)
            columns = {**ROUND_COLUMNS, **dict.fromkeys(metric_names, float)}
            self._rounds = TableWriter(folder and folder / ROUNDS_FILE, columns, kept_rows(ROUNDS_FILE))
            opened_tables.callback(self._rounds.close)
            self._failures: TableWriter | None = None
            if kept_rows(FAILURES_FILE):
                self._failures = TableWriter(folder and folder / FAILURES_FILE, FAILURE_COLUMNS, kept_rows(FAILURES_FILE))
            elif folder is not None and n_kept_rows is not None:
                remove_table(folder / FAILURES_FILE)  # of failures after the checkpoint
            opened_tables.pop_all()
        self._digest = hashlib.sha256()

    def append(self, record: RoundRecord) -> None:
        """Add the rows of a round, which stay in memory until `flush` or `sync`."""
        self._add_to_digest(record)
        self._rounds.append(build_table_row(record))
        if record.failures and self._failures is None:
            self._failures = TableWriter(self._folder and self._folder / FAILURES_FILE, FAILURE_COLUMNS)
        for message in record.failures:
            assert self._failures is not None
            self._failures.append({"round": record.round, "message": message})

    def flush(self) -> None:
        """Write the rows of finished rounds, unless the last write is recent. They stay readable if the run is killed."""
        if self.ledger.flush():
            for table in self._list_small_tables():
                table.flush(force=True)

    def sync(self) -> dict[str, int]:
        """Write all rows, wait until they are on disk, and return their number by the name of the table."""
        tables = {LEDGER_FILE: self.ledger.sync(), ROUNDS_FILE: self._rounds.sync()}
        return {**tables, FAILURES_FILE: self._failures.sync()} if self._failures is not None else tables

    def close_after(self, error: BaseException) -> None:
        """Complete the tables of a failed run, and add an error of the completion to the run's error as a note."""
        for close in (self.close_ledger, self.close_rounds):
            try:
                close()
            except (OutputError, ValueError) as second_error:  # pyarrow's errors of damaged segments are ValueErrors
                error.add_note(str(second_error))

    def close_ledger(self) -> None:
        """Complete ledger.parquet."""
        self.ledger.close()

    def close_rounds(self) -> None:
        """Complete rounds.parquet and failures.parquet."""
        for table in self._list_small_tables():
            table.close()

    def replay(self, totals: Mapping[str, Mapping[str, int]]) -> list[RoundRecord]:
        """Read the rows of an earlier process into the ledger's digest, and return the records of its rounds.

        Args:
            totals: the ledger's totals by direction after these rows, as in summary.json.
        """
        try:
            members, failures = self.ledger.replay(totals), self._read_failures()
            rows = self._rounds.to_table().to_pylist()
        except (OSError, ValueError, ReportError) as error:  # pyarrow's errors are of the first two classes
            problem = f"its tables cannot be read ({str(error).splitlines()[0]})"
            raise CheckpointError(f"{self._folder}: cannot be resumed: {problem}") from None
        nobody = RoundMembers()
        history = [self._build_record(row, members.get(row["round"], nobody), failures.get(row["round"], ())) for row in rows]
        for record in history:
            self._add_to_digest(record)
        return history

    def replace_last_round(self, record: RoundRecord) -> None:
        """Replace the row of the last round that an earlier process wrote.

        Args:
            record: record of this round.
        """
        self._rounds.replace_last_row(build_table_row(record))

    @property
    def rounds_sha256(self) -> str:
        """SHA-256 over the rows of rounds.parquet and failures.parquet so far.

        Metrics of a round that `evaluation.every` does not ask for are left out, because a longer run does not have them.
        """
        return self._digest.hexdigest()

    def _add_to_digest(self, record: RoundRecord) -> None:
        row = build_table_row(record)
        names = [*ROUND_COLUMNS, *(self._metric_names if record.round % self._evaluation_every == 0 else ())]
        self._digest.update(json.dumps([[row.get(name) for name in names], record.failures]).encode() + b"\n")

    def _read_failures(self) -> dict[int, list[str]]:
        failures: dict[int, list[str]] = {}
        if self._failures is not None and self._failures.path is not None:
            for batch in read_batches(self._failures.path, list(FAILURE_COLUMNS)):
                for round, message in zip(*(list_values(batch[name]) for name in FAILURE_COLUMNS), strict=True):
                    failures.setdefault(round, []).append(message)
        return failures

    def _build_record(self, row: Mapping[str, Any], members: RoundMembers, failures: Sequence[str]) -> RoundRecord:
        metrics = {name: row[name] for name in self._metric_names if row[name] is not None}
        columns = {name: row[name] for name in ROUND_COLUMNS if name not in ("clients", "accepted", "failures")}
        return RoundRecord(**columns, **members._asdict(), metrics=metrics or None, failures=tuple(failures))

    def _list_small_tables(self) -> list[TableWriter]:
        return [self._rounds] if self._failures is None else [self._rounds, self._failures]
