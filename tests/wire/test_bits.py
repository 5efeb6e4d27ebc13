"""Bit strings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsgd.errors import WireError
from fedsgd.wire import bits


@given(st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 32)), max_size=200))
def test_fields_after_packing_are_unpacked_equal(fields: list[tuple[int, int]]) -> None:
    widths = np.array([w for _, w in fields], dtype=np.int64)
    values = np.array([v & ((1 << w) - 1) for v, w in fields], dtype=np.int64)
    packed = bits.pack(values, widths)
    assert len(packed) == bits.n_bytes(int(widths.sum()))
    assert (bits.unpack(packed, widths) == values).all()


@given(st.lists(st.integers(0, 300), max_size=100))
def test_unary_numbers_after_packing_are_unpacked_equal(numbers: list[int]) -> None:
    values = np.array(numbers, dtype=np.int64)
    assert (bits.unpack_unary(bits.pack_unary(values), len(values)) == values).all()


@given(st.integers(0, 2**35 - 1))
def test_varint_after_packing_is_unpacked_equal(value: int) -> None:
    packed = bits.pack_varint(value)
    assert bits.unpack_varint(packed, 0) == (value, len(packed))


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80\x00", b"\xff\xff\xff\xff\xff\x01"])
def test_malformed_varint_raises_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        bits.unpack_varint(data, 0)
