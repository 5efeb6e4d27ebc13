"""Frames, index codecs and value codecs: round trips, exact sizes, and input that is out to hurt."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
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
    ValueFormat,
    bits,
    decode_frame,
    decode_indices,
    decode_values,
    encode_frame,
    encode_indices,
    encode_values,
    frame_breakdown,
    frame_overhead,
    index_codec,
    max_index_bytes,
)
from fedsgd.wire.rans import decode_symbols, encode_symbols
from tests.laws.members import sections_of

SIZE = 2000


def sealed(body: bytes) -> bytes:
    """The bytes with a checksum that holds: what someone who means harm would send."""
    return body + struct.pack("<I", zlib.crc32(body))


def support(k: int, size: int, seed: int = 0) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).choice(size, k, replace=False))


def a_frame(op: Compressor | None = None) -> bytes:
    """An UPDATE frame over SIZE parameters."""
    op = op or TopK(0.05, "ternary")
    x = np.random.default_rng(1).standard_normal(SIZE).astype(np.float32)
    sections = sections_of(op, x, CodecContext(0, 7, 3, example_layout(SIZE)))
    return encode_frame(Frame(Header(FrameKind.UPDATE, 7, op.codec, 7, 0, 3, 60), sections))


# ----------------------------------------------------------------------------------------------------------------------- bits


@given(st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 32)), max_size=200))
def test_fixed_width_fields_round_trip(fields: list[tuple[int, int]]) -> None:
    widths = np.array([w for _, w in fields], dtype=np.int64)
    values = np.array([v & ((1 << w) - 1) for v, w in fields], dtype=np.int64)
    packed = bits.pack(values, widths)
    assert len(packed) == bits.n_bytes(int(widths.sum()))
    assert (bits.unpack(packed, widths) == values).all()


@given(st.lists(st.integers(0, 300), max_size=100))
def test_unary_numbers_round_trip(numbers: list[int]) -> None:
    values = np.array(numbers, dtype=np.int64)
    assert (bits.unpack_unary(bits.pack_unary(values), len(values)) == values).all()


@given(st.integers(0, 2**35 - 1))
def test_varints_round_trip(value: int) -> None:
    packed = bits.pack_varint(value)
    assert bits.unpack_varint(packed, 0) == (value, len(packed))


@pytest.mark.parametrize("bad", [b"", b"\x80", b"\x80\x00", b"\xff\xff\xff\xff\xff\x01"])
def test_bad_varints_are_refused(bad: bytes) -> None:
    with pytest.raises(WireError):
        bits.unpack_varint(bad, 0)


# -------------------------------------------------------------------------------------------------------------------- indices


@settings(max_examples=300)
@given(st.data(), st.integers(1, 5000))
def test_indices_round_trip(data: st.DataObject, size: int) -> None:
    chosen = np.array(sorted(data.draw(st.sets(st.integers(0, size - 1), max_size=size))), dtype=np.int64)
    coded = encode_indices(chosen, size)
    assert len(coded) <= max_index_bytes(size)
    assert (decode_indices(Section(SectionKind.INDEX, coded), size) == chosen).all()
    assert index_codec.count_indices(coded, size) == len(chosen)


@pytest.mark.parametrize(
    ("chosen", "tag"),
    [
        (support(20, 2000), index_codec.RICE),
        (support(900, 2000), index_codec.BITMAP),
        (support(1990, 2000), index_codec.COMPLEMENT),
    ],
)
def test_the_shortest_codec_is_chosen(chosen: np.ndarray, tag: int) -> None:
    assert encode_indices(chosen, 2000)[0] == tag


def test_raw_indices_win_where_one_gap_is_huge() -> None:
    coded = encode_indices(np.array([65535]), 65536)
    assert coded[0] == index_codec.RAW
    assert len(coded) == 1 + 1 + 2


@pytest.mark.parametrize("size", [1, 2, 128, 129, 4096])
def test_all_and_none_cost_a_few_bytes(size: int) -> None:
    for chosen in (np.arange(size), np.arange(0)):
        coded = encode_indices(chosen, size)
        assert len(coded) <= 2
        assert (decode_indices(Section(SectionKind.INDEX, coded), size) == chosen).all()


@pytest.mark.parametrize(("density", "limit"), [(0.001, 1.03), (0.01, 1.01), (0.1, 1.03)])
def test_rice_is_near_the_bound_on_uniform_supports(density: float, limit: float) -> None:
    """log₂C(n, k) by Stirling's series; the measured design says 11.52, 8.15 and 4.79 bits an index."""
    from math import lgamma, log

    n = 1_000_000
    k = round(density * n)
    bound = (lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)) / log(2)
    assert 8 * len(encode_indices(support(k, n), n)) / bound < limit + 0.01


def test_more_indices_than_expected_are_refused_before_they_are_expanded() -> None:
    """Five bytes that stand for two million positions must not become two million positions."""
    import tracemalloc

    size = 2_000_000
    everything = encode_indices(np.arange(size), size)
    bitmap = bytes([index_codec.BITMAP]) + b"\xff" * (size // 8)
    tracemalloc.start()
    for data in (everything, bitmap):
        with pytest.raises(WireError, match="2000000 indices, expected 0 to 2000"):
            decode_indices(Section(SectionKind.INDEX, data), size, 2000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size


def test_blocks_of_their_own_parameter_pay_on_clustered_supports() -> None:
    dense, sparse = support(4000, 20_000), 20_000 + support(400, 400_000)
    together = len(encode_indices(np.concatenate([dense, sparse]), 420_000))
    uniform = len(encode_indices(support(4400, 420_000), 420_000))
    assert together < 0.75 * uniform


def test_the_bytes_of_several_blocks_never_change() -> None:
    """Three blocks of 128 gaps with parameters of their own; the golden frames are too short for more than one."""
    gaps = np.arange(300) * 7919 % np.repeat([20, 150, 900], 100) + 1
    coded = encode_indices(np.cumsum(gaps), 200_000)
    assert coded[0] == index_codec.RICE
    assert hashlib.sha256(coded).hexdigest() == BLOCKS


BLOCKS = "d070b3ed042a261d8ba9443112ef4cdbde0d58c84e2cd014bd8b36e92d2037fe"

HOSTILE_INDICES: dict[str, bytes] = {
    "empty": b"",
    "unknown codec": b"\x09\x01",
    "more indices than parameters": bytes([index_codec.RAW]) + bits.pack_varint(SIZE + 1),
    "a gap beyond the model": bytes([index_codec.RICE, 1]) + bits.pack(np.array([12]), np.array([5])) + b"\xff\x0f" + b"\x01",
    "unary bits missing": bytes([index_codec.RICE, 5]) + b"\x00",
    "bytes behind the unary bits": encode_indices(np.array([5]), SIZE) + b"\x00",
    "padding not zero": bytes([index_codec.RICE, 1, 0b11100000 | 2, 0, 1]),
    "raw out of range": bytes([index_codec.RAW, 1]) + struct.pack("<H", SIZE),
    "raw not ascending": bytes([index_codec.RAW, 2]) + struct.pack("<HH", 9, 9),
    "raw too short": bytes([index_codec.RAW, 2, 0, 0]),
    "bitmap too short": bytes([index_codec.BITMAP]) + bytes(10),
    "bitmap beyond the model": bytes([index_codec.BITMAP]) + b"\xff" * 249 + b"\xff\x01",
    "longer than a bitmap": bytes([index_codec.BITMAP]) + bytes(251),
    "varint without end": bytes([index_codec.RICE, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80]),
    "a huge quotient": bytes([index_codec.RICE, 1, 31]) + b"\xff\xff\xff\x7f" + bytes(200) + b"\x01",
}


@pytest.mark.parametrize("bad", HOSTILE_INDICES.values(), ids=HOSTILE_INDICES.keys())
def test_hostile_index_sections_are_refused(bad: bytes) -> None:
    with pytest.raises(WireError, match=r"^byte \d+: "):
        decode_indices(Section(SectionKind.INDEX, bad, 31), SIZE)


# --------------------------------------------------------------------------------------------------------------------- values


def skewed(n: int, common: float, rare: int) -> np.ndarray:
    """n symbols: zeros with a probability of `common`, else one of so many others."""
    rng = np.random.default_rng([n, rare])
    return np.where(rng.random(n) < common, 0, 1 + rng.integers(0, rare, n)).astype(np.uint8)


@pytest.mark.parametrize("n", [31, 32, 500, 4095, 4096, 100_000])
@pytest.mark.parametrize("common", [0.0, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("rare", [1, 40, 255])
def test_fine_frequencies_are_sent_only_where_they_are_shorter(n: int, common: float, rare: int) -> None:
    symbols = skewed(n, common, rare)
    coarse, fine = encode_symbols(symbols), encode_symbols(symbols, frequency_bits=15)
    assert coarse[0] in (0, 1), "never unless asked for: old bytes stay what they were"
    assert fine == coarse or (fine[0] == 2 and len(fine) < len(coarse))
    for coded in (coarse, fine):
        assert (decode_symbols(coded, n) == symbols).all()


def test_fine_frequencies_bring_rare_symbols_near_their_entropy() -> None:
    """Forty symbols of probability 1/40,000 each: a frequency of 12 bits cannot be below 1/4096."""
    symbols = skewed(1_000_000, 0.999, 40)
    counts = np.bincount(symbols)
    entropy = float(-(counts * np.log2(counts / len(symbols))).sum()) / 8
    coarse, fine = encode_symbols(symbols), encode_symbols(symbols, frequency_bits=15)
    assert (coarse[0], fine[0]) == (1, 2)
    assert len(coarse) / entropy == pytest.approx(1.6, abs=0.01)
    assert len(fine) / entropy == pytest.approx(1.05, abs=0.02)
    assert encode_symbols(symbols, entropy=False, frequency_bits=15)[0] == 0


@pytest.mark.parametrize("mode", [1, 2])
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda c: bytes([3]) + c[1:], "unknown mode 3"),
        (lambda c: bytes([3 - c[0]]) + c[1:], "add up to|a state|does not end"),
        (lambda c: c[:-2], "does not end"),
        (lambda c: c + bytes(2), "does not end"),
    ],
)
def test_hostile_symbols_are_refused(mode: int, spoil: Callable[[bytes], bytes], why: str) -> None:
    symbols = skewed(30_000, 0.999, 50)
    coded = encode_symbols(symbols, frequency_bits=12 if mode == 1 else 15)
    assert coded[0] == mode
    with pytest.raises(WireError, match=why):
        decode_symbols(spoil(coded), len(symbols))


def test_bfloat16_rounds_to_nearest_even_and_never_to_infinity() -> None:
    from torch import bfloat16, float32, tensor

    rng = np.random.default_rng(0)
    x = (rng.standard_normal(5000) * 10.0 ** rng.integers(-30, 30, 5000)).astype(np.float32)
    ours = encode_values(x, "bfloat16")[1]
    assert (ours == tensor(x).to(bfloat16).to(float32).numpy()).all()
    largest = np.array([3.4028235e38, -3.4028235e38], dtype=np.float32)
    assert np.isfinite(encode_values(largest, "bfloat16")[1]).all()


def test_ternary_is_sign_times_mean_magnitude() -> None:
    x = np.array([3.0, -1.0, 2.0, -6.0], dtype=np.float32)
    sections, decoded = encode_values(x, "ternary")
    assert decoded.tolist() == [3.0, -3.0, 3.0, -3.0]
    assert [len(s.data) for s in sections] == [1, 4]


def values_of(parts: list[tuple[SectionKind, bytes]]) -> tuple[Section, ...]:
    return tuple(Section(part, data) for part, data in parts)


PLAIN = b"\x00"  # the mode of values that are not entropy-coded
HOSTILE_VALUES: dict[str, tuple[str, list[tuple[SectionKind, bytes]]]] = {
    "no section": ("float32", []),
    "wrong part": ("float32", [(SectionKind.SCALE, bytes(12))]),
    "one too many": ("float32", [(SectionKind.VALUE, bytes(12)), (SectionKind.SCALE, bytes(4))]),
    "too short": ("float32", [(SectionKind.VALUE, PLAIN + bytes(11))]),
    "not a number": ("float32", [(SectionKind.VALUE, PLAIN + struct.pack("<fff", 1, float("nan"), 1))]),
    "infinite": ("float32", [(SectionKind.VALUE, PLAIN + struct.pack("<fff", 1, 1, float("-inf")))]),
    "infinite bfloat16": ("bfloat16", [(SectionKind.VALUE, PLAIN + struct.pack("<HHH", 0, 0x7F80, 0))]),
    "no scale": ("ternary", [(SectionKind.VALUE, b"\x01")]),
    "scale too short": ("ternary", [(SectionKind.VALUE, b"\x01"), (SectionKind.SCALE, bytes(2))]),
    "scale zero": ("ternary", [(SectionKind.VALUE, b"\x01"), (SectionKind.SCALE, bytes(4))]),
    "scale negative": ("ternary", [(SectionKind.VALUE, b"\x01"), (SectionKind.SCALE, struct.pack("<f", -1))]),
    "scale infinite": ("ternary", [(SectionKind.VALUE, b"\x01"), (SectionKind.SCALE, struct.pack("<f", float("inf")))]),
    "sign padding": ("ternary", [(SectionKind.VALUE, b"\x08"), (SectionKind.SCALE, struct.pack("<f", 1))]),
}


@pytest.mark.parametrize(("form", "parts"), HOSTILE_VALUES.values(), ids=HOSTILE_VALUES.keys())
def test_hostile_value_sections_are_refused(form: str, parts: list[tuple[SectionKind, bytes]]) -> None:
    assert form in get_args(ValueFormat)
    with pytest.raises(WireError):
        decode_values(values_of(parts), 3, form)


def test_the_same_values_unharmed_are_taken() -> None:
    assert decode_values(values_of([(SectionKind.VALUE, PLAIN + bytes(12))]), 3, "float32").tolist() == [0, 0, 0]
    assert decode_values(
        values_of([(SectionKind.VALUE, b"\x01"), (SectionKind.SCALE, struct.pack("<f", 1))]), 3, "ternary"
    ).tolist() == [
        -1,
        1,
        1,
    ]


# --------------------------------------------------------------------------------------------------------------------- frames


def test_a_frame_costs_what_its_docstring_says() -> None:
    header = Header(FrameKind.TASK, 5, client=2)
    assert len(encode_frame(Frame(header))) == frame_overhead(0) == 30
    assert len(encode_frame(Frame(header, (Section(SectionKind.VALUE, b"abc"),)))) == frame_overhead(0) + 1 + 1 + 3


def test_a_header_survives() -> None:
    header = Header(FrameKind.MODEL, 2**32 - 1, 255, 4, 3, ALL_CLIENTS, 600)
    frame = decode_frame(encode_frame(Frame(header, (Section(SectionKind.SCALE, b""), Section(SectionKind.INDEX, b"xy")))))
    assert frame.header == header
    assert [(s.kind, bytes(s.data), s.offset) for s in frame.sections] == [
        (SectionKind.SCALE, b"", 28),
        (SectionKind.INDEX, b"xy", 30),
    ]


def test_what_does_not_fit_is_not_encoded() -> None:
    with pytest.raises(ValueError, match="expected fields from 0"):
        encode_frame(Frame(Header(FrameKind.TASK, -1)))
    with pytest.raises(ValueError, match="expected fields from 0"):
        encode_frame(Frame(Header(FrameKind.TASK, 1, examples=2**32)))


def test_split_adds_up() -> None:
    frame = a_frame()
    split = frame_breakdown(frame)
    assert split.header + split.index + split.value + split.side == len(frame)
    assert (split.header, split.value, split.side) == (frame_overhead(0) + 3 * 2, bits.n_bytes(100), 4)


def crafted(change: Callable[[bytearray], None]) -> bytes:
    """A good frame with something wrong in it and a checksum that holds."""
    body = bytearray(a_frame()[:-4])
    change(body)
    return sealed(bytes(body))


CRAFTED: dict[str, Callable[[bytearray], None]] = {
    "magic": lambda b: b.__setitem__(0, 0),
    "version": lambda b: b.__setitem__(2, 9),
    "kind": lambda b: b.__setitem__(3, 77),
    "fewer sections": lambda b: b.__setitem__(5, 2),
    "more sections": lambda b: b.__setitem__(5, 4),
    "a part that is none": lambda b: b.__setitem__(26, 200),
    "a length beyond the end": lambda b: b.__setitem__(slice(27, 31), b"\xff\xff\xff\xff"),
    "a length too short": lambda b: b.__setitem__(slice(27, 31), b"\x01\x00\x00\x00"),
    "bytes at the end": lambda b: b.extend(b"more"),
    "cut short": lambda b: b.__delitem__(slice(len(b) - 3, len(b))),
}


@pytest.mark.parametrize("change", CRAFTED.values(), ids=CRAFTED.keys())
def test_frames_with_a_good_checksum_and_a_bad_structure(change: Callable[[bytearray], None]) -> None:
    with pytest.raises(WireError, match=r"^byte \d+: "):
        decode_frame(crafted(change))


def test_a_frame_longer_than_the_model_allows_is_not_looked_at() -> None:
    with pytest.raises(WireError, match="expected at most 100"):
        decode_frame(a_frame(), max_bytes=100)


def decode_all(data: bytes, op: Compressor) -> np.ndarray:
    """As the server does: the frame, then the update, then into the aggregate."""
    out = np.zeros(SIZE)
    frame = decode_frame(data, frame_overhead(8) + op.max_bytes(example_layout(SIZE)))
    op.decode(frame.sections, CodecContext(0, 7, 3, example_layout(SIZE))).add_to(out, 1.0)
    return out


HOSTILE = list(HOSTILE_INDICES.values())


def resealed_index(bad: bytes) -> bytes:
    """A frame that is sound but for its index section, so that it gets as far as the index decoder."""
    frame = decode_frame(a_frame())
    return encode_frame(Frame(frame.header, (Section(SectionKind.INDEX, bad), *frame.sections[1:])))


def test_ten_thousand_hostile_frames_are_ten_thousand_wire_errors() -> None:
    """Truncated, extended, flipped, shuffled, random, and structurally wrong with a good checksum."""
    rng = np.random.default_rng(0)
    op = TopK(0.05, "ternary")
    good = a_frame(op)
    refused = 0
    for i in range(10_000):
        data = bytearray(good)
        way = i % 5
        if way == 0:
            data = data[: rng.integers(0, len(data))]
        elif way == 1:
            data += rng.bytes(rng.integers(1, 50))
        elif way == 2:
            for at in rng.choice(len(data), rng.integers(1, 6), replace=False):
                data[at] ^= int(rng.integers(1, 256))
        elif way == 3:
            data = bytearray(rng.bytes(rng.integers(0, 2 * len(good))))
        elif i % 10 == 4:
            data = bytearray(resealed_index(HOSTILE[i // 10 % len(HOSTILE)]))
        else:
            names = list(CRAFTED)
            data = bytearray(crafted(CRAFTED[names[int(rng.integers(len(names)))]]))
        if bytes(data) == good:
            raise AssertionError("the mutation changed nothing")
        try:
            decode_all(bytes(data), op)
        except WireError:
            refused += 1
    assert refused == 10_000


@pytest.mark.parametrize("name", list(COMPRESSORS))
@settings(max_examples=300)
@given(data=st.data())
def test_a_mutated_frame_with_a_good_checksum_is_refused_or_harmless(name: str, data: st.DataObject) -> None:
    """Nobody can prove a frame honest; but it decodes to something finite of the right size, or it is a WireError."""
    op = COMPRESSORS[name]()
    body = bytearray(a_frame(op)[:-4])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(26, min(len(body) - 1, 400)))
        body[at] = data.draw(st.integers(0, 255))
    try:
        out = decode_all(sealed(bytes(body)), op)
    except WireError:
        return
    assert np.isfinite(out).all()


@pytest.mark.parametrize(("form", "width"), [("float32", 4), ("bfloat16", 2)])
def test_a_value_that_is_not_finite_is_named(form: ValueFormat, width: int) -> None:
    body = np.array([1, np.inf, np.nan], "<f4").view("<u4")
    data = (body >> (8 * (4 - width))).astype(f"<u{width}").tobytes()
    with pytest.raises(WireError, match="byte 100: value 1 is inf"):
        decode_values((Section(SectionKind.VALUE, data, 100),), 3, form, entropy=False)


def test_header_offsets_are_where_the_fields_stand() -> None:
    frame = encode_frame(Frame(Header(FrameKind.UPDATE, 0x0A0B0C0D, 7, 0x01020304, 5, 0x11223344, 9)))
    assert HEADER_OFFSETS["examples"] + 4 == 26
    for name, value in (("round", 0x0A0B0C0D), ("base", 0x01020304), ("client", 0x11223344)):
        at = HEADER_OFFSETS[name]
        assert int.from_bytes(frame[at : at + 4], "little") == value
