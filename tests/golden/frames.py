"""Frames with fixed bytes: one for each codec and form of its sections, and one of each other kind.

`python -m tests.golden.frames` writes them. A new compressor adds frames. A change of an existing frame is a change of the format
and needs a new version. Inputs are computed with plain arithmetic, so that they are equal on every machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedsgd.certification.operator_laws import example_layout
from fedsgd.compression import COMPRESSORS, CodecContext, CompressionScheme, Compressor
from fedsgd.compression.operators.dense import Dense
from fedsgd.compression.operators.randk import RandK
from fedsgd.compression.operators.sparsifier import encode_sparse
from fedsgd.federation.buffers import encode_buffer_section
from fedsgd.federation.downlink import ASSIGN_CODEC
from fedsgd.numerics.arrays import F32
from fedsgd.wire import ALL_CLIENTS, Frame, FrameKind, Header, encode_frame
from tests.laws.members import name_of, operators, sections_of

FILE = Path(__file__).parent / "frames.json"
SIZE = 600
CLASS_NAMES = {
    "Dense": "DenseOperator",
    "NaturalCompression": "Natural",
    "MemorylessScheme": "Plain",
    "StaleResidualPolicy": "Ageing",
    "LayerRule": "Rule",
}
"""Name of a class in the file, by its present name. The file keeps the names of the time when a frame was added."""
LATER_FIELDS = re.compile(r",chunk=None|,scales=None")
"""Fields at their defaults that were added after the first frames of a class."""
EARLIER_NAMES = re.compile(rf"\b({'|'.join(CLASS_NAMES)})\(")
CONTEXT = CodecContext(42, 12, 5, example_layout(SIZE))
"""Context with a matrix, a vector and a scalar, which positions codecs treat differently."""


def vector() -> F32:
    """Return the cubes of 600 values in (-1, 1), with positions zeros and ties."""
    x = (np.arange(SIZE) * 7919 % 1009 / 504 - 1) ** 3
    x[::50] = 0
    return x.astype(np.float32)


def compressors() -> Iterator[Compressor]:
    """Yield all operators of the laws, and all schemes at their defaults."""
    yield from operators()
    yield from (COMPRESSORS[name]() for name in COMPRESSORS if issubclass(COMPRESSORS[name], CompressionScheme))


def other_frames() -> Iterator[tuple[str, Frame]]:
    """Yield the name and the frame of each kind other than a compressor's UPDATE."""
    x, server_ctx = vector(), replace(CONTEXT, client=ALL_CLIENTS)
    positions = np.flatnonzero(x > 0.5)
    statistics = encode_buffer_section(x[:8])
    yield "task", Frame(Header(FrameKind.TASK, 12, 0, 0, 11, 5))
    yield "task on the model of round 9", Frame(Header(FrameKind.TASK, 12, 0, 9, 11, 5))
    yield "resync", Frame(Header(FrameKind.RESYNC, 12, 0, 7, 8, 5))
    yield "buffers", Frame(Header(FrameKind.BUFFERS, 12), (statistics,))
    yield (
        "changes",
        Frame(Header(FrameKind.MODEL, 12, ASSIGN_CODEC, 9), encode_sparse(positions, x[positions], "float32", server_ctx)[0]),
    )
    yield "difference", Frame(Header(FrameKind.MODEL, 12, RandK.codec, 11), RandK(0.1).encode(x, server_ctx)[0])
    sections = Dense().encode(x, CONTEXT)[0]
    yield "update and statistics", Frame(Header(FrameKind.UPDATE, 12, Dense.codec, 12, 0, 5, 600), (*sections, statistics))


def frame_name(compressor: Compressor) -> str:
    """Return the name of a compressor's frame: its repr, with the names of the classes when the frame was written."""
    return EARLIER_NAMES.sub(lambda match: CLASS_NAMES[match[1]] + "(", LATER_FIELDS.sub("", name_of(compressor)))


def frames() -> Iterator[tuple[str, Compressor | None, bytes]]:
    """Yield name, compressor and frame of each kind of frame; UPDATEs are from clients without state."""
    for name, frame in other_frames():
        yield name, None, encode_frame(frame)
    for compressor in compressors():
        header = Header(FrameKind.UPDATE, 12, compressor.codec, 12, 0, 5, 600)
        yield frame_name(compressor), compressor, encode_frame(Frame(header, sections_of(compressor, vector(), CONTEXT)))


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: frame.hex() for name, _, frame in frames()}, indent=1) + "\n")
