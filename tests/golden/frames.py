"""Frames whose bytes must not change unnoticed: one for each codec and form of its sections, and one of each other kind.

`python -m tests.golden.frames` writes them. A new compressor adds to them; a byte of an old one that changes is a change of the
format, with a new version of it. Inputs are plain arithmetic, so that they are the same everywhere and for ever.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedsgd.arrays import F32
from fedsgd.compress import COMPRESSORS, Compressor, Context, Scheme
from fedsgd.compress.dense import DenseOperator
from fedsgd.compress.laws import layout_of
from fedsgd.compress.randk import RandK
from fedsgd.compress.sparse import encode_sparse
from fedsgd.downlink import CHANGES
from fedsgd.rounds.statistics import section_of
from fedsgd.wire import ALL, Frame, Header, Kind, encode_frame
from tests.laws.members import name_of, operators, sections_of

FILE = Path(__file__).parent / "frames.json"
SIZE = 600
CONTEXT = Context(42, 12, 5, layout_of(SIZE))
"""A matrix, a vector and a scalar: some codecs treat them differently."""


def vector() -> F32:
    """600 values in (-1, 1), cubed, with some zeros and ties among them."""
    x = (np.arange(SIZE) * 7919 % 1009 / 504 - 1) ** 3
    x[::50] = 0
    return x.astype(np.float32)


def compressors() -> Iterator[Compressor]:
    """All operators of the laws, and schemes at their defaults."""
    yield from operators()
    yield from (COMPRESSORS[name]() for name in COMPRESSORS if issubclass(COMPRESSORS[name], Scheme))


def others() -> Iterator[tuple[str, Frame]]:
    """(name, frame) of what is not one compressor's UPDATE."""
    x, everybody = vector(), replace(CONTEXT, client=ALL)
    some = np.flatnonzero(x > 0.5)
    statistics = section_of(x[:8])
    yield "task", Frame(Header(Kind.TASK, 12, 0, 0, 11, 5))
    yield "task on the model of round 9", Frame(Header(Kind.TASK, 12, 0, 9, 11, 5))
    yield "resync", Frame(Header(Kind.RESYNC, 12, 0, 7, 8, 5))
    yield "buffers", Frame(Header(Kind.BUFFERS, 12), (statistics,))
    yield "changes", Frame(Header(Kind.MODEL, 12, CHANGES, 9), encode_sparse(some, x[some], "float32", everybody)[0])
    yield "difference", Frame(Header(Kind.MODEL, 12, RandK.codec, 11), RandK(0.1).encode(x, everybody)[0])
    sections = DenseOperator().encode(x, CONTEXT)[0]
    yield "update and statistics", Frame(Header(Kind.UPDATE, 12, DenseOperator.codec, 12, 0, 5, 600), (*sections, statistics))


def frames() -> Iterator[tuple[str, Compressor | None, bytes]]:
    """(name, compressor, frame): what a client that remembers nothing yet sends."""
    for name, frame in others():
        yield name, None, encode_frame(frame)
    for made in compressors():
        header = Header(Kind.UPDATE, 12, made.codec, 12, 0, 5, 600)
        yield name_of(made), made, encode_frame(Frame(header, sections_of(made, vector(), CONTEXT)))


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: frame.hex() for name, _, frame in frames()}, indent=1) + "\n")
