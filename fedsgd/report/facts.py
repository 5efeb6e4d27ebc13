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

from fedsgd.arrays import F64, I64
from fedsgd.errors import ReportError
from fedsgd.network import Trips
from fedsgd.parquet import SEGMENT_ROWS, read_batches
from fedsgd.report.runs import Run

REFERENCE_VALUE_BYTES = 3.5
"""Bytes of a value in a REFERENCE frame, whose number of coordinates the ledger does not have."""
DOWN = ("whole", "step", "reference")
"""Frames that clients share: MODEL with the model itself, MODEL with a difference, REFERENCE."""
Batch = Mapping[str, Any]


@dataclass
class Frames:
    """Frames of one kind. n: their number; kept: coordinates that they carry, all together."""

    n: int = 0
    kept: float = 0.0


@dataclass(eq=False)
class Seconds:
    """Seconds of coding by the clock of the machine that made the run, without the first round, in which loops are compiled.

    Attributes:
        encode: of each UPDATE at its client.
        decode: of each message at its client.
        add: of each UPDATE at the server.
        send: of each round, encoding its downlink; the round of 0, in which there is nothing, first.
    """

    encode: list[F64] = field(default_factory=list)
    decode: list[F64] = field(default_factory=list)
    add: list[F64] = field(default_factory=list)
    send: F64 = field(default_factory=lambda: np.zeros(0))


@dataclass(eq=False)
class Facts:
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

    clients_up: F64
    clients_down: F64
    up_messages: F64
    down_messages: F64
    silent: int = 0
    index_bytes: int = 0
    bound_bytes: float = 0.0
    updates: Frames = field(default_factory=Frames)
    received: dict[str, Frames] = field(default_factory=lambda: {kind: Frames() for kind in DOWN})
    encoded: dict[str, Frames] = field(default_factory=lambda: {kind: Frames() for kind in (*DOWN, "latest")})
    clock: Seconds | None = None


def read_facts(run: Run, clock: bool = False) -> Facts:
    """Read the ledger once.

    Args:
        run: the run.
        clock: whether to read what coding took by the clock, too.

    Raises:
        ReportError: it is not the ledger of this run.
    """
    n_clients, parameters, ends = int(run.summary["clients"]), int(run.summary["parameters"]), run.n_rounds + 1
    facts = Facts(np.zeros(n_clients), np.zeros(n_clients), np.zeros(ends), np.zeros(ends))
    facts.clock = Seconds(send=np.zeros(ends)) if clock else None
    names = ["round", "client", "direction", "kind", "base", "fate", "n_bytes", "index_bytes", "value_bytes", "kept"]
    kept_counts: Counter[int] = Counter()
    distinct = _Distinct(facts.encoded)
    for batch in read_batches(run.folder / "ledger.parquet", [*names, *(["encode_seconds", "decode_seconds"] * clock)]):
        _check(run, batch)
        up, update = batch["direction"].are("up"), batch["kind"].are("UPDATE")
        for rows, totals in ((up, facts.clients_up), (~up, facts.clients_down)):
            totals += np.bincount(batch["client"][rows], batch["n_bytes"][rows], minlength=n_clients)
        opens = batch["kind"].are("TASK")
        for rows, messages in ((up, facts.up_messages), (opens, facts.down_messages)):
            messages += np.bincount(batch["round"][rows], minlength=ends)
        placed = update & (batch["index_bytes"] > 0) & (batch["kept"] > 0)
        facts.index_bytes += int(batch["index_bytes"][placed].sum())
        kept_counts.update(batch["kept"][placed].tolist())
        _add_frames(facts.updates, batch["kept"][update & ~batch["fate"].are("refused")])
        distinct.add(_add_downlink(facts.received, batch, parameters))
        if facts.clock is not None:
            _add_seconds(facts.clock, batch, up, update)
    distinct.finish()
    bits = (log2_choose(parameters, k) * n for k, n in sorted(kept_counts.items()))
    facts.bound_bytes = math.fsum(bits) / 8
    facts.silent = int((facts.down_messages - facts.up_messages).clip(min=0).sum())
    _check_whole(run, facts)
    return facts


def _add_frames(frames: Frames, kept: NDArray[Any]) -> None:
    frames.n += len(kept)
    frames.kept += float(kept.sum())


def _add_downlink(received: Mapping[str, Frames], batch: Batch, parameters: int) -> F64:
    """Count the frames that clients decode; return (round, kind, base, kept) of each [F, 4], the kind by its place in DOWN."""
    model, reference = batch["kind"].are("MODEL"), batch["kind"].are("REFERENCE")
    estimate = np.minimum(parameters, batch["value_bytes"] // REFERENCE_VALUE_BYTES)
    kept = np.where(reference, estimate, batch["kept"])
    masks = (model & (batch["base"] == 0), model & (batch["base"] > 0), reference)
    parts = []
    for number, (kind, rows) in enumerate(zip(DOWN, masks, strict=True)):
        _add_frames(received[kind], kept[rows])
        parts.append(np.stack([batch["round"][rows], np.full(rows.sum(), number), batch["base"][rows], kept[rows]], axis=1))
    return np.concatenate(parts).astype(np.float64)


class _Distinct:
    """Counts the distinct frames of each round, which the ledger has once for each client that was sent one."""

    def __init__(self, encoded: Mapping[str, Frames]) -> None:
        self._encoded = encoded
        self._open = np.zeros((0, 4))

    def add(self, frames: F64) -> None:
        """Add a stretch of frames [F, 4]; only those of its last round may go on in the next stretch."""
        rows = np.unique(np.concatenate([self._open, frames]), axis=0)
        last = rows[-1, 0] if len(rows) else 0
        self._open = rows[rows[:, 0] == last]
        self._count(rows[rows[:, 0] < last])

    def finish(self) -> None:
        """Count the last round."""
        self._count(self._open)

    def _count(self, rows: F64) -> None:
        for number, kind in enumerate(DOWN):
            _add_frames(self._encoded[kind], rows[rows[:, 1] == number, 3])
        _add_frames(self._encoded["latest"], rows[(rows[:, 1] == 1) & (rows[:, 2] == rows[:, 0] - 1), 3])


def _add_seconds(clock: Seconds, batch: Batch, up: NDArray[np.bool_], update: NDArray[np.bool_]) -> None:
    """Add what coding took."""
    later = (batch["round"] > 1) | (len(clock.send) == 2)
    clock.encode.append(batch["encode_seconds"][update & later])
    clock.add.append(batch["decode_seconds"][update & batch["fate"].are("received") & later])
    opening = batch["decode_seconds"][~up & later]
    clock.decode.append(opening[opening > 0])
    clock.send += np.bincount(batch["round"][~up], batch["encode_seconds"][~up], minlength=len(clock.send))


def _check(run: Run, batch: Batch) -> None:
    """ReportError for rows of clients or rounds that this run has not."""
    for column, least, most, said in (
        ("client", 0, int(run.summary["clients"]) - 1, "summary.json says"),
        ("round", 1, run.n_rounds, "rounds.parquet has"),
    ):
        bad = next((v for v in (int(batch[column].min()), int(batch[column].max())) if not least <= v <= most), None)
        if bad is not None:
            raise ReportError(f"{run.folder}/ledger.parquet: {column} {bad}, expected {least} to {most}, as {said}")


def _check_whole(run: Run, facts: Facts) -> None:
    """ReportError for a ledger with other bytes than were counted while the run went."""
    for link, seen in (("uplink", facts.clients_up), ("downlink", facts.clients_down)):
        counted = run.rounds[f"{link}_bytes"][-1]
        if seen.sum() != counted:
            bytes_text = f"{seen.sum():,.0f} bytes of {link}, expected {counted:,.0f}, as rounds.parquet has"
            raise ReportError(f"{run.folder}/ledger.parquet: {bytes_text}: it is cut, or of another run")


def log2_choose(n: int, k: int) -> float:
    """log₂ C(n, k): the bits that which k of n it is takes at least, if all sets are alike."""
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def read_trips(run: Run, rows: int = SEGMENT_ROWS) -> Iterator[Trips]:
    """Whole rounds, some `rows` of the ledger at a time."""
    names = ["round", "client", "direction", "kind", "fate", "n_bytes", "examples"]
    left: dict[str, NDArray[Any]] = {}
    distinct = np.diff(run.cumulative("downlink_broadcast_bytes"))
    first = 1
    for batch in read_batches(run.folder / "ledger.parquet", names, rows):
        plain = _plain(batch)
        whole = {name: np.concatenate([left[name], plain[name]]) for name in plain} if left else plain
        if (np.diff(whole["round"]) < 0).any():
            raise ReportError(f"{run.folder}/ledger.parquet: its rows are not in the order of rounds")
        last = int(whole["round"][-1])
        done = whole["round"] < last
        left = {name: values[~done] for name, values in whole.items()}
        if done.any():
            yield _trips({name: values[done] for name, values in whole.items()}, first, distinct[first - 1 : last - 1])
            first = last
    if left or first <= run.n_rounds:
        none = {name: np.zeros(0, dtype=np.int64) for name in ("round", "client", "n_bytes", "examples")}
        none |= {name: np.zeros(0, dtype=bool) for name in ("up", "opens", "resync", "taken")}
        yield _trips(left or none, first, distinct[first - 1 :])


def _plain(batch: Batch) -> dict[str, NDArray[Any]]:
    """The words as what is asked of them."""
    direction, kind, fate = batch["direction"], batch["kind"], batch["fate"]
    numbers = {name: batch[name] for name in ("round", "client", "n_bytes", "examples")}
    words = {
        "up": direction.are("up"),
        "opens": kind.are("TASK"),
        "resync": kind.are("RESYNC"),
        "taken": kind.are("UPDATE") & fate.are("received"),
    }
    return {**numbers, **words}


def _trips(rows: Mapping[str, NDArray[Any]], first: int, distinct: F64) -> Trips:
    """One for each client of each round. first: the first of these rounds; distinct: bytes of each of them [R]."""
    n = int(rows["client"].max(initial=0)) + 1
    keys, at = np.unique(rows["round"] * n + rows["client"], return_inverse=True)

    def summed(values: NDArray[Any], where: NDArray[np.bool_]) -> I64:
        return np.bincount(at[where], values[where], minlength=len(keys)).astype(np.int64)

    up, n_bytes, ones = rows["up"], rows["n_bytes"], np.ones(len(at))
    replied = summed(ones, up & ~rows["resync"]) > 0
    return Trips(
        first=first,
        round=keys // n,
        client=keys % n,
        down_bytes=summed(n_bytes, ~up),
        up_bytes=summed(n_bytes, up),
        down_messages=summed(ones, ~up & rows["opens"]),
        up_messages=summed(ones, up & rows["resync"]) + replied,
        examples=summed(rows["examples"], up),
        taken=summed(ones, rows["taken"]) > 0,
        down_distinct_bytes=distinct,
    )
