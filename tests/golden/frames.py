"""Frames whose bytes must not change unnoticed: one for each registered compressor and value format, and a TASK.

The format may still move until the codec's issue closes; whoever moves it runs `python -m tests.golden.frames` and commits the
new file with the reason. Inputs are plain arithmetic, so that they are the same everywhere and for ever.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedsgd.arrays import F32
from fedsgd.compress import Context, Operator
from fedsgd.layout import Layout
from fedsgd.wire import Frame, Header, Kind, encode_frame
from tests.laws.members import name_of, operators

FILE = Path(__file__).parent / "frames.json"
SIZE = 600


def vector() -> F32:
    """600 values in (-1, 1), cubed, with some zeros and ties among them."""
    x = (np.arange(SIZE) * 7919 % 1009 / 504 - 1) ** 3
    x[::50] = 0
    return x.astype(np.float32)


def frames() -> Iterator[tuple[str, Operator | None, bytes]]:
    """(name, compressor, frame)."""
    yield "task", None, encode_frame(Frame(Header(Kind.TASK, 12, 0, 0, 11, 5)))
    ctx = Context(42, 12, 5, Layout.flat(SIZE))
    for op in operators():
        sections, _ = op.encode(vector(), ctx)
        yield name_of(op), op, encode_frame(Frame(Header(Kind.UPDATE, 12, op.codec, 12, 0, 5, 600), sections))


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: frame.hex() for name, _, frame in frames()}, indent=1) + "\n")
