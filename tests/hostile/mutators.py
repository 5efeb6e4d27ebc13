"""Mutators of valid frames, as an attacker who knows the format would write them.

Most keep the checksum valid, because a decoder rejects any other frame at once. All draw from a `random.Random`, which a seed
or Hypothesis can provide.
"""

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
"""Kind and data of each section."""
Edit = Callable[[Random, bytes, int], bytes]
"""Function from the data of a section, for P parameters, to other data."""


def mutant(r: Random, frame: bytes, others: Sequence[bytes], size: int) -> bytes:
    """Mutate a frame one to three times.

    Args:
        r: source of all choices.
        frame: a valid frame.
        others: valid frames whose sections may be inserted.
        size: P.
    """
    data = frame
    for _ in range(r.choice((1, 1, 1, 2, 2, 3))):
        choice = r.randrange(20)
        if choice < 15:
            data = _mutate_sections(r, data, others, size)
        elif choice < 17:
            data = _mutate_header(r, data)
        elif choice < 19:
            data = _seal(_mutate_bytes(r, data[:-4]))
        else:
            data = _mutate_bytes(r, data)
    return data


# ------------------------------------------------------------------------------------------------------------------ the frame


def _seal(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def _mutate_bytes(r: Random, data: bytes) -> bytes:
    """Flip bits, truncate, extend, or change a header byte, the number of sections or the first section's length."""
    choice = r.randrange(6)
    if choice == 0:
        return data[: r.randrange(len(data) + 1)]
    if choice == 1:
        return data + r.randbytes(r.choice((1, 2, 4, 40)))
    if choice == 2 and len(data) > HEADER:
        return data[:5] + bytes([r.choice((0, 1, 2, 4, 254, 255))]) + data[6:]
    if choice == 3 and len(data) > HEADER:
        return _replace_varint(r, data, HEADER + 1, (len(data),))
    if choice == 4:
        offset = r.randrange(min(len(data), HEADER) or 1)
        return data[:offset] + bytes([r.randrange(256)]) + data[offset + 1 :]
    return _flip_bits(r, data, 0)


def _mutate_header(r: Random, data: bytes) -> bytes:
    """Change a field of the header to another kind or codec, a small number, or an extreme number."""
    name = r.choice(("kind", "codec", "round", "base", "base", "acknowledged", "client", "examples"))
    offset, is_u32 = HEADER_OFFSETS[name], name not in ("kind", "codec")
    if len(data) < HEADER:
        return _seal(_mutate_bytes(r, data[:-4]))
    number = r.choice((*range(8), 40, 255))
    value = struct.pack("<I", r.choice((number, number, *HUGE[:7]))) if is_u32 else bytes([number])
    return _seal(data[:offset] + value + data[offset + len(value) : -4])


def _read_sections(data: bytes) -> Pieces | None:
    """Return the sections of a frame, or None if the frame cannot be decoded."""
    try:
        return [(int(s.kind), bytes(s.data)) for s in decode_frame(data).sections]
    except WireError:
        return None


def _mutate_sections(r: Random, data: bytes, others: Sequence[bytes], size: int) -> bytes:
    pieces = _read_sections(data)
    if pieces is None:
        return _seal(_mutate_bytes(r, data[:-4]))
    choice = r.randrange(16)
    if pieces and choice < 13:
        index = r.randrange(len(pieces))
        kind, body = pieces[index]
        pieces[index] = kind, r.choice(EDITS)(r, body, size)
    elif choice < 14:
        pieces = _rearrange_sections(r, pieces)
    elif choice < 15:
        pieces = _forge_sparse_update(r, size)
    else:
        donors = _read_sections(r.choice(others)) or [(int(SectionKind.VALUE), b"")]
        index = r.randrange(len(pieces) + 1)
        pieces[index : index + r.randrange(2)] = [r.choice(donors)]
    sections = tuple(Section(SectionKind(kind), body) for kind, body in pieces[:MAX_SECTIONS])
    return encode_frame(Frame(decode_frame(data).header, sections))


def _forge_sparse_update(r: Random, size: int) -> Pieces:
    """Return a valid sparse update of any number of coordinates, which may exceed the density."""
    k = r.choice((0, 1, size // 10, size // 10 + 1, size // 2, size - 1, size))
    step = r.randrange(1, size // k + 1) if k else 1
    start = r.randrange(size - step * (k - 1)) if k else 0
    positions = encode_indices(np.arange(start, start + k * step, step, dtype=np.int64), size)
    entropy = b"\x00" if r.random() < 0.8 else b""
    return [(int(SectionKind.INDEX), positions), (int(SectionKind.VALUE), entropy + r.choice(SPECIAL_FLOATS) * k)]


def _rearrange_sections(r: Random, pieces: Pieces) -> Pieces:
    """Add, swap, delete, repeat, empty or relabel sections."""
    choice = r.randrange(6)
    if not pieces or choice == 0:
        return [*pieces, (int(r.choice(list(SectionKind))), r.randbytes(r.randrange(9)))]
    index = r.randrange(len(pieces))
    kind, body = pieces[index]
    if choice == 1:
        return pieces[:index] + pieces[index + 1 :]
    if choice == 2:
        return pieces[:index] + [(kind, body)] * r.choice((2, 2, 3, 60)) + pieces[index + 1 :]
    if choice == 3:
        return [*pieces[:index], (int(r.choice(list(SectionKind))), body), *pieces[index + 1 :]]
    if choice == 4:
        return [*pieces[:index], (kind, b""), *pieces[index + 1 :]]
    return r.sample(pieces, len(pieces))


# ---------------------------------------------------------------------------------------------------------------- one section


def _draw_position(r: Random, length: int) -> int:
    """Draw a position, more often near the start, where the counts, tables and states are."""
    return r.randrange(min(length, r.choice((1, 2, 4, 12, 48, length))) or 1) if length else 0


def _flip_bits(r: Random, body: bytes, size: int) -> bytes:
    data = bytearray(body)
    for _ in range(r.choice((1, 1, 2, 4))):
        if data:
            data[_draw_position(r, len(data))] ^= r.choice((1, 2, 16, 128, 255, r.randrange(1, 256)))
    return bytes(data)


def _truncate(r: Random, body: bytes, size: int) -> bytes:
    return body[: r.choice((len(body) - 1, len(body) // 2, 1, r.randrange(len(body) + 1)))] if body else body


def _extend(r: Random, body: bytes, size: int) -> bytes:
    length = r.choice((1, 2, 3, 16, 200, 1500, 2 * size + 2000))
    return body + r.choice((bytes(length), b"\xff" * length, r.randbytes(min(length, 64))))


def _replace_varint(r: Random, data: bytes, offset: int, candidates: Sequence[int]) -> bytes:
    """Replace the varint at an offset by 0, 1, a neighbour, a huge number or a malformed varint."""
    try:
        value, end = unpack_varint(data, offset)
    except WireError:
        value, end = 0, offset
    neighbours = [max(0, v + d) for v in (value, *candidates) for d in (-1, 1, 0)]
    varint = r.choice((b"\x80\x00", b"\xff" * 5, b"\x80" * 6, *map(pack_varint, (0, 1, 2 * value, *neighbours, *HUGE))))
    return data[:offset] + varint + data[end:]


def _replace_count(r: Random, body: bytes, size: int) -> bytes:
    return _replace_varint(r, body, r.choice((1, 1, 1, 0, 2, 3, 4, 5)), (size, size // 2, size // 10))


def _insert_special_floats(r: Random, body: bytes, size: int) -> bytes:
    """Insert floats that are not finite or at the ends of their range, at one position or everywhere."""
    pattern = r.choice(SPECIAL_FLOATS if r.random() < 0.7 else SPECIAL_HALVES)
    if r.random() < 0.2:
        return body[: len(body) % len(pattern)] + pattern * (len(body) // len(pattern))
    n_numbers = max(1, len(body) // len(pattern))
    offset = r.choice((0, 1, 0)) + len(pattern) * _draw_position(r, n_numbers)
    return body[:offset] + pattern + body[offset + len(pattern) :]


def _replace_data(r: Random, body: bytes, size: int) -> bytes:
    """Replace the data by equal bytes or noise of the same length."""
    return r.choice((bytes(len(body)), b"\xff" * len(body), r.randbytes(min(len(body), 4096)).ljust(len(body), b"\x01")))


def _forge_symbols(r: Random, body: bytes, size: int) -> bytes:
    """Forge a symbol stream with any table, states and words, or put a mode before the data."""
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
    n_prefix = r.choice((0, 0, 1, 2, 3, (size + 7) // 8))  # bytes before the stream: a count, a mode, the signs of "natural"
    k = r.choice((0, 0, 1, size, size // 10))
    suffix = bytes(r.choice((0, k, 3 * k, r.randrange(9))))  # bytes after the stream: mantissas
    return body[:n_prefix].ljust(n_prefix, b"\x01") + r.choice((stream, pack_varint(len(stream)) + stream + suffix))


def _forge_positions(r: Random, body: bytes, size: int) -> bytes:
    """Forge an index section of any codec."""
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


def _forge_manifest(r: Random, body: bytes, size: int) -> bytes:
    """Forge a manifest with any counts, kinds and lengths."""
    groups = []
    for _ in range(r.choice((0, 1, 2, 3, 4, 40))):
        count = r.choice((0, 1, 2, 2, 3, 8, 9, 255))
        entries = [
            bytes([r.randrange(7)]) + pack_varint(r.choice((0, 0, 1, 4, size, 4 * size, *HUGE))) for _ in range(min(count, 9))
        ]
        groups.append(bytes([count]) + b"".join(entries))
    return b"".join(groups)


EDITS: tuple[Edit, ...] = (
    *(
        _flip_bits,
        _flip_bits,
        _flip_bits,
        _insert_special_floats,
        _insert_special_floats,
        _insert_special_floats,
        _replace_count,
        _forge_symbols,
        _forge_symbols,
        _forge_positions,
    ),
    *(_truncate, _extend, _replace_data, _forge_manifest),
)
