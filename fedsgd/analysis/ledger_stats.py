"""Statistics of a ledger, read in chunks of whole rounds, so that memory does not grow with the length of the ledger.

Shapes: N clients, R rounds, and T rows, one for each client and round in which it took part.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.analysis.runs import Run
from fedsgd.errors import ReportError
from fedsgd.network import ClientTraffic
from fedsgd.numerics.arrays import F64, I64
from fedsgd.numerics.binomial import log2_choose
from fedsgd.storage.parquet import SEGMENT_ROWS, read_batches

REFERENCE_VALUE_BYTES = 3.5
"""Assumed bytes of a value in a REFERENCE frame, because the ledger lacks the frame's number of coordinates."""
DOWNLINK_KINDS = ("whole", "step", "reference")
"""Kinds of downlink frames that clients share: MODEL with the whole model, MODEL with a difference, REFERENCE."""
SILENT_FATES = ("diverged", "dropped")
"""Fates of clients that sent nothing, whose rows in the ledger have empty frames."""
LedgerBatch = Mapping[str, Any]


@dataclass
class FrameTotals:
    """Number of frames of one kind, and number of coordinates in all these frames together."""

    n_frames: int = 0
    n_coordinates: float = 0.0


@dataclass(eq=False)
class CodingSeconds:
    """Coding times that the run's machine measured.

    The lists exclude round 1, in which kernels are compiled, unless the run has only one round.

    Attributes:
        client_encode: seconds to encode each UPDATE at its client.
        client_decode: seconds to decode each message at its client.
        server_decode: seconds to decode and add each UPDATE at the server.
        server_encode: [R + 1] seconds to encode the downlink of each round, round 1 included; entry 0 is 0.
    """

    client_encode: list[F64] = field(default_factory=list)
    client_decode: list[F64] = field(default_factory=list)
    server_decode: list[F64] = field(default_factory=list)
    server_encode: F64 = field(default_factory=lambda: np.zeros(0))


@dataclass(eq=False)
class LedgerStats:
    """Statistics of a ledger. All but `coding_seconds` depend only on deterministic columns.

    Attributes:
        uplink_bytes_by_client, downlink_bytes_by_client: [N] bytes.
        up_messages, down_messages: [R + 1] messages of each round; entry 0 is 0.
        unanswered_messages: messages without a reply, except those to dropped stragglers.
        index_bytes: bytes of positions in UPDATE frames.
        bound_bytes: lower bound of `index_bytes`, from log₂C(P, k) bits for each UPDATE frame with positions.
        update_frames: UPDATE frames that could be decoded, including lost and late frames.
        downlink_frames: frames sent to clients, by kind.
        distinct_downlink_frames: distinct frames of each round, by kind; "latest": "step" frames based on the round before.
        coding_seconds: measured coding times; None unless requested.
    """

    uplink_bytes_by_client: F64
    downlink_bytes_by_client: F64
    up_messages: F64
    down_messages: F64
    unanswered_messages: int = 0
    index_bytes: int = 0
    bound_bytes: float = 0.0
    update_frames: FrameTotals = field(default_factory=FrameTotals)
    downlink_frames: dict[str, FrameTotals] = field(default_factory=lambda: {kind: FrameTotals() for kind in DOWNLINK_KINDS})
    distinct_downlink_frames: dict[str, FrameTotals] = field(
        default_factory=lambda: {kind: FrameTotals() for kind in (*DOWNLINK_KINDS, "latest")}
    )
    coding_seconds: CodingSeconds | None = None


def read_ledger_stats(run: Run, with_coding_seconds: bool = False) -> LedgerStats:
    """Read the statistics of a run's ledger in one pass; ReportError if the ledger does not belong to this run."""
    n_clients, parameters, length = int(run.summary["clients"]), int(run.summary["parameters"]), run.n_rounds + 1
    stats = LedgerStats(np.zeros(n_clients), np.zeros(n_clients), np.zeros(length), np.zeros(length))
    stats.coding_seconds = CodingSeconds(server_encode=np.zeros(length)) if with_coding_seconds else None
    names = ["round", "client", "direction", "kind", "base", "fate", "n_bytes", "index_bytes", "value_bytes", "kept"]
    coordinate_counts, dropped_messages = Counter[int](), np.zeros(length)
    distinct_frames = _DistinctFrameCounter(stats.distinct_downlink_frames)
    names += ["encode_seconds", "decode_seconds"] * with_coding_seconds
    for batch in read_batches(run.folder / "ledger.parquet", names):
        _check_row_ranges(run, batch)
        update_rows = batch["kind"].isin("UPDATE")
        silent_rows = batch["fate"].isin(*SILENT_FATES)
        uplink_rows = batch["direction"].isin("up") & ~silent_rows
        for rows, totals in ((uplink_rows, stats.uplink_bytes_by_client), (~uplink_rows, stats.downlink_bytes_by_client)):
            totals += np.bincount(batch["client"][rows], batch["n_bytes"][rows], minlength=n_clients)
        task_rows = batch["kind"].isin("TASK")  # each downlink message has one TASK frame
        dropped_rows = batch["fate"].isin("dropped")
        for rows, messages in (
            (uplink_rows, stats.up_messages),
            (task_rows, stats.down_messages),
            (dropped_rows, dropped_messages),
        ):
            messages += np.bincount(batch["round"][rows], minlength=length)
        sparse_rows = update_rows & (batch["index_bytes"] > 0) & (batch["kept"] > 0)
        stats.index_bytes += int(batch["index_bytes"][sparse_rows].sum())
        coordinate_counts.update(batch["kept"][sparse_rows].tolist())
        _add_frames(stats.update_frames, batch["kept"][update_rows & ~silent_rows & ~batch["fate"].isin("refused")])
        distinct_frames.add(_add_downlink(stats.downlink_frames, batch, parameters))
        if stats.coding_seconds is not None:
            _add_coding_seconds(stats.coding_seconds, batch, uplink_rows, update_rows & ~dropped_rows)
    distinct_frames.finish()
    bits = (log2_choose(parameters, k) * n for k, n in sorted(coordinate_counts.items()))
    stats.bound_bytes = math.fsum(bits) / 8
    stats.unanswered_messages = int((stats.down_messages - stats.up_messages - dropped_messages).clip(min=0).sum())
    check_byte_totals(run, stats.uplink_bytes_by_client.sum(), stats.downlink_bytes_by_client.sum())
    return stats


def _add_frames(frames: FrameTotals, n_coordinates: NDArray[Any]) -> None:
    frames.n_frames += len(n_coordinates)
    frames.n_coordinates += float(n_coordinates.sum())


def _add_downlink(frame_totals: Mapping[str, FrameTotals], batch: LedgerBatch, parameters: int) -> F64:
    """Count shared downlink frames, and return round, index in DOWNLINK_KINDS, base round and coordinates of each, [F, 4]."""
    model, reference = batch["kind"].isin("MODEL"), batch["kind"].isin("REFERENCE")
    estimate = np.minimum(parameters, batch["value_bytes"] // REFERENCE_VALUE_BYTES)
    n_coordinates = np.where(reference, estimate, batch["kept"])
    masks = (model & (batch["base"] == 0), model & (batch["base"] > 0), reference)
    parts = []
    for number, (kind, rows) in enumerate(zip(DOWNLINK_KINDS, masks, strict=True)):
        _add_frames(frame_totals[kind], n_coordinates[rows])
        columns = [batch["round"][rows], np.full(rows.sum(), number), batch["base"][rows], n_coordinates[rows]]
        parts.append(np.stack(columns, axis=1))
    return np.concatenate(parts).astype(np.float64)


class _DistinctFrameCounter:
    """Counter of each round's distinct frames. The ledger has a row for each client that was sent a frame."""

    def __init__(self, frame_totals: Mapping[str, FrameTotals]) -> None:
        self._frame_totals = frame_totals
        self._last_round_frames = np.zeros((0, 4))

    def add(self, frames: F64) -> None:
        """Add a chunk of frames [F, 4]. Only the chunk's last round may continue in the next chunk."""
        rows = np.unique(np.concatenate([self._last_round_frames, frames]), axis=0)
        last = rows[-1, 0] if len(rows) else 0
        self._last_round_frames = rows[rows[:, 0] == last]
        self._count(rows[rows[:, 0] < last])

    def finish(self) -> None:
        """Count the frames of the last round."""
        self._count(self._last_round_frames)

    def _count(self, rows: F64) -> None:
        for number, kind in enumerate(DOWNLINK_KINDS):
            _add_frames(self._frame_totals[kind], rows[rows[:, 1] == number, 3])
        _add_frames(self._frame_totals["latest"], rows[(rows[:, 1] == 1) & (rows[:, 2] == rows[:, 0] - 1), 3])


def _add_coding_seconds(
    coding_seconds: CodingSeconds, batch: LedgerBatch, uplink_rows: NDArray[np.bool_], update_rows: NDArray[np.bool_]
) -> None:
    """Add the coding times of a chunk."""
    later = (batch["round"] > 1) | (len(coding_seconds.server_encode) == 2)
    coding_seconds.client_encode.append(batch["encode_seconds"][update_rows & later])
    coding_seconds.server_decode.append(batch["decode_seconds"][update_rows & batch["fate"].isin("received") & later])
    decode_seconds = batch["decode_seconds"][~uplink_rows & later]
    coding_seconds.client_decode.append(decode_seconds[decode_seconds > 0])
    coding_seconds.server_encode += np.bincount(
        batch["round"][~uplink_rows], batch["encode_seconds"][~uplink_rows], minlength=len(coding_seconds.server_encode)
    )


def _check_row_ranges(run: Run, batch: LedgerBatch) -> None:
    """Raise ReportError if a row has a client or a round that the run lacks."""
    for column, low, high, source in (
        ("client", 0, int(run.summary["clients"]) - 1, "summary.json says"),
        ("round", 1, run.n_rounds, "rounds.parquet has"),
    ):
        extremes = (int(batch[column].min()), int(batch[column].max()))
        invalid = next((value for value in extremes if not low <= value <= high), None)
        if invalid is not None:
            raise ReportError(f"{run.folder}/ledger.parquet: {column} {invalid}, expected {low} to {high}, as {source}")


def check_byte_totals(run: Run, uplink_bytes: float, downlink_bytes: float) -> None:
    """Raise ReportError unless the bytes of a run's ledger are those of its rounds.parquet."""
    for link, n_bytes in (("uplink", uplink_bytes), ("downlink", downlink_bytes)):
        expected = run.rounds[f"{link}_bytes"][-1]
        if n_bytes != expected:
            problem = f"{n_bytes:,.0f} bytes of {link}, expected {expected:,.0f}, as rounds.parquet has"
            raise ReportError(f"{run.folder}/ledger.parquet: {problem}: the file is cut or belongs to another run")


def read_client_traffic(run: Run, batch_rows: int = SEGMENT_ROWS) -> Iterator[ClientTraffic]:
    """Yield the traffic of each client by round, in chunks of whole rounds with about `batch_rows` rows of the ledger."""
    names = ["round", "client", "direction", "kind", "fate", "n_bytes", "examples"]
    remainder: dict[str, NDArray[Any]] = {}
    distinct_bytes = np.diff(run.get_cumulative("downlink_broadcast_bytes"))
    first_round = 1
    for batch in read_batches(run.folder / "ledger.parquet", names, batch_rows):
        _check_row_ranges(run, batch)
        columns = _extract_columns(batch)
        if remainder:
            columns = {name: np.concatenate([remainder[name], values]) for name, values in columns.items()}
        if (np.diff(columns["round"]) < 0).any():
            raise ReportError(f"{run.folder}/ledger.parquet: its rows are not in the order of rounds")
        last_round = int(columns["round"][-1])
        is_complete = columns["round"] < last_round
        remainder = {name: values[~is_complete] for name, values in columns.items()}
        if is_complete.any():
            rows = {name: values[is_complete] for name, values in columns.items()}
            yield _build_client_traffic(rows, first_round, distinct_bytes[first_round - 1 : last_round - 1])
            first_round = last_round
    if remainder or first_round <= run.n_rounds:
        no_rows = {name: np.zeros(0, dtype=np.int64) for name in ("round", "client", "n_bytes", "examples")}
        no_rows |= {name: np.zeros(0, dtype=bool) for name in ("is_uplink", "is_update", "is_task", "is_resync", "is_accepted")}
        yield _build_client_traffic(remainder or no_rows, first_round, distinct_bytes[first_round - 1 :])


def _extract_columns(batch: LedgerBatch) -> dict[str, NDArray[Any]]:
    """Return the numeric columns, and boolean columns for conditions on the text columns."""
    direction, kind, fate = batch["direction"], batch["kind"], batch["fate"]
    numbers = {name: batch[name] for name in ("round", "client", "n_bytes", "examples")}
    conditions = {
        "is_uplink": direction.isin("up") & ~fate.isin(*SILENT_FATES),
        "is_update": kind.isin("UPDATE"),
        "is_task": kind.isin("TASK"),
        "is_resync": kind.isin("RESYNC"),
        "is_accepted": kind.isin("UPDATE") & fate.isin("received"),
    }
    return {**numbers, **conditions}


def _build_client_traffic(rows: Mapping[str, NDArray[Any]], first_round: int, distinct_bytes: F64) -> ClientTraffic:
    """Sum the rows of each client and round. `distinct_bytes` has each round's downlink, each distinct frame counted once."""
    n = int(rows["client"].max(initial=0)) + 1
    keys, groups = np.unique(rows["round"] * n + rows["client"], return_inverse=True)

    def sum_groups(values: NDArray[Any], mask: NDArray[np.bool_]) -> I64:
        return np.bincount(groups[mask], values[mask], minlength=len(keys)).astype(np.int64)

    is_uplink, n_bytes, ones = rows["is_uplink"], rows["n_bytes"], np.ones(len(groups))
    has_replied = sum_groups(ones, is_uplink & ~rows["is_resync"]) > 0
    return ClientTraffic(
        first_round=first_round,
        round=keys // n,
        client=keys % n,
        down_bytes=sum_groups(n_bytes, ~is_uplink),
        up_bytes=sum_groups(n_bytes, is_uplink),
        down_messages=sum_groups(ones, ~is_uplink & rows["is_task"]),
        up_messages=sum_groups(ones, is_uplink & rows["is_resync"]) + has_replied,
        examples=sum_groups(rows["examples"], rows["is_update"]),  # also of dropped stragglers, which train and send nothing
        accepted=sum_groups(ones, rows["is_accepted"]) > 0,
        down_distinct_bytes=distinct_bytes,
    )
