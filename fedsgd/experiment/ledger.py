"""Ledger: one row for each frame that was sent, with the sizes of its encoded bytes.

| column | type | meaning |
|---|---|---|
| round | int | from 1 |
| client | int | receiver or sender; a frame that clients share is sent to each of them, and has a row for each |
| direction | str | "down" or "up" |
| kind | str | "TASK", "MODEL", "BUFFERS", "REFERENCE", "UPDATE" or "RESYNC" |
| base | int | round of the model that the frame changes, 0 for none |
| n_bytes | int | length of the frame: header_bytes + index_bytes + value_bytes + side_bytes |
| header_bytes | int | frame header, section headers, checksum |
| index_bytes | int | positions |
| value_bytes | int | values |
| side_bytes | int | scales and all other sections |
| kept | int | coordinates of a MODEL or UPDATE frame; 0 for other kinds and for refused frames |
| fate | str | of a reply: "received", "lost", "late" or "refused" (unreadable); nothing was sent: "diverged", "dropped" |
| frame_hash | str | BLAKE2b of the frame, 16 bytes in hexadecimal |
| steps | int | local steps of an UPDATE |
| examples | int | examples in the batches of these steps, counted with repetition |
| encode_seconds | float | time to encode; a shared frame has the time in its first row, and 0 in its other rows |
| decode_seconds | float | time to decode, and to add an UPDATE; a downlink message has the time in its first shared frame |

The digest, ledger_sha256 in summary.json, covers the columns up to frame_hash.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsgd.errors import WireError
from fedsgd.federation.round_loop import FrameEvent
from fedsgd.storage.parquet import TableWriter, list_values, read_batches
from fedsgd.wire import ByteBreakdown, Frame, FrameKind, breakdown_of, decode_frame

if TYPE_CHECKING:
    import pyarrow as pa

DIGEST_COLUMNS: Mapping[str, type] = {
    "round": int,
    "client": int,
    "direction": str,
    "kind": str,
    "base": int,
    "n_bytes": int,
    "header_bytes": int,
    "index_bytes": int,
    "value_bytes": int,
    "side_bytes": int,
    "kept": int,
    "fate": str,
    "frame_hash": str,
}
"""Deterministic columns, in the order in which they enter the digest."""
COLUMNS: Mapping[str, type] = {
    **DIGEST_COLUMNS,
    "steps": int,
    "examples": int,
    "encode_seconds": float,
    "decode_seconds": float,
}
"""All columns of ledger.parquet."""


@dataclass
class DirectionTotals:
    """Totals of one direction in bytes, except `frames` and `kept`, under the keys of summary.json.

    Attributes:
        received: bytes of frames whose fate is "received".
        broadcast: bytes over a broadcast channel, where a shared frame is sent once a round.
        header, index, value, side: as the columns header_bytes to side_bytes of the ledger.
        kept: number of coordinates.
    """

    frames: int = 0
    n_bytes: int = 0
    received: int = 0
    broadcast: int = 0
    header: int = 0
    index: int = 0
    value: int = 0
    side: int = 0
    kept: int = 0


def encode_canonical_row(row: Mapping[str, Any]) -> bytes:
    """Return a row as it enters the digest: the deterministic columns in one tab-separated line."""
    return ("\t".join(str(row[name]) for name in DIGEST_COLUMNS) + "\n").encode()


class _FrameInfo(NamedTuple):
    """Content of a frame, as far as the ledger needs it."""

    frame: bytes
    breakdown: ByteBreakdown
    base_round: int
    frame_hash: str


def _inspect_frame(frame: bytes, decoded: Frame | None) -> _FrameInfo:
    """Read the sizes and the header of a frame. Count an undecodable frame, which was sent too, as side information."""
    try:
        decoded = decode_frame(frame) if decoded is None else decoded
        breakdown, base = breakdown_of(decoded, len(frame)), decoded.header.base
    except WireError:
        breakdown, base = ByteBreakdown(0, 0, 0, len(frame)), 0
    return _FrameInfo(frame, breakdown, base, hashlib.blake2b(frame, digest_size=16).hexdigest())


class RoundMembers(NamedTuple):
    """Clients of a round in the ledger, ascending.

    Attributes:
        cohort: clients that were sent a message.
        accepted: clients whose update was aggregated.
        diverged: clients that sent nothing, because their update was not finite.
        dropped: stragglers that sent nothing.
    """

    cohort: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()
    diverged: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()


class Ledger:
    """Frame observer that writes the rows of a run and sums them up.

    Args:
        path: Parquet file to write; None keeps the rows in memory.
        n_kept_rows: number of rows of an earlier process that stay, after which this ledger continues; None for a new ledger.
            `replay` must be called before the first new row.

    Attributes:
        totals: totals by direction, "down" and "up".
    """

    def __init__(self, path: Path | None = None, n_kept_rows: int | None = None) -> None:
        self._writer = TableWriter(path, COLUMNS, n_kept_rows)
        self._digest = hashlib.sha256("\t".join(DIGEST_COLUMNS).encode() + b"\n")
        self._shared_frames: dict[int, _FrameInfo] = {}
        self._previous_shared_frames: dict[int, _FrameInfo] = {}
        self._round = 0
        self.totals = {"down": DirectionTotals(), "up": DirectionTotals()}

    def __repr__(self) -> str:
        totals = (f"{total.frames:,} frames {direction}, {total.n_bytes:,} bytes" for direction, total in self.totals.items())
        return f"Ledger({'; '.join(totals)})"

    def __call__(self, event: FrameEvent) -> None:
        """Write the row of one frame."""
        is_first, (_, breakdown, base, frame_hash) = self._lookup_frame(event)
        row = {
            "round": event.round,
            "client": event.client,
            "direction": event.direction,
            "kind": event.kind.name,
            "base": base,
            "n_bytes": len(event.frame),
            "header_bytes": breakdown.header,
            "index_bytes": breakdown.index,
            "value_bytes": breakdown.value,
            "side_bytes": breakdown.side,
            "kept": event.n_coordinates,
            "fate": event.delivery,
            "frame_hash": frame_hash,
            "steps": event.steps,
            "examples": event.examples_processed,
            "encode_seconds": event.encode_seconds,
            "decode_seconds": event.decode_seconds,
        }
        self._digest.update(encode_canonical_row(row))
        self._writer.append(row)
        total = self.totals[event.direction]
        total.frames += bool(event.frame)  # a client that diverged or was dropped sent nothing
        total.n_bytes += len(event.frame)
        total.received += len(event.frame) * (event.delivery == "received")
        total.broadcast += len(event.frame) * is_first
        total.header += breakdown.header
        total.index += breakdown.index
        total.value += breakdown.value
        total.side += breakdown.side
        total.kept += event.n_coordinates

    def replay(self, totals: Mapping[str, Mapping[str, int]]) -> dict[int, RoundMembers]:
        """Read the rows of an earlier process into the digest, and return the participants of each round.

        Args:
            totals: totals by direction after these rows, as in summary.json.
        """
        clients_by_role = defaultdict[str, dict[int, set[int]]](lambda: defaultdict(set))
        assert self._writer.path is not None
        for batch in read_batches(self._writer.path, list(DIGEST_COLUMNS)):
            columns = [list_values(batch[name]) for name in DIGEST_COLUMNS]
            self._digest.update(b"".join(("\t".join(map(str, row)) + "\n").encode() for row in zip(*columns, strict=True)))
            names = [*DIGEST_COLUMNS]
            members = (columns[names.index(name)] for name in ("round", "client", "kind", "fate"))
            for round, client, kind, fate in zip(*members, strict=True):
                role = "sent" if kind == FrameKind.TASK.name else fate if kind == FrameKind.UPDATE.name else ""
                clients_by_role[role][round].add(client)
        self.totals = {direction: DirectionTotals(**values) for direction, values in totals.items()}
        roles = [clients_by_role[role] for role in ("sent", "received", "diverged", "dropped")]
        rounds_in_ledger = {round for clients in roles for round in clients}
        return {round: RoundMembers(*(tuple(sorted(role.get(round, ()))) for role in roles)) for round in rounds_in_ledger}

    def sync(self) -> int:
        """Write all rows, wait until they are on disk, and return their number."""
        return self._writer.sync()

    def _lookup_frame(self, event: FrameEvent) -> tuple[bool, _FrameInfo]:
        """Return (True for the first event of this frame in its round, content of the frame).

        A shared frame is read once, also if the previous round sent it.
        """
        frame, key = event.frame, id(event.frame)
        if event.round != self._round:
            self._round, self._previous_shared_frames, self._shared_frames = event.round, self._shared_frames, {}
        if event.kind == FrameKind.UPDATE:  # after the frames of the downlink
            self._release_full_models()
        if event.kind not in (FrameKind.MODEL, FrameKind.BUFFERS, FrameKind.REFERENCE):
            return True, _inspect_frame(frame, event.decoded)
        info = self._shared_frames.get(key)
        if info is not None and info.frame is frame:
            return False, info
        previous_info = self._previous_shared_frames.get(key)
        is_repeated = previous_info is not None and previous_info.frame is frame
        info = previous_info if is_repeated and previous_info is not None else _inspect_frame(frame, event.decoded)
        self._shared_frames[key] = info
        return True, info

    def _release_full_models(self) -> None:
        """Drop the references to frames without a base round, which no later round sends: each has the size of a model."""
        for frames in (self._shared_frames, self._previous_shared_frames):
            for key in [key for key, info in frames.items() if not info.base_round]:
                del frames[key]

    @property
    def sha256(self) -> str:
        """SHA-256 over the names of the deterministic columns and the canonical rows so far."""
        return self._digest.hexdigest()

    def flush(self) -> bool:
        """Write the rows of finished rounds to disk, unless the last write is recent, and return True if rows were written.

        Rows on disk stay readable if the run is killed.
        """
        return self._writer.flush()

    def close(self) -> None:
        """Complete the file."""
        self._writer.close()

    def table(self) -> pa.Table:
        """Return all rows so far as a pyarrow table."""
        return self._writer.to_table()
