"""Index codecs: round trips, lengths and malformed sections."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsgd.errors import WireError
from fedsgd.wire import Section, SectionKind, decode_indices, encode_indices, index_codec, max_index_bytes
from tests.effort import examples
from tests.wire.examples import MALFORMED_INDICES, SIZE, draw_positions


@examples(100)
@given(st.data(), st.integers(1, 5000))
def test_indices_after_encoding_are_decoded_equal(data: st.DataObject, size: int) -> None:
    positions = np.array(sorted(data.draw(st.sets(st.integers(0, size - 1), max_size=size))), dtype=np.int64)
    code = encode_indices(positions, size)
    assert len(code) <= max_index_bytes(size)
    assert (decode_indices(Section(SectionKind.INDEX, code), size) == positions).all()
    assert index_codec.count_indices(code, size) == len(positions)


@pytest.mark.parametrize(
    ("positions", "tag"),
    [
        (draw_positions(20, 2000), index_codec.RICE),
        (draw_positions(900, 2000), index_codec.BITMAP),
        (draw_positions(1990, 2000), index_codec.COMPLEMENT),
    ],
)
def test_index_codec_of_different_densities_is_the_shortest(positions: np.ndarray, tag: int) -> None:
    assert encode_indices(positions, 2000)[0] == tag


def test_raw_index_codec_for_one_huge_gap_is_used() -> None:
    code = encode_indices(np.array([65535]), 65536)
    assert code[0] == index_codec.RAW
    assert len(code) == 1 + 1 + 2


@pytest.mark.parametrize("size", [1, 2, 128, 129, 4096])
def test_index_codec_for_all_or_no_positions_uses_at_most_two_bytes(size: int) -> None:
    for positions in (np.arange(size), np.arange(0)):
        code = encode_indices(positions, size)
        assert len(code) <= 2
        assert (decode_indices(Section(SectionKind.INDEX, code), size) == positions).all()


@pytest.mark.parametrize(("density", "limit"), [(0.001, 1.03), (0.01, 1.01), (0.1, 1.03)])
def test_rice_code_of_uniform_positions_is_near_the_bound(density: float, limit: float) -> None:
    """The bound is log₂C(n, k), or 11.52, 8.15 and 4.79 bits for a position."""
    from math import lgamma, log

    n = 1_000_000
    k = round(density * n)
    bound = (lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)) / log(2)
    assert 8 * len(encode_indices(draw_positions(k, n), n)) / bound < limit + 0.01


def test_index_section_with_too_many_positions_is_rejected_before_memory_is_allocated() -> None:
    """Five bytes may encode two million positions; they must not be expanded."""
    import tracemalloc

    size = 2_000_000
    complement = encode_indices(np.arange(size), size)
    bitmap = bytes([index_codec.BITMAP]) + b"\xff" * (size // 8)
    tracemalloc.start()
    for data in (complement, bitmap):
        with pytest.raises(WireError, match="2000000 indices, expected 0 to 2000"):
            decode_indices(Section(SectionKind.INDEX, data), size, 2000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size


def test_rice_code_of_clustered_positions_is_shorter_than_of_uniform_positions() -> None:
    dense, sparse = draw_positions(4000, 20_000), 20_000 + draw_positions(400, 400_000)
    clustered = len(encode_indices(np.concatenate([dense, sparse]), 420_000))
    uniform = len(encode_indices(draw_positions(4400, 420_000), 420_000))
    assert clustered < 0.75 * uniform


def test_rice_code_of_several_blocks_has_unchanged_bytes() -> None:
    """There are three blocks of 128 gaps with different parameters; the golden frames have only one block."""
    gaps = np.arange(300) * 7919 % np.repeat([20, 150, 900], 100) + 1
    code = encode_indices(np.cumsum(gaps), 200_000)
    assert code[0] == index_codec.RICE
    assert hashlib.sha256(code).hexdigest() == BLOCKS_SHA256


BLOCKS_SHA256 = "d070b3ed042a261d8ba9443112ef4cdbde0d58c84e2cd014bd8b36e92d2037fe"


@pytest.mark.parametrize("data", MALFORMED_INDICES.values(), ids=MALFORMED_INDICES.keys())
def test_malformed_index_section_raises_wire_error(data: bytes) -> None:
    with pytest.raises(WireError, match=r"^byte \d+: "):
        decode_indices(Section(SectionKind.INDEX, data, 31), SIZE)
