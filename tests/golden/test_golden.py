"""Old bytes stay what they were, and can still be read."""

from __future__ import annotations

import json

import pytest

from fedsgd.compression import CompressionOperator
from fedsgd.wire import decode_frame
from tests.golden import codecs
from tests.golden.frames import CONTEXT, FILE, frames, others, vector
from tests.laws.members import sections_of

GOLDEN = json.loads(FILE.read_text())
FRAMES = {name: (op, frame) for name, op, frame in frames()}
OTHERS = dict(others())


def test_every_member_has_a_golden_frame() -> None:
    assert set(GOLDEN) == set(FRAMES)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_bytes_are_what_they_were(name: str) -> None:
    assert FRAMES[name][1].hex() == GOLDEN[name]


@pytest.mark.parametrize("name", GOLDEN)
def test_old_frames_can_be_read(name: str) -> None:
    made = FRAMES[name][0]
    frame = decode_frame(bytes.fromhex(GOLDEN[name]))
    assert frame.header.round == 12
    if made is None:
        assert frame == OTHERS[name]
        return
    assert frame.header.client == 5
    decoded = made.decode(frame.sections, CONTEXT).to_dense()
    if isinstance(made, CompressionOperator):
        assert (decoded == made.encode(vector(), CONTEXT)[1].to_dense()).all()
    else:
        assert (decoded == made.decode(sections_of(made, vector(), CONTEXT), CONTEXT).to_dense()).all()


SECTIONS = dict(codecs.sections())
CODECS = json.loads(codecs.FILE.read_text())


@pytest.mark.parametrize("name", CODECS)
def test_each_way_to_code_gives_the_bytes_that_it_gave(name: str) -> None:
    assert set(SECTIONS) == set(CODECS)
    assert SECTIONS[name].hex() == CODECS[name]


def test_each_support_is_coded_the_way_that_it_stands_for() -> None:
    tags = {name: SECTIONS[f"positions, {name}"][0] for name, _, _ in codecs.supports()}
    assert tags == {"rice": 0, "bitmap": 1, "raw": 2, "absent": 3, "classes": 4, "none": 0}
    assert [SECTIONS[f"symbols, {form}"][0] for form in ("plain", "rANS", "fine rANS")] == [0, 1, 2]
    assert SECTIONS["values, float32"][0] == SECTIONS["values, bfloat16"][0] == SECTIONS["values, float16"][0] == 1
