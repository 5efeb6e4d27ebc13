"""The ledger: one row for each frame that crossed the wire, counted from the bytes that did.

| column | type | meaning |
|---|---|---|
| round | int | from 1 |
| client | int | whose frame it is; a frame that all clients share crosses once for each, so it has a row for each |
| direction | str | "down" or "up" |
| kind | str | "TASK", "MODEL", "REFERENCE" or "UPDATE" |
| n_bytes | int | the frame's length: header_bytes + index_bytes + value_bytes + side_bytes |
| header_bytes | int | frame header, section headers, checksum |
| index_bytes | int | positions |
| value_bytes | int | values |
| side_bytes | int | scales and all other sections |
| kept | int | coordinates that the frame carries |
| frame_hash | str | BLAKE2b of the frame, 16 bytes in hexadecimal |
| encode_seconds | float | not part of the digest |
| decode_seconds | float | not part of the digest |
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsgd.errors import WireError
from fedsgd.loop import Crossing
from fedsgd.parquet import TableWriter
from fedsgd.wire import Frame, Kind, Split, split_frame, split_of

if TYPE_CHECKING:
    import pyarrow as pa

DIGEST_COLUMNS: Mapping[str, type] = {
    "round": int,
    "client": int,
    "direction": str,
    "kind": str,
    "n_bytes": int,
    "header_bytes": int,
    "index_bytes": int,
    "value_bytes": int,
    "side_bytes": int,
    "kept": int,
    "frame_hash": str,
}
"""The deterministic columns, in the order in which they enter `sha256`."""
COLUMNS: Mapping[str, type] = {**DIGEST_COLUMNS, "encode_seconds": float, "decode_seconds": float}


@dataclass
class Traffic:
    """Bytes in one direction, by what they are for, and the frames that they came in."""

    frames: int = 0
    n_bytes: int = 0
    header: int = 0
    index: int = 0
    value: int = 0
    side: int = 0
    kept: int = 0


def canonical(row: Mapping[str, Any]) -> bytes:
    """A row as it enters the digest: the deterministic columns, tab-separated, one line."""
    return ("\t".join(str(row[name]) for name in DIGEST_COLUMNS) + "\n").encode()


def _split_and_hash(frame: bytes, opened: Frame | None) -> tuple[Split, str]:
    """A frame that cannot be read counts as side information: it crossed all the same. opened: what it decodes to, if known."""
    try:
        split = split_frame(frame) if opened is None else split_of(opened, len(frame))
    except WireError:
        split = Split(0, 0, 0, len(frame))
    return split, hashlib.blake2b(frame, digest_size=16).hexdigest()


class Ledger:
    """An observer of a run. path: where the Parquet file goes, or None to keep the rows in memory."""

    def __init__(self, path: Path | None = None) -> None:
        self._writer = TableWriter(path, COLUMNS)
        self._digest = hashlib.sha256("\t".join(DIGEST_COLUMNS).encode() + b"\n")
        self._shared: dict[Kind, tuple[bytes, Split, str]] = {}
        self.totals = {"down": Traffic(), "up": Traffic()}

    def __call__(self, crossing: Crossing) -> None:
        """Write the row of one frame."""
        split, frame_hash = self._read(crossing)
        row = {
            "round": crossing.round,
            "client": crossing.client,
            "direction": crossing.direction,
            "kind": crossing.kind.name,
            "n_bytes": len(crossing.frame),
            "header_bytes": split.header,
            "index_bytes": split.index,
            "value_bytes": split.value,
            "side_bytes": split.side,
            "kept": crossing.kept,
            "frame_hash": frame_hash,
            "encode_seconds": crossing.encode_seconds,
            "decode_seconds": crossing.decode_seconds,
        }
        self._digest.update(canonical(row))
        self._writer.append(row)
        total = self.totals[crossing.direction]
        total.frames += 1
        total.n_bytes += len(crossing.frame)
        total.header += split.header
        total.index += split.index
        total.value += split.value
        total.side += split.side
        total.kept += crossing.kept

    def _read(self, crossing: Crossing) -> tuple[Split, str]:
        """(bytes by part, hash); a frame that the whole cohort shares is read once."""
        if crossing.kind not in (Kind.MODEL, Kind.REFERENCE):
            return _split_and_hash(crossing.frame, crossing.opened)
        known = self._shared.get(crossing.kind)
        if known is None or known[0] is not crossing.frame:
            known = self._shared[crossing.kind] = crossing.frame, *_split_and_hash(crossing.frame, crossing.opened)
        return known[1:]

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
        return self._writer.table()
