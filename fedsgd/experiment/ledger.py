"""The ledger: one row for each frame that crossed the wire, counted from the bytes that did.

| column | type | meaning |
|---|---|---|
| round | int | from 1 |
| client | int | whose frame it is; a frame that all clients share crosses once for each, so it has a row for each |
| direction | str | "down" or "up" |
| kind | str | "TASK", "MODEL", "BUFFERS", "REFERENCE", "UPDATE" or "RESYNC" |
| base | int | the round of the model that it builds on, 0 for none |
| n_bytes | int | the frame's length: header_bytes + index_bytes + value_bytes + side_bytes |
| header_bytes | int | frame header, section headers, checksum |
| index_bytes | int | positions |
| value_bytes | int | values |
| side_bytes | int | scales and all other sections |
| kept | int | coordinates that the frame carries |
| fate | str | "received"; "lost": sent, and never arrived; "late": thrown away by the server; "refused": it could not be read |
| frame_hash | str | BLAKE2b of the frame, 16 bytes in hexadecimal |
| steps | int | of an UPDATE: the local steps behind it; not part of the digest |
| examples | int | of an UPDATE: what these steps took in, each example as often as it was in a batch; not part of the digest |
| encode_seconds | float | a frame that clients share has it where it crosses first; not part of the digest |
| decode_seconds | float | of an UPDATE with adding it; of a message down on its first MODEL; not part of the digest |
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsgd.errors import WireError
from fedsgd.federation.round_loop import FrameEvent
from fedsgd.storage.parquet import TableWriter
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
"""The deterministic columns, in the order in which they enter `sha256`."""
COLUMNS: Mapping[str, type] = {
    **DIGEST_COLUMNS,
    "steps": int,
    "examples": int,
    "encode_seconds": float,
    "decode_seconds": float,
}


@dataclass
class DirectionTotals:
    """Bytes that were sent in one direction, by what they are for, and the frames that they were sent in. received: those of
    frames that arrived and were taken; broadcast: what there would be to send if all who are sent the same frame in a round
    heard it at once."""

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
    """A row as it enters the digest: the deterministic columns, tab-separated, one line."""
    return ("\t".join(str(row[name]) for name in DIGEST_COLUMNS) + "\n").encode()


class _FrameInfo(NamedTuple):
    """What the bytes of a frame say."""

    frame: bytes
    breakdown: ByteBreakdown
    base_round: int
    frame_hash: str


def _inspect_frame(frame: bytes, decoded: Frame | None) -> _FrameInfo:
    """A frame that cannot be read counts as side information: it crossed all the same. opened: what it decodes to, if known."""
    try:
        decoded = decode_frame(frame) if decoded is None else decoded
        split, base = breakdown_of(decoded, len(frame)), decoded.header.base
    except WireError:
        split, base = ByteBreakdown(0, 0, 0, len(frame)), 0
    return _FrameInfo(frame, split, base, hashlib.blake2b(frame, digest_size=16).hexdigest())


class Ledger:
    """An observer of a run. path: where the Parquet file goes, or None to keep the rows in memory."""

    def __init__(self, path: Path | None = None) -> None:
        self._writer = TableWriter(path, COLUMNS)
        self._digest = hashlib.sha256("\t".join(DIGEST_COLUMNS).encode() + b"\n")
        self._shared_frames: dict[int, _FrameInfo] = {}
        self._previous_shared_frames: dict[int, _FrameInfo] = {}
        self._round = 0
        self.totals = {"down": DirectionTotals(), "up": DirectionTotals()}

    def __call__(self, event: FrameEvent) -> None:
        """Write the row of one frame."""
        first, (_, split, base, frame_hash) = self._lookup_frame(event)
        row = {
            "round": event.round,
            "client": event.client,
            "direction": event.direction,
            "kind": event.kind.name,
            "base": base,
            "n_bytes": len(event.frame),
            "header_bytes": split.header,
            "index_bytes": split.index,
            "value_bytes": split.value,
            "side_bytes": split.side,
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
        total.frames += 1
        total.n_bytes += len(event.frame)
        total.received += len(event.frame) * (event.delivery == "received")
        total.broadcast += len(event.frame) * first
        total.header += split.header
        total.index += split.index
        total.value += split.value
        total.side += split.side
        total.kept += event.n_coordinates

    def _lookup_frame(self, event: FrameEvent) -> tuple[bool, _FrameInfo]:
        """(whether this frame crosses for the first time in its round, what it says); one that clients share is read once, also
        if it was sent in the round before."""
        frame, key = event.frame, id(event.frame)
        if event.round != self._round:
            self._round, self._previous_shared_frames, self._shared_frames = event.round, self._shared_frames, {}
        if event.kind not in (FrameKind.MODEL, FrameKind.BUFFERS, FrameKind.REFERENCE):
            return True, _inspect_frame(frame, event.decoded)
        known = self._shared_frames.get(key)
        if known is not None and known.frame is frame:
            return False, known
        earlier = self._previous_shared_frames.get(key)
        self._shared_frames[key] = (
            earlier if earlier is not None and earlier.frame is frame else _inspect_frame(frame, event.decoded)
        )
        return True, self._shared_frames[key]

    @property
    def sha256(self) -> str:
        """SHA-256 over the canonical rows so far."""
        return self._digest.hexdigest()

    def flush(self) -> bool:
        """Put the rows of finished rounds where a killed run leaves them readable, every few seconds; say if it was done."""
        return self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()

    def table(self) -> pa.Table:
        """All rows so far as a pyarrow Table; `.to_pandas()` where pandas is installed."""
        return self._writer.to_table()
