"""Frames whose bytes must not change unnoticed: one for each codec and form of its sections, and one of each other kind.

`python -m tests.golden.frames` writes them. A new compressor adds to them; a byte of an old one that changes is a change of the
format, with a new version of it. Inputs are plain arithmetic, so that they are the same everywhere and for ever.
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
"""Class → its name in the file, which keeps the names of the time when a frame was added."""
EARLIER_NAMES = re.compile(rf"\b({'|'.join(CLASS_NAMES)})\(")
CONTEXT = CodecContext(42, 12, 5, example_layout(SIZE))
"""A matrix, a vector and a scalar: some codecs treat them differently."""


def vector() -> F32:
    """600 values in (-1, 1), cubed, with some zeros and ties among them."""
    x = (np.arange(SIZE) * 7919 % 1009 / 504 - 1) ** 3
    x[::50] = 0
    return x.astype(np.float32)


def compressors() -> Iterator[Compressor]:
    """All operators of the laws, and schemes at their defaults."""
    yield from operators()
    yield from (COMPRESSORS[name]() for name in COMPRESSORS if issubclass(COMPRESSORS[name], CompressionScheme))


def others() -> Iterator[tuple[str, Frame]]:
    """(name, frame) of what is not one compressor's UPDATE."""
    x, everybody = vector(), replace(CONTEXT, client=ALL_CLIENTS)
    some = np.flatnonzero(x > 0.5)
    statistics = encode_buffer_section(x[:8])
    yield "task", Frame(Header(FrameKind.TASK, 12, 0, 0, 11, 5))
    yield "task on the model of round 9", Frame(Header(FrameKind.TASK, 12, 0, 9, 11, 5))
    yield "resync", Frame(Header(FrameKind.RESYNC, 12, 0, 7, 8, 5))
    yield "buffers", Frame(Header(FrameKind.BUFFERS, 12), (statistics,))
    yield "changes", Frame(Header(FrameKind.MODEL, 12, ASSIGN_CODEC, 9), encode_sparse(some, x[some], "float32", everybody)[0])
    yield "difference", Frame(Header(FrameKind.MODEL, 12, RandK.codec, 11), RandK(0.1).encode(x, everybody)[0])
    sections = Dense().encode(x, CONTEXT)[0]
    yield "update and statistics", Frame(Header(FrameKind.UPDATE, 12, Dense.codec, 12, 0, 5, 600), (*sections, statistics))


def frame_name(compressor: Compressor) -> str:
    """Return the name of a compressor's frame: its fields, with the names that classes had when their frames were written."""
    return EARLIER_NAMES.sub(lambda match: CLASS_NAMES[match[1]] + "(", name_of(compressor))


def frames() -> Iterator[tuple[str, Compressor | None, bytes]]:
    """(name, compressor, frame): what a client that remembers nothing yet sends."""
    for name, frame in others():
        yield name, None, encode_frame(frame)
    for made in compressors():
        header = Header(FrameKind.UPDATE, 12, made.codec, 12, 0, 5, 600)
        yield frame_name(made), made, encode_frame(Frame(header, sections_of(made, vector(), CONTEXT)))


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: frame.hex() for name, _, frame in frames()}, indent=1) + "\n")
