"""Laws of the ledger: it records exactly the bytes of the frames that were sent."""

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


def make_events() -> list[FrameEvent]:
    """Return events of a TASK, a MODEL and two UPDATE frames, one of them ternary."""
    rng = np.random.default_rng(0)
    x, layout = rng.standard_normal(500).astype(np.float32), ParameterLayout.from_size(500)
    events = [FrameEvent(1, 3, "down", FrameKind.TASK, encode_frame(Frame(Header(FrameKind.TASK, 1, client=3))), 0, 0.0, 0.0)]
    operators = [(Dense(), FrameKind.MODEL), (TopK(0.1), FrameKind.UPDATE), (TopK(0.1, "ternary"), FrameKind.UPDATE)]
    for op, kind in operators:
        sections, update = op.encode(x, CodecContext(0, 1, 3, layout))
        frame = encode_frame(Frame(Header(kind, 1, op.codec, client=3), sections))
        events.append(
            FrameEvent(1, 3, "up" if kind is FrameKind.UPDATE else "down", kind, frame, update.n_coordinates, 0.1, 0.2)
        )
    return events


def check_every_byte(ledger: Ledger) -> None:
    """Check that n_bytes is the frame's length and the sum of its parts, and that the header is at least the smallest one."""
    events = make_events()
    for event in events:
        ledger(event)
    rows = ledger.table().to_pylist()
    for event, row in zip(events, rows, strict=True):
        parts = sum(row[f"{part}_bytes"] for part in ("header", "index", "value", "side"))
        is_correct = row["n_bytes"] == len(event.frame) == parts and row["header_bytes"] >= frame_overhead(0)
        if not is_correct:
            raise LawError(f"every byte: a frame of {len(event.frame)} bytes is booked as {row}")


def test_ledger_rows_add_up_to_frame_lengths() -> None:
    check_every_byte(Ledger())


def test_ledger_totals_are_the_sums_of_the_rows() -> None:
    ledger = Ledger()
    check_every_byte(ledger)
    rows = ledger.table().to_pylist()
    for direction in ("up", "down"):
        direction_rows = [row for row in rows if row["direction"] == direction]
        total = ledger.totals[direction]
        assert total.frames == len(direction_rows) == 2
        assert total.n_bytes == sum(row["n_bytes"] for row in direction_rows)
        assert total.kept == sum(row["kept"] for row in direction_rows)
        for part in ("header", "index", "value", "side"):
            assert getattr(total, part) == sum(row[f"{part}_bytes"] for row in direction_rows)


def test_ledger_digest_covers_rows_without_times() -> None:
    ledger = Ledger()
    check_every_byte(ledger)
    text = (
        "\t".join(DIGEST_COLUMNS).encode() + b"\n" + b"".join(encode_canonical_row(row) for row in ledger.table().to_pylist())
    )
    assert ledger.sha256 == hashlib.sha256(text).hexdigest()

    with_other_times = Ledger()
    for event in make_events():
        with_other_times(
            FrameEvent(event.round, event.client, event.direction, event.kind, event.frame, event.n_coordinates, 9.0, 9.0)
        )
    assert with_other_times.sha256 == ledger.sha256

    with_other_bytes = Ledger()
    for event in make_events():
        flipped = event.frame[:-1] + bytes([event.frame[-1] ^ 1])
        with_other_bytes(
            FrameEvent(event.round, event.client, event.direction, event.kind, flipped, event.n_coordinates, 0.0, 0.0)
        )
    assert with_other_bytes.sha256 != ledger.sha256


def test_ledger_counts_bytes_of_an_unreadable_frame() -> None:
    ledger = Ledger()
    ledger(FrameEvent(1, 0, "up", FrameKind.UPDATE, b"garbage", 0, 0.0, 0.0))
    (row,) = ledger.table().to_pylist()
    assert (row["n_bytes"], row["side_bytes"], row["header_bytes"]) == (7, 7, 0)


def test_ledger_digest_of_fixed_rows_does_not_change() -> None:
    """Users compare digests, so a change of columns, order or form needs a reason and a new constant."""
    ledger = Ledger()
    for number, client in enumerate((3, 4)):
        ledger(FrameEvent(number + 1, client, "up", FrameKind.UPDATE, bytes(range(60)), 7, 0.0, 0.0))
    assert ledger.sha256 == DIGEST


DIGEST = "ec2dd5b0fa5bcdb5054ff5769a14d454b06627f9b0c6d362e1eb66b3fb3eee6a"
