"""Codec of positions in chunks: round trips, lengths near the bound, one code for each set, and malformed sections."""

from __future__ import annotations

import itertools
import tracemalloc
from math import comb, log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsgd.errors import WireError
from fedsgd.numerics.arrays import I64
from fedsgd.wire import Section, SectionKind, bits, chunk_codec, gap_codec
from fedsgd.wire.chunk_codec import (
    COUNTED,
    FULL,
    Chunks,
    count_chunk_indices,
    decode_chunk_indices,
    encode_chunk_indices,
    max_chunk_index_bytes,
)
from tests.effort import examples


def count_positions(positions: I64, chunks: Chunks) -> I64:
    return np.bincount(positions // chunks.length, minlength=chunks.n_chunks).astype(np.int64)


def encode(positions: I64, chunks: Chunks) -> bytes:
    return encode_chunk_indices(positions, count_positions(positions, chunks), chunks)


def decode(data: bytes, chunks: Chunks) -> I64:
    return decode_chunk_indices(Section(SectionKind.INDEX, data, 31), chunks)[0]


def draw_full(n_chunks: int, length: int, k: int, seed: int = 0) -> tuple[I64, Chunks]:
    """Draw k positions in each chunk."""
    rng = np.random.default_rng(seed)
    parts = [c * length + np.sort(rng.choice(length, k, replace=False)) for c in range(n_chunks)]
    return np.concatenate(parts), Chunks(n_chunks * length, length, k, k)


@pytest.mark.slow
@examples(200)
@given(st.data(), st.integers(1, 700), st.integers(1, 300))
def test_positions_in_chunks_after_encoding_are_decoded_equal(data: st.DataObject, size: int, length: int) -> None:
    length = min(length, size)
    last_length = size - (size - 1) // length * length
    positions = np.array(sorted(data.draw(st.sets(st.integers(0, size - 1), max_size=size))), dtype=np.int64)
    counts = np.bincount(positions // length, minlength=-(-size // length))
    k, last_k = max(1, int(counts.max())), max(1, int(counts[-1]), min(last_length, int(counts.max())))
    chunks = Chunks(size, length, k, last_k)
    code = encode(positions, chunks)
    assert len(code) <= max_chunk_index_bytes(chunks)
    assert decode(code, chunks).tolist() == positions.tolist()
    assert count_chunk_indices(code, chunks) == len(positions)
    assert code[0] == (COUNTED if (counts[:-1] < k).any() or counts[-1] < last_k else FULL)


@pytest.mark.parametrize("k", [32, 64, 128])
def test_code_of_full_chunks_is_near_the_bound(k: int) -> None:
    """The bound is log₂C(4096, k): 8.32, 7.36 and 6.38 bits for a position. Tag and end of the code are included."""
    positions, chunks = draw_full(150, 4096, k)
    assert 8 * len(encode(positions, chunks)) <= 1.001 * 150 * log2(comb(4096, k))


@pytest.mark.parametrize("shift", [0, 4096 - 64])
def test_code_of_clustered_positions_has_the_length_of_uniform_positions(shift: int) -> None:
    uniform, chunks = draw_full(100, 4096, 64)
    clustered = (np.arange(100)[:, None] * 4096 + shift + np.arange(64)).ravel()
    assert abs(len(encode(clustered, chunks)) - len(encode(uniform, chunks))) <= 0.001 * len(encode(uniform, chunks))


def test_code_of_the_longest_chunk_stays_within_one_per_cent_of_the_bound() -> None:
    for k in (1, 100, 2**15, 2**16 - 100, 2**16 - 1):
        positions, chunks = draw_full(2, 2**16, k)
        assert len(encode(positions, chunks)) <= 1.01 * 2 * log2(comb(2**16, k)) / 8 + 3


def test_counts_of_chunks_with_missing_positions_take_a_few_bits() -> None:
    positions, chunks = draw_full(200, 4096, 64)
    positions = np.delete(positions, [5, 70, 6000])
    bound = 197 * log2(comb(4096, 64)) + 3 * log2(comb(4096, 63))
    assert len(encode(positions, chunks)) <= 1.001 * bound / 8 + 200 / 8 + 8


@pytest.mark.nightly
def test_every_set_of_positions_has_one_code() -> None:
    """All sections of at most two bytes of code: each is rejected, or is the code of the positions that it decodes to."""
    chunks = Chunks(8, 6, 2, 1)
    codes = {}
    for positions in itertools.product(itertools.combinations(range(6), 2), (6, 7)):
        code = encode(np.array([*positions[0], positions[1]]), chunks)
        codes[code] = [*positions[0], positions[1]]
    assert len(codes) == 30
    n_valid = 0
    for length in (1, 2):
        for body in itertools.product(range(256), repeat=length):
            data = bytes([FULL, *body])
            try:
                decoded = decode(data, chunks).tolist()
            except WireError:
                assert data not in codes
                continue
            n_valid += 1
            assert codes[data] == decoded
    assert n_valid == sum(len(code) <= 3 for code in codes)


@pytest.mark.parametrize("seed", range(3))
def test_changed_code_is_rejected_or_is_the_code_of_other_positions(seed: int) -> None:
    positions, chunks = draw_full(4, 300, 20, seed)
    code = encode(positions, chunks)
    rng = np.random.default_rng(seed)
    for _ in range(200):
        changed = bytearray(code)
        changed[int(rng.integers(1, len(code)))] ^= 1 << int(rng.integers(8))
        try:
            decoded = decode(bytes(changed), chunks)
        except WireError:
            continue
        assert encode(decoded, chunks) == bytes(changed)


@pytest.mark.slow
def test_counts_have_one_code() -> None:
    deficits = np.array([0, 3, 1])
    shortest = int(gap_codec.choose_rice_parameters(deficits)[0][0])
    for parameter in range(32):
        code = gap_codec.encode_rice(deficits, np.full(1, parameter, dtype=np.uint8))
        data = bytes([COUNTED]) + bits.pack_varint(len(code)) + code
        if parameter == shortest:
            assert count_chunk_indices(data, CHUNKS) == CHUNKS.max_k - 4
            continue
        with pytest.raises(WireError, match="the counts are not in their shortest code"):
            count_chunk_indices(data, CHUNKS)


EXAMPLE, CHUNKS = draw_full(3, 500, 10)
CODE = encode(EXAMPLE, CHUNKS)
DEFICITS = np.array([0, 11, 0])


def counted(deficits: I64, body: bytes = CODE[1:]) -> bytes:
    code = gap_codec.encode_rice(deficits, gap_codec.choose_rice_parameters(deficits)[0])
    return bytes([COUNTED]) + bits.pack_varint(len(code)) + code + body


MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "byte 31: the index section is empty"),
    "unknown tag": (b"\x02" + CODE[1:], "byte 31: tag 2 of the index section is unknown"),
    "no code": (CODE[:1], "byte 32: 0 bytes of positions"),
    "truncated": (CODE[:-1], "byte 32: the code does not end with the 30 positions"),
    "much too short": (CODE[:9], "byte 32: 8 bytes of positions, expected"),
    "trailing byte": (CODE + b"\x00", "byte 32: the code does not end with the 30 positions"),
    "many trailing bytes": (CODE + bytes(99), "bytes of positions, expected"),
    "other last byte": (CODE[:-1] + bytes([CODE[-1] ^ 128]), "byte 32: the code does not end with the 30 positions"),
    "count below 0": (counted(DEFICITS), "byte 33: chunk 1 lacks 11 of 10 positions"),
    "full counts": (counted(np.zeros(3, np.int64)), "byte 31: the counts of all chunks are full, expected tag 0"),
    "truncated counts": (bytes([COUNTED, 100]) + bytes(9), "expected 100 bytes of counts alone"),
    "counts of two chunks": (counted(np.array([1, 1])), "byte 33: "),
}


@pytest.mark.parametrize(("data", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_section_of_chunks_raises_wire_error(data: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        decode(data, CHUNKS)


def test_short_section_is_rejected_before_memory_is_allocated() -> None:
    chunks = Chunks(2**30, 4096, 64, 64)
    tracemalloc.start()
    with pytest.raises(WireError, match="9 bytes of positions, expected"):
        decode(bytes(10), chunks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**18 * 64 * 8 / 20, "a fraction of the memory of the positions; a count for each chunk is allowed"


def test_carry_over_many_bytes_equals_integer_arithmetic() -> None:
    """A long run of bytes of 255 before a carry is rare; sparse sets of all densities reach several."""
    rng = np.random.default_rng(0)
    encode_loop = chunk_codec._encode_decisions.compile()
    assert encode_loop is not None
    for _ in range(60):
        positions = np.flatnonzero(rng.random(3000) < rng.random())
        counts = np.bincount(positions // 60, minlength=50).astype(np.int64)
        expected = chunk_codec._encode_decisions.reference(positions, counts, 60, 3000)
        assert encode_loop(positions, counts, 60, 3000).tobytes() == expected.tobytes()
