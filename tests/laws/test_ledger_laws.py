"""The ledger's law: what it says is what crossed, to the byte."""

from __future__ import annotations

import hashlib

import numpy as np

from fedsgd.compression import CodecContext
from fedsgd.compression.operators.dense import Dense
from fedsgd.compression.operators.topk import TopK
from fedsgd.errors import LawError
from fedsgd.experiment.ledger import DIGEST_COLUMNS, Ledger, encode_canonical_row
from fedsgd.federation.round_loop import FrameEvent
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import Frame, FrameKind, Header, encode_frame, frame_overhead


def crossings() -> list[FrameEvent]:
    """A TASK, a MODEL and two UPDATE frames, one of them ternary."""
    rng = np.random.default_rng(0)
    x, layout = rng.standard_normal(500).astype(np.float32), ParameterLayout.from_size(500)
    out = [FrameEvent(1, 3, "down", FrameKind.TASK, encode_frame(Frame(Header(FrameKind.TASK, 1, client=3))), 0, 0.0, 0.0)]
    plans = [(Dense(), FrameKind.MODEL), (TopK(0.1), FrameKind.UPDATE), (TopK(0.1, "ternary"), FrameKind.UPDATE)]
    for op, kind in plans:
        sections, update = op.encode(x, CodecContext(0, 1, 3, layout))
        frame = encode_frame(Frame(Header(kind, 1, op.codec, client=3), sections))
        out.append(FrameEvent(1, 3, "up" if kind is FrameKind.UPDATE else "down", kind, frame, update.n_coordinates, 0.1, 0.2))
    return out


def accounts_for_every_byte(ledger: Ledger) -> None:
    """n_bytes is the frame's length, the parts add up to it, and the header is at least what a frame cannot do without."""
    sent = crossings()
    for crossing in sent:
        ledger(crossing)
    rows = ledger.table().to_pylist()
    for crossing, row in zip(sent, rows, strict=True):
        parts = sum(row[f"{part}_bytes"] for part in ("header", "index", "value", "side"))
        good = row["n_bytes"] == len(crossing.frame) == parts and row["header_bytes"] >= frame_overhead(0)
        if not good:
            raise LawError(f"every byte: a frame of {len(crossing.frame)} bytes is booked as {row}")


def test_every_byte_is_accounted_for() -> None:
    accounts_for_every_byte(Ledger())


def test_totals_are_the_sums_of_the_rows() -> None:
    ledger = Ledger()
    accounts_for_every_byte(ledger)
    rows = ledger.table().to_pylist()
    for direction in ("up", "down"):
        ours = [row for row in rows if row["direction"] == direction]
        total = ledger.totals[direction]
        assert total.frames == len(ours) == 2
        assert total.n_bytes == sum(row["n_bytes"] for row in ours)
        assert total.kept == sum(row["kept"] for row in ours)
        for part in ("header", "index", "value", "side"):
            assert getattr(total, part) == sum(row[f"{part}_bytes"] for row in ours)


def test_the_digest_is_that_of_the_rows_without_timings() -> None:
    ledger = Ledger()
    accounts_for_every_byte(ledger)
    text = (
        "\t".join(DIGEST_COLUMNS).encode() + b"\n" + b"".join(encode_canonical_row(row) for row in ledger.table().to_pylist())
    )
    assert ledger.sha256 == hashlib.sha256(text).hexdigest()

    slower = Ledger()
    for c in crossings():
        slower(FrameEvent(c.round, c.client, c.direction, c.kind, c.frame, c.n_coordinates, 9.0, 9.0))
    assert slower.sha256 == ledger.sha256

    other = Ledger()
    for c in crossings():
        flipped = c.frame[:-1] + bytes([c.frame[-1] ^ 1])
        other(FrameEvent(c.round, c.client, c.direction, c.kind, flipped, c.n_coordinates, 0.0, 0.0))
    assert other.sha256 != ledger.sha256


def test_a_frame_that_cannot_be_read_is_counted_all_the_same() -> None:
    ledger = Ledger()
    ledger(FrameEvent(1, 0, "up", FrameKind.UPDATE, b"garbage", 0, 0.0, 0.0))
    (row,) = ledger.table().to_pylist()
    assert (row["n_bytes"], row["side_bytes"], row["header_bytes"]) == (7, 7, 0)


def test_the_digest_never_changes() -> None:
    """Columns, order and form of the canonical rows are part of what users compare: a change needs a reason and a new figure."""
    ledger = Ledger()
    for number, client in enumerate((3, 4)):
        ledger(FrameEvent(number + 1, client, "up", FrameKind.UPDATE, bytes(range(60)), 7, 0.0, 0.0))
    assert ledger.sha256 == DIGEST


DIGEST = "ec2dd5b0fa5bcdb5054ff5769a14d454b06627f9b0c6d362e1eb66b3fb3eee6a"
