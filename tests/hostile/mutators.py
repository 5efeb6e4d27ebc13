"""Mutators: from a valid frame to one that somebody made who knows the format. They keep the checksum right, or nothing would get
past it. All take their choices from a `random.Random`, so that a seed or Hypothesis can be behind it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from random import Random

import numpy as np

from fedsgd.errors import WireError
from fedsgd.wire import (
    HEADER_OFFSETS,
    MAX_SECTIONS,
    Frame,
    Section,
    SectionKind,
    decode_frame,
    encode_frame,
    encode_indices,
    frame_overhead,
    index_codec,
)
from fedsgd.wire.bits import pack_varint, unpack_varint

HEADER = frame_overhead(0) - 4
SPECIAL_FLOATS = [
    struct.pack("<I", word)
    for word in (
        *(0x7FC00000, 0xFFC00000, 0x7F800001, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0xFF7FFFFF, 1, 0x80000001),
        *(0x00800000, 0x80000000, 0x7F000000, 0x3F800000, 0),
    )
]
SPECIAL_HALVES = [struct.pack("<H", word) for word in (0x7C00, 0xFC00, 0x7E00, 0x7BFF, 0x8000, 1, 0x7F80, 0xFF80, 0x7F7F, 0)]
STATES = (0, 1, (1 << 15) - 1, 1 << 15, (1 << 15) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
HUGE = (2**7 - 1, 2**7, 2**14, 2**21 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**35 - 1)

Pieces = list[tuple[int, bytes]]
"""(part, data) of each section."""
Edit = Callable[[Random, bytes, int], bytes]
"""From the data of a section of a model of that many parameters to other data."""


def mutant(r: Random, frame: bytes, others: Sequence[bytes], size: int) -> bytes:
    """A frame that one to three mutations have been at. others: valid frames to splice from; size: P."""
    data = frame
    for _ in range(r.choice((1, 1, 1, 2, 2, 3))):
        how = r.randrange(20)
        if how < 15:
            data = _of_sections(r, data, others, size)
        elif how < 17:
            data = _of_header(r, data)
        elif how < 19:
            data = _sealed(_of_bytes(r, data[:-4]))
        else:
            data = _of_bytes(r, data)
    return data


# ------------------------------------------------------------------------------------------------------------------ the frame


def _sealed(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def _of_bytes(r: Random, data: bytes) -> bytes:
    """A mutation that knows no sections: flips, a cut, an extension, a section's count or length."""
    how = r.randrange(6)
    if how == 0:
        return data[: r.randrange(len(data) + 1)]
    if how == 1:
        return data + r.randbytes(r.choice((1, 2, 4, 40)))
    if how == 2 and len(data) > HEADER:
        return data[:5] + bytes([r.choice((0, 1, 2, 4, 254, 255))]) + data[6:]
    if how == 3 and len(data) > HEADER:
        return _with_varint(r, data, HEADER + 1, (len(data),))
    if how == 4:
        at = r.randrange(min(len(data), HEADER) or 1)
        return data[:at] + bytes([r.randrange(256)]) + data[at + 1 :]
    return _flipped(r, data, 0)


def _of_header(r: Random, data: bytes) -> bytes:
    """Another number in one field of the header: that of another kind or codec, a round nearby, one of the ends."""
    name = r.choice(("kind", "codec", "round", "base", "base", "acknowledged", "client", "examples"))
    at, wide = HEADER_OFFSETS[name], name not in ("kind", "codec")
    if len(data) < HEADER:
        return _sealed(_of_bytes(r, data[:-4]))
    near = r.choice((*range(8), 40, 255))
    value = struct.pack("<I", r.choice((near, near, *HUGE[:7]))) if wide else bytes([near])
    return _sealed(data[:at] + value + data[at + len(value) : -4])


def _pieces(data: bytes) -> Pieces | None:
    """The sections of a frame that can still be read."""
    try:
        return [(int(s.kind), bytes(s.data)) for s in decode_frame(data).sections]
    except WireError:
        return None


def _of_sections(r: Random, data: bytes, others: Sequence[bytes], size: int) -> bytes:
    pieces = _pieces(data)
    if pieces is None:
        return _sealed(_of_bytes(r, data[:-4]))
    how = r.randrange(16)
    if pieces and how < 13:
        at = r.randrange(len(pieces))
        part, body = pieces[at]
        pieces[at] = part, r.choice(EDITS)(r, body, size)
    elif how < 14:
        pieces = _rearranged(r, pieces)
    elif how < 15:
        pieces = _another_count(r, size)
    else:
        donors = _pieces(r.choice(others)) or [(int(SectionKind.VALUE), b"")]
        at = r.randrange(len(pieces) + 1)
        pieces[at : at + r.randrange(2)] = [r.choice(donors)]
    sections = tuple(Section(SectionKind(part), body) for part, body in pieces[:MAX_SECTIONS])
    return encode_frame(Frame(decode_frame(data).header, sections))


def _another_count(r: Random, size: int) -> Pieces:
    """A sound sparse update of any number of coordinates, which may be more than were asked for."""
    k = r.choice((0, 1, size // 10, size // 10 + 1, size // 2, size - 1, size))
    step = r.randrange(1, size // k + 1) if k else 1
    start = r.randrange(size - step * (k - 1)) if k else 0
    positions = encode_indices(np.arange(start, start + k * step, step, dtype=np.int64), size)
    entropy = b"\x00" if r.random() < 0.8 else b""
    return [(int(SectionKind.INDEX), positions), (int(SectionKind.VALUE), entropy + r.choice(SPECIAL_FLOATS) * k)]


def _rearranged(r: Random, pieces: Pieces) -> Pieces:
    """Sections swapped, deleted, doubled, emptied, or called something else."""
    how = r.randrange(6)
    if not pieces or how == 0:
        return [*pieces, (int(r.choice(list(SectionKind))), r.randbytes(r.randrange(9)))]
    at = r.randrange(len(pieces))
    part, body = pieces[at]
    if how == 1:
        return pieces[:at] + pieces[at + 1 :]
    if how == 2:
        return pieces[:at] + [(part, body)] * r.choice((2, 2, 3, 60)) + pieces[at + 1 :]
    if how == 3:
        return [*pieces[:at], (int(r.choice(list(SectionKind))), body), *pieces[at + 1 :]]
    if how == 4:
        return [*pieces[:at], (part, b""), *pieces[at + 1 :]]
    return r.sample(pieces, len(pieces))


# ---------------------------------------------------------------------------------------------------------------- one section


def _near(r: Random, length: int) -> int:
    """A position, more often near the start, where the counts, tables and states are."""
    return r.randrange(min(length, r.choice((1, 2, 4, 12, 48, length))) or 1) if length else 0


def _flipped(r: Random, body: bytes, size: int) -> bytes:
    data = bytearray(body)
    for _ in range(r.choice((1, 1, 2, 4))):
        if data:
            data[_near(r, len(data))] ^= r.choice((1, 2, 16, 128, 255, r.randrange(1, 256)))
    return bytes(data)


def _cut(r: Random, body: bytes, size: int) -> bytes:
    return body[: r.choice((len(body) - 1, len(body) // 2, 1, r.randrange(len(body) + 1)))] if body else body


def _extended(r: Random, body: bytes, size: int) -> bytes:
    length = r.choice((1, 2, 3, 16, 200, 1500, 2 * size + 2000))
    return body + r.choice((bytes(length), b"\xff" * length, r.randbytes(min(length, 64))))


def _with_varint(r: Random, data: bytes, at: int, near: Sequence[int]) -> bytes:
    """The varint at `at` replaced: 0, 1, off by one, huge, longer than it need be."""
    try:
        value, end = unpack_varint(data, at)
    except WireError:
        value, end = 0, at
    around = [max(0, v + d) for v in (value, *near) for d in (-1, 1, 0)]
    new = r.choice((b"\x80\x00", b"\xff" * 5, b"\x80" * 6, *map(pack_varint, (0, 1, 2 * value, *around, *HUGE))))
    return data[:at] + new + data[end:]


def _counted(r: Random, body: bytes, size: int) -> bytes:
    return _with_varint(r, body, r.choice((1, 1, 1, 0, 2, 3, 4, 5)), (size, size // 2, size // 10))


def _special(r: Random, body: bytes, size: int) -> bytes:
    """Floats that are not finite, or at the ends of their range, in one place or everywhere."""
    pattern = r.choice(SPECIAL_FLOATS if r.random() < 0.7 else SPECIAL_HALVES)
    if r.random() < 0.2:
        return body[: len(body) % len(pattern)] + pattern * (len(body) // len(pattern))
    places = max(1, len(body) // len(pattern))
    at = r.choice((0, 1, 0)) + len(pattern) * _near(r, places)
    return body[:at] + pattern + body[at + len(pattern) :]


def _replaced(r: Random, body: bytes, size: int) -> bytes:
    """As long as before, and of one byte or of noise."""
    return r.choice((bytes(len(body)), b"\xff" * len(body), r.randbytes(min(len(body), 4096)).ljust(len(body), b"\x01")))


def _symbols(r: Random, body: bytes, size: int) -> bytes:
    """A forged symbol stream: any table, states and words; or the body as one of plain symbols."""
    if r.random() < 0.2:
        return bytes([r.choice((0, 1, 2))]) + body
    lowest = r.choice((0, 1, 127, 254, 255, r.randrange(256)))
    highest = r.choice((lowest, 255, min(255, lowest + r.randrange(6)), r.randrange(256)))
    table = b"".join(pack_varint(r.choice((0, 1, 4095, 4096, 100, r.choice(HUGE)))) for _ in range(max(0, highest - lowest)))
    if r.random() < 0.4 and highest > lowest:
        table = pack_varint(r.choice((1, 4095, 2048))) + b"\x00" * (highest - lowest - 1)
    states = b"".join(struct.pack("<I", r.choice(STATES if r.random() < 0.3 else (1 << 15, 1 << 15))) for _ in range(4))
    words = r.choice((b"", bytes(2), b"\xff" * 2 * r.randrange(40), r.randbytes(r.randrange(200)), r.randbytes(size // 2)))
    stream = bytes([1, lowest, highest]) + table + states + words
    keep = r.choice((0, 0, 1, 2, 3, (size + 7) // 8))  # what may stand before it: a count, a mode, the signs of "natural"
    k = r.choice((0, 0, 1, size, size // 10))
    behind = bytes(r.choice((0, k, 3 * k, r.randrange(9))))  # what may stand behind it: mantissas
    return body[:keep].ljust(keep, b"\x01") + r.choice((stream, pack_varint(len(stream)) + stream + behind))


def _positions(r: Random, body: bytes, size: int) -> bytes:
    """A forged index section of any codec."""
    tag, k = r.randrange(6), max(0, r.choice((0, 1, size - 1, size, size + 1, size // 10, size // 2, *HUGE)))
    length = r.choice((0, 1, 2, 9, (size + 7) // 8, (size + 7) // 8 - 6, (size + 7) // 16))
    filler = r.choice((bytes, lambda n: b"\xff" * n, lambda n: b"\x01" * n, r.randbytes))(max(0, length))
    if tag == index_codec.BITMAP:
        return bytes([tag]) + filler
    if tag == index_codec.CLASSES and r.random() < 0.7:
        symbol = r.choice((0, 1, 2, 31, 32, 255))
        stream = bytes([1, symbol, symbol]) + struct.pack("<I", 1 << 15) * 4
        return bytes([tag]) + pack_varint(k) + pack_varint(len(stream)) + stream + filler
    return bytes([tag]) + pack_varint(k) + filler


def _manifest(r: Random, body: bytes, size: int) -> bytes:
    """A manifest made up of what a manifest is made of."""
    groups = []
    for _ in range(r.choice((0, 1, 2, 3, 4, 40))):
        count = r.choice((0, 1, 2, 2, 3, 8, 9, 255))
        entries = [
            bytes([r.randrange(7)]) + pack_varint(r.choice((0, 0, 1, 4, size, 4 * size, *HUGE))) for _ in range(min(count, 9))
        ]
        groups.append(bytes([count]) + b"".join(entries))
    return b"".join(groups)


EDITS: tuple[Edit, ...] = (
    *(_flipped, _flipped, _flipped, _special, _special, _special, _counted, _symbols, _symbols, _positions),
    *(_cut, _extended, _replaced, _manifest),
)
