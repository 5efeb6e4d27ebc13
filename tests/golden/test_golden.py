"""Old bytes stay what they were, and can still be read."""

from __future__ import annotations

import json

import pytest

from fedsgd.compress import Context
from fedsgd.layout import Layout
from fedsgd.wire import decode_frame
from tests.golden.frames import FILE, SIZE, frames, vector

GOLDEN = json.loads(FILE.read_text())
FRAMES = {name: (op, frame) for name, op, frame in frames()}


def test_every_member_has_a_golden_frame() -> None:
    assert set(GOLDEN) == set(FRAMES)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_bytes_are_what_they_were(name: str) -> None:
    assert FRAMES[name][1].hex() == GOLDEN[name]


@pytest.mark.parametrize("name", GOLDEN)
def test_old_frames_can_be_read(name: str) -> None:
    op = FRAMES[name][0]
    frame = decode_frame(bytes.fromhex(GOLDEN[name]))
    assert (frame.header.round, frame.header.client) == (12, 5)
    if op is not None:
        ctx = Context(42, 12, 5, Layout.flat(SIZE))
        assert (op.decode(frame.sections, ctx).to_dense() == op.encode(vector(), ctx)[1].to_dense()).all()
