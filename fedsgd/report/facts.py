"""What a ledger says, read in stretches of whole rounds, so that memory does not grow with it but for what is kept.

T trips: a client in a round; N clients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import lgamma, log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.arrays import F64, I64
from fedsgd.errors import ReportError
from fedsgd.network import Trips, Work
from fedsgd.parquet import SEGMENT_ROWS, read_batches
from fedsgd.report.runs import Run

QUICK = 0.1
Batch = Mapping[str, Any]


@dataclass(eq=False)
class Facts:
    """clients_up, clients_down: bytes of each client [N]; index_bytes, bound_bytes: of UPDATE frames that say where their
    coordinates are: what that takes, and log₂C(P, k) bits for each.

    up_messages, down_messages: of each round, that of 0, in which there is nothing, first [R + 1]; sending: seconds of encoding
    each round's downlink, likewise; silent: messages after which nothing was heard of the client. encode, decode, server:
    seconds of each UPDATE at the client, of each message there, and of each UPDATE at the server."""

    clients_up: F64
    clients_down: F64
    up_messages: F64
    down_messages: F64
    silent: int = 0
    index_bytes: int = 0
    bound_bytes: float = 0.0
    encode: list[F64] = field(default_factory=list)
    decode: list[F64] = field(default_factory=list)
    server: list[F64] = field(default_factory=list)
    sending: F64 = field(default_factory=lambda: np.zeros(0))


def read_facts(run: Run) -> Facts:
    """One pass over the ledger. ReportError if it is not the ledger of this run."""
    n_clients, parameters, ends = int(run.summary["clients"]), int(run.summary["parameters"]), run.n_rounds + 1
    facts = Facts(np.zeros(n_clients), np.zeros(n_clients), np.zeros(ends), np.zeros(ends), sending=np.zeros(ends))
    names = ["round", "client", "direction", "kind", "fate", "n_bytes", "index_bytes", "kept"]
    for batch in read_batches(run.folder / "ledger.parquet", [*names, "encode_seconds", "decode_seconds"]):
        _check(run, batch)
        up, update, received = batch["direction"].are("up"), batch["kind"].are("UPDATE"), batch["fate"].are("received")
        for rows, totals in ((up, facts.clients_up), (~up, facts.clients_down)):
            totals += np.bincount(batch["client"][rows], batch["n_bytes"][rows], minlength=n_clients)
        opens = batch["kind"].are("TASK")
        for rows, messages in ((up, facts.up_messages), (opens, facts.down_messages)):
            messages += np.bincount(batch["round"][rows], minlength=ends)
        placed = update & (batch["index_bytes"] > 0) & (batch["kept"] > 0)
        facts.index_bytes += int(batch["index_bytes"][placed].sum())
        kept, times = np.unique(batch["kept"][placed], return_counts=True)
        bits = (log2_choose(parameters, k) * n for k, n in zip(kept.tolist(), times.tolist(), strict=True))
        facts.bound_bytes += sum(bits) / 8
        _add_seconds(facts, batch, up, update, received)
    facts.silent = int((facts.down_messages - facts.up_messages).clip(min=0).sum())
    _check_whole(run, facts)
    return facts


def _add_seconds(
    facts: Facts, batch: Batch, up: NDArray[np.bool_], update: NDArray[np.bool_], received: NDArray[np.bool_]
) -> None:
    """What coding took; in the first round it takes longer, as loops are compiled then."""
    later = (batch["round"] > 1) | (len(facts.sending) == 2)
    facts.encode.append(batch["encode_seconds"][update & later])
    facts.server.append(batch["decode_seconds"][update & received & later])
    decoded = batch["decode_seconds"][~up & later]
    facts.decode.append(decoded[decoded > 0])
    facts.sending += np.bincount(batch["round"][~up], batch["encode_seconds"][~up], minlength=len(facts.sending))


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
    return (lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)) / log(2)


def work_of(run: Run, facts: Facts) -> Work:
    """The run's work in units that are no machine's: what coding took by the clock of the machine that ran it, as multiples of
    what a copy took there, to two figures. A busy machine only ever makes it longer, so the quickest tenth stands for all."""
    recorded: Any = run.summary.get("work")
    recorded = recorded if isinstance(recorded, dict) else {}
    copy, flops = (recorded.get(key) for key in ("copy_seconds", "flops_per_example"))
    if not all(isinstance(figure, int | float) and figure > 0 for figure in (copy, flops)):
        raise ReportError(f"{run.folder}/summary.json: does not say what was computed; run it again with this version")
    sending = facts.sending[2:] if run.n_rounds > 1 else facts.sending[1:]
    sending = sending[sending > 0]  # nothing is encoded in a round of nobody
    taken = (facts.encode, facts.decode, facts.server, [sending])
    copies = (_two_figures(_quick(seconds) / copy) for seconds in taken)
    return Work(int(run.summary["parameters"]), float(flops), *copies)


def _quick(parts: Sequence[F64]) -> float:
    values = np.concatenate(parts) if parts else np.zeros(0)
    return float(np.quantile(values, QUICK)) if len(values) else 0.0


def _two_figures(value: float) -> float:
    return float(f"{value:.1e}")


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
