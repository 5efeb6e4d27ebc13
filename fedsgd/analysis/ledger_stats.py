"""What a ledger says, read in stretches of whole rounds, so that memory does not grow with it but for what is kept.

T trips: a client in a round; N clients.
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
from fedsgd.storage.parquet import SEGMENT_ROWS, read_batches

REFERENCE_VALUE_BYTES = 3.5
"""Bytes of a value in a REFERENCE frame, whose number of coordinates the ledger does not have."""
DOWNLINK_KINDS = ("whole", "step", "reference")
"""Frames that clients share: MODEL with the model itself, MODEL with a difference, REFERENCE."""
LedgerBatch = Mapping[str, Any]


@dataclass
class FrameTotals:
    """Frames of one kind. n: their number; kept: coordinates that they carry, all together."""

    n_frames: int = 0
    n_coordinates: float = 0.0


@dataclass(eq=False)
class CodingSeconds:
    """Seconds of coding by the clock of the machine that made the run, without the first round, in which loops are compiled.

    Attributes:
        encode: of each UPDATE at its client.
        decode: of each message at its client.
        add: of each UPDATE at the server.
        send: of each round, encoding its downlink; the round of 0, in which there is nothing, first.
    """

    client_encode: list[F64] = field(default_factory=list)
    client_decode: list[F64] = field(default_factory=list)
    server_decode: list[F64] = field(default_factory=list)
    server_encode: F64 = field(default_factory=lambda: np.zeros(0))


@dataclass(eq=False)
class LedgerStats:
    """Figures of a ledger of N clients and R rounds. All but `clock` depends on the deterministic columns alone.

    Attributes:
        clients_up, clients_down: [N], bytes of each client.
        up_messages, down_messages: [R + 1], messages of each round, that of 0, in which there is nothing, first.
        silent: messages after which nothing was heard of the client.
        index_bytes: bytes of positions, in UPDATE frames that have any.
        bound_bytes: log₂C(P, k) bits for each of these frames, in bytes.
        updates: UPDATE frames that could be read, lost and late ones among them.
        received: frames that were sent to clients, by their place in DOWN.
        encoded: distinct frames of each round, likewise; "latest": those of "step" that build on the round before.
        clock: seconds of coding; None unless they were asked for.
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
    """Read the ledger once.

    Args:
        run: the run.
        clock: whether to read what coding took by the clock, too.

    Raises:
        ReportError: it is not the ledger of this run.
    """
    n_clients, parameters, ends = int(run.summary["clients"]), int(run.summary["parameters"]), run.n_rounds + 1
    facts = LedgerStats(np.zeros(n_clients), np.zeros(n_clients), np.zeros(ends), np.zeros(ends))
    facts.coding_seconds = CodingSeconds(server_encode=np.zeros(ends)) if with_coding_seconds else None
    names = ["round", "client", "direction", "kind", "base", "fate", "n_bytes", "index_bytes", "value_bytes", "kept"]
    kept_counts: Counter[int] = Counter()
    distinct = _DistinctFrameCounter(facts.distinct_downlink_frames)
    for batch in read_batches(
        run.folder / "ledger.parquet", [*names, *(["encode_seconds", "decode_seconds"] * with_coding_seconds)]
    ):
        _check_row_ranges(run, batch)
        up, update = batch["direction"].isin("up"), batch["kind"].isin("UPDATE")
        for rows, totals in ((up, facts.uplink_bytes_by_client), (~up, facts.downlink_bytes_by_client)):
            totals += np.bincount(batch["client"][rows], batch["n_bytes"][rows], minlength=n_clients)
        opens = batch["kind"].isin("TASK")
        for rows, messages in ((up, facts.up_messages), (opens, facts.down_messages)):
            messages += np.bincount(batch["round"][rows], minlength=ends)
        placed = update & (batch["index_bytes"] > 0) & (batch["kept"] > 0)
        facts.index_bytes += int(batch["index_bytes"][placed].sum())
        kept_counts.update(batch["kept"][placed].tolist())
        _add_frames(facts.update_frames, batch["kept"][update & ~batch["fate"].isin("refused")])
        distinct.add(_add_downlink(facts.downlink_frames, batch, parameters))
        if facts.coding_seconds is not None:
            _add_coding_seconds(facts.coding_seconds, batch, up, update)
    distinct.finish()
    bits = (log2_choose(parameters, k) * n for k, n in sorted(kept_counts.items()))
    facts.bound_bytes = math.fsum(bits) / 8
    facts.unanswered_messages = int((facts.down_messages - facts.up_messages).clip(min=0).sum())
    _check_byte_totals(run, facts)
    return facts


def _add_frames(frames: FrameTotals, n_coordinates: NDArray[Any]) -> None:
    frames.n_frames += len(n_coordinates)
    frames.n_coordinates += float(n_coordinates.sum())


def _add_downlink(frame_totals: Mapping[str, FrameTotals], batch: LedgerBatch, parameters: int) -> F64:
    """Count the frames that clients decode; return (round, kind, base, kept) of each [F, 4], the kind by its place in DOWN."""
    model, reference = batch["kind"].isin("MODEL"), batch["kind"].isin("REFERENCE")
    estimate = np.minimum(parameters, batch["value_bytes"] // REFERENCE_VALUE_BYTES)
    kept = np.where(reference, estimate, batch["kept"])
    masks = (model & (batch["base"] == 0), model & (batch["base"] > 0), reference)
    parts = []
    for number, (kind, rows) in enumerate(zip(DOWNLINK_KINDS, masks, strict=True)):
        _add_frames(frame_totals[kind], kept[rows])
        parts.append(np.stack([batch["round"][rows], np.full(rows.sum(), number), batch["base"][rows], kept[rows]], axis=1))
    return np.concatenate(parts).astype(np.float64)


class _DistinctFrameCounter:
    """Counts the distinct frames of each round, which the ledger has once for each client that was sent one."""

    def __init__(self, frame_totals: Mapping[str, FrameTotals]) -> None:
        self._frame_totals = frame_totals
        self._last_round_frames = np.zeros((0, 4))

    def add(self, frames: F64) -> None:
        """Add a stretch of frames [F, 4]; only those of its last round may go on in the next stretch."""
        rows = np.unique(np.concatenate([self._last_round_frames, frames]), axis=0)
        last = rows[-1, 0] if len(rows) else 0
        self._last_round_frames = rows[rows[:, 0] == last]
        self._count(rows[rows[:, 0] < last])

    def finish(self) -> None:
        """Count the last round."""
        self._count(self._last_round_frames)

    def _count(self, rows: F64) -> None:
        for number, kind in enumerate(DOWNLINK_KINDS):
            _add_frames(self._frame_totals[kind], rows[rows[:, 1] == number, 3])
        _add_frames(self._frame_totals["latest"], rows[(rows[:, 1] == 1) & (rows[:, 2] == rows[:, 0] - 1), 3])


def _add_coding_seconds(
    coding_seconds: CodingSeconds, batch: LedgerBatch, uplink_rows: NDArray[np.bool_], update_rows: NDArray[np.bool_]
) -> None:
    """Add what coding took."""
    later = (batch["round"] > 1) | (len(coding_seconds.server_encode) == 2)
    coding_seconds.client_encode.append(batch["encode_seconds"][update_rows & later])
    coding_seconds.server_decode.append(batch["decode_seconds"][update_rows & batch["fate"].isin("received") & later])
    opening = batch["decode_seconds"][~uplink_rows & later]
    coding_seconds.client_decode.append(opening[opening > 0])
    coding_seconds.server_encode += np.bincount(
        batch["round"][~uplink_rows], batch["encode_seconds"][~uplink_rows], minlength=len(coding_seconds.server_encode)
    )


def _check_row_ranges(run: Run, batch: LedgerBatch) -> None:
    """ReportError for rows of clients or rounds that this run has not."""
    for column, least, most, said in (
        ("client", 0, int(run.summary["clients"]) - 1, "summary.json says"),
        ("round", 1, run.n_rounds, "rounds.parquet has"),
    ):
        bad = next((v for v in (int(batch[column].min()), int(batch[column].max())) if not least <= v <= most), None)
        if bad is not None:
            raise ReportError(f"{run.folder}/ledger.parquet: {column} {bad}, expected {least} to {most}, as {said}")


def _check_byte_totals(run: Run, ledger_stats: LedgerStats) -> None:
    """ReportError for a ledger with other bytes than were counted while the run went."""
    for link, seen in (("uplink", ledger_stats.uplink_bytes_by_client), ("downlink", ledger_stats.downlink_bytes_by_client)):
        counted = run.rounds[f"{link}_bytes"][-1]
        if seen.sum() != counted:
            bytes_text = f"{seen.sum():,.0f} bytes of {link}, expected {counted:,.0f}, as rounds.parquet has"
            raise ReportError(f"{run.folder}/ledger.parquet: {bytes_text}: it is cut, or of another run")


def log2_choose(n: int, k: int) -> float:
    """log₂ C(n, k): the bits that which k of n it is takes at least, if all sets are alike."""
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def read_client_traffic(run: Run, batch_rows: int = SEGMENT_ROWS) -> Iterator[ClientTraffic]:
    """Whole rounds, some `batch_rows` of the ledger at a time."""
    names = ["round", "client", "direction", "kind", "fate", "n_bytes", "examples"]
    left: dict[str, NDArray[Any]] = {}
    distinct = np.diff(run.get_cumulative("downlink_broadcast_bytes"))
    first = 1
    for batch in read_batches(run.folder / "ledger.parquet", names, batch_rows):
        plain = _extract_columns(batch)
        whole = {name: np.concatenate([left[name], plain[name]]) for name in plain} if left else plain
        if (np.diff(whole["round"]) < 0).any():
            raise ReportError(f"{run.folder}/ledger.parquet: its rows are not in the order of rounds")
        last = int(whole["round"][-1])
        done = whole["round"] < last
        left = {name: values[~done] for name, values in whole.items()}
        if done.any():
            yield _build_client_traffic(
                {name: values[done] for name, values in whole.items()}, first, distinct[first - 1 : last - 1]
            )
            first = last
    if left or first <= run.n_rounds:
        none = {name: np.zeros(0, dtype=np.int64) for name in ("round", "client", "n_bytes", "examples")}
        none |= {name: np.zeros(0, dtype=bool) for name in ("up", "opens", "resync", "taken")}
        yield _build_client_traffic(left or none, first, distinct[first - 1 :])


def _extract_columns(batch: LedgerBatch) -> dict[str, NDArray[Any]]:
    """The words as what is asked of them."""
    direction, kind, fate = batch["direction"], batch["kind"], batch["fate"]
    numbers = {name: batch[name] for name in ("round", "client", "n_bytes", "examples")}
    words = {
        "up": direction.isin("up"),
        "opens": kind.isin("TASK"),
        "resync": kind.isin("RESYNC"),
        "taken": kind.isin("UPDATE") & fate.isin("received"),
    }
    return {**numbers, **words}


def _build_client_traffic(rows: Mapping[str, NDArray[Any]], first_round: int, distinct_bytes: F64) -> ClientTraffic:
    """One for each client of each round. first: the first of these rounds; distinct: bytes of each of them [R]."""
    n = int(rows["client"].max(initial=0)) + 1
    keys, at = np.unique(rows["round"] * n + rows["client"], return_inverse=True)

    def sum_groups(values: NDArray[Any], mask: NDArray[np.bool_]) -> I64:
        return np.bincount(at[mask], values[mask], minlength=len(keys)).astype(np.int64)

    up, n_bytes, ones = rows["up"], rows["n_bytes"], np.ones(len(at))
    replied = sum_groups(ones, up & ~rows["resync"]) > 0
    return ClientTraffic(
        first_round=first_round,
        round=keys // n,
        client=keys % n,
        down_bytes=sum_groups(n_bytes, ~up),
        up_bytes=sum_groups(n_bytes, up),
        down_messages=sum_groups(ones, ~up & rows["opens"]),
        up_messages=sum_groups(ones, up & rows["resync"]) + replied,
        examples=sum_groups(rows["examples"], up),
        accepted=sum_groups(ones, rows["taken"]) > 0,
        down_distinct_bytes=distinct_bytes,
    )
