"""Golden frames and sections: bytes are unchanged and can be decoded."""

from __future__ import annotations

import json

import pytest

from fedsgd.compression import CompressionOperator
from fedsgd.wire import decode_frame
from tests.golden import codecs
from tests.golden.frames import CONTEXT, FILE, frames, other_frames, vector
from tests.laws.members import sections_of

GOLDEN = json.loads(FILE.read_text())
FRAMES = {name: (op, frame) for name, op, frame in frames()}
OTHER_FRAMES = dict(other_frames())


def test_golden_frames_have_every_member() -> None:
    assert set(GOLDEN) == set(FRAMES)


@pytest.mark.parametrize("name", GOLDEN)
def test_frame_of_member_has_unchanged_bytes(name: str) -> None:
    assert FRAMES[name][1].hex() == GOLDEN[name]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_frame_is_decoded(name: str) -> None:
    compressor = FRAMES[name][0]
    frame = decode_frame(bytes.fromhex(GOLDEN[name]))
    assert frame.header.round == 12
    if compressor is None:
        assert frame == OTHER_FRAMES[name]
        return
    assert frame.header.client == 5
    decoded = compressor.decode(frame.sections, CONTEXT).to_dense()
    if isinstance(compressor, CompressionOperator):
        assert (decoded == compressor.encode(vector(), CONTEXT)[1].to_dense()).all()
    else:
        assert (decoded == compressor.decode(sections_of(compressor, vector(), CONTEXT), CONTEXT).to_dense()).all()


SECTIONS = dict(codecs.sections())
CODECS = json.loads(codecs.FILE.read_text())


@pytest.mark.parametrize("name", CODECS)
def test_section_of_each_code_has_unchanged_bytes(name: str) -> None:
    assert set(SECTIONS) == set(CODECS)
    assert SECTIONS[name].hex() == CODECS[name]


def test_index_set_is_encoded_in_the_code_of_its_name() -> None:
    tags = {name: SECTIONS[f"positions, {name}"][0] for name, _, _ in codecs.list_index_sets()}
    assert tags == {"rice": 0, "bitmap": 1, "raw": 2, "absent": 3, "classes": 4, "none": 0}
    assert [SECTIONS[f"symbols, {mode}"][0] for mode in ("plain", "rANS", "fine rANS")] == [0, 1, 2]
    assert SECTIONS["values, float32"][0] == SECTIONS["values, bfloat16"][0] == SECTIONS["values, float16"][0] == 1
