"""Frames: headers, lengths and malformed bytes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsgd.certification.operator_laws import example_layout
from fedsgd.compression import COMPRESSORS, CodecContext, Compressor
from fedsgd.compression.operators.topk import TopK
from fedsgd.errors import WireError
from fedsgd.wire import (
    ALL_CLIENTS,
    HEADER_OFFSETS,
    Frame,
    FrameKind,
    Header,
    Section,
    SectionKind,
    bits,
    decode_frame,
    encode_frame,
    frame_breakdown,
    frame_overhead,
)
from tests.effort import examples
from tests.wire.examples import MALFORMED_INDICES, SIZE, encode_example_update, seal


def test_frame_without_payload_has_the_documented_length() -> None:
    header = Header(FrameKind.TASK, 5, client=2)
    assert len(encode_frame(Frame(header))) == frame_overhead(0) == 30
    assert len(encode_frame(Frame(header, (Section(SectionKind.VALUE, b"abc"),)))) == frame_overhead(0) + 1 + 1 + 3


def test_header_after_encoding_is_decoded_equal() -> None:
    header = Header(FrameKind.MODEL, 2**32 - 1, 255, 4, 3, ALL_CLIENTS, 600)
    frame = decode_frame(encode_frame(Frame(header, (Section(SectionKind.SCALE, b""), Section(SectionKind.INDEX, b"xy")))))
    assert frame.header == header
    assert [(s.kind, bytes(s.data), s.offset) for s in frame.sections] == [
        (SectionKind.SCALE, b"", 28),
        (SectionKind.INDEX, b"xy", 30),
    ]


def test_frame_with_field_out_of_range_raises_value_error() -> None:
    for header in (
        Header(FrameKind.TASK, -1),
        Header(FrameKind.TASK, 1, examples=2**32),
        Header(FrameKind.UPDATE, 1, codec=256),
        Header(FrameKind.UPDATE, 1, codec=-1),
    ):
        with pytest.raises(ValueError, match="expected a codec from 0 to 255, other fields from 0"):
            encode_frame(Frame(header))


def test_frame_breakdown_adds_up_to_the_length() -> None:
    frame = encode_example_update()
    breakdown = frame_breakdown(frame)
    assert breakdown.header + breakdown.index + breakdown.value + breakdown.side == len(frame)
    assert (breakdown.header, breakdown.value, breakdown.side) == (frame_overhead(0) + 3 * 2, bits.n_bytes(100), 4)


def craft_frame(change: Callable[[bytearray], None]) -> bytes:
    """Return an example frame after a change, with a valid checksum."""
    body = bytearray(encode_example_update()[:-4])
    change(body)
    return seal(bytes(body))


FAULTS: dict[str, Callable[[bytearray], None]] = {
    "magic": lambda b: b.__setitem__(0, 0),
    "version": lambda b: b.__setitem__(2, 9),
    "kind": lambda b: b.__setitem__(3, 77),
    "fewer sections": lambda b: b.__setitem__(5, 2),
    "more sections": lambda b: b.__setitem__(5, 4),
    "unknown section kind": lambda b: b.__setitem__(26, 200),
    "length beyond the end": lambda b: b.__setitem__(slice(27, 31), b"\xff\xff\xff\xff"),
    "length too short": lambda b: b.__setitem__(slice(27, 31), b"\x01\x00\x00\x00"),
    "bytes at the end": lambda b: b.extend(b"more"),
    "truncated": lambda b: b.__delitem__(slice(len(b) - 3, len(b))),
}


@pytest.mark.parametrize("change", FAULTS.values(), ids=FAULTS.keys())
def test_malformed_frame_with_valid_checksum_raises_wire_error(change: Callable[[bytearray], None]) -> None:
    with pytest.raises(WireError, match=r"^byte \d+: "):
        decode_frame(craft_frame(change))


def test_frame_longer_than_max_bytes_raises_wire_error() -> None:
    with pytest.raises(WireError, match="expected at most 100"):
        decode_frame(encode_example_update(), max_bytes=100)


def decode_all(data: bytes, op: Compressor) -> np.ndarray:
    """Decode a frame and add its update to an aggregate, as the server does."""
    out = np.zeros(SIZE)
    frame = decode_frame(data, frame_overhead(8) + op.max_bytes(example_layout(SIZE)))
    op.decode(frame.sections, CodecContext(0, 7, 3, example_layout(SIZE))).add_to(out, 1.0)
    return out


def replace_index_section(data: bytes) -> bytes:
    """Return a frame in which only the index section is malformed, so that the index decoder is reached."""
    frame = decode_frame(encode_example_update())
    return encode_frame(Frame(frame.header, (Section(SectionKind.INDEX, data), *frame.sections[1:])))


@pytest.mark.slow
def test_mutated_frames_always_raise_wire_error() -> None:
    """Frames are truncated, extended, random, or malformed with a valid checksum, or have changed bytes."""
    rng = np.random.default_rng(0)
    op = TopK(0.05, "ternary")
    valid = encode_example_update(op)
    malformed_indices = list(MALFORMED_INDICES.values())
    n_errors = 0
    for i in range(10_000):
        data = bytearray(valid)
        mutation = i % 5
        if mutation == 0:
            data = data[: rng.integers(0, len(data))]
        elif mutation == 1:
            data += rng.bytes(rng.integers(1, 50))
        elif mutation == 2:
            for position in rng.choice(len(data), rng.integers(1, 6), replace=False):
                data[position] ^= int(rng.integers(1, 256))
        elif mutation == 3:
            data = bytearray(rng.bytes(rng.integers(0, 2 * len(valid))))
        elif i % 10 == 4:
            data = bytearray(replace_index_section(malformed_indices[i // 10 % len(malformed_indices)]))
        else:
            names = list(FAULTS)
            data = bytearray(craft_frame(FAULTS[names[int(rng.integers(len(names)))]]))
        if bytes(data) == valid:
            raise AssertionError("the mutation changed nothing")
        try:
            decode_all(bytes(data), op)
        except WireError:
            n_errors += 1
    assert n_errors == 10_000


@pytest.mark.sampled
@pytest.mark.parametrize("name", list(COMPRESSORS))
@examples(30, nightly=100)
@given(data=st.data())
def test_mutated_frame_with_valid_checksum_decodes_to_finite_vector_or_raises_wire_error(
    name: str, data: st.DataObject
) -> None:
    op = COMPRESSORS[name]()
    body = bytearray(encode_example_update(op)[:-4])
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(26, min(len(body) - 1, 400)))
        body[position] = data.draw(st.integers(0, 255))
    try:
        out = decode_all(seal(bytes(body)), op)
    except WireError:
        return
    assert np.isfinite(out).all()


def test_header_offsets_are_the_positions_of_the_fields() -> None:
    frame = encode_frame(Frame(Header(FrameKind.UPDATE, 0x0A0B0C0D, 7, 0x01020304, 5, 0x11223344, 9)))
    assert HEADER_OFFSETS["examples"] + 4 == 26
    for name, value in (("round", 0x0A0B0C0D), ("base", 0x01020304), ("client", 0x11223344)):
        offset = HEADER_OFFSETS[name]
        assert int.from_bytes(frame[offset : offset + 4], "little") == value
