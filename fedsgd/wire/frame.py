"""Frames: a fixed header of 26 bytes, typed sections and a CRC-32. All traffic between server and clients consists of frames.

`docs/reference/wire-format.md` describes the bytes. Integers are little-endian. Rounds count from 1, so that 0 can mean "none".
The compressor defines the data of its sections.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from fedsgd.errors import WireError
from fedsgd.system.profiling import timed
from fedsgd.wire.bits import pack_varint, unpack_varint

MAGIC = b"fS"
WIRE_VERSION = 1
ALL_CLIENTS = 2**32 - 1
"""Client field of a frame that is equal for all clients."""
MAX_SECTIONS = 255
MAX_SHORT_FRAME = 2**12
"""Largest number of bytes of a frame whose checksum is computed after its sections were joined."""

_HEADER_FIELD_FORMATS = {
    "magic": "2s",
    "version": "B",
    "kind": "B",
    "codec": "B",
    "sections": "B",
    "round": "I",
    "base": "I",
    "acknowledged": "I",
    "client": "I",
    "examples": "I",
}
_HEADER = struct.Struct("<" + "".join(_HEADER_FIELD_FORMATS.values()))
HEADER_OFFSETS = {
    name: struct.calcsize("<" + "".join([*_HEADER_FIELD_FORMATS.values()][:i])) for i, name in enumerate(_HEADER_FIELD_FORMATS)
}
"""Offset of each header field in bytes, for error messages."""
MAX_SECTION_HEADER = 1 + 5
_CHECKSUM = struct.Struct("<I")


class FrameKind(IntEnum):
    """Purpose of a frame.

    - TASK: the round's header for one client.
    - MODEL: the parameters, or their difference from an earlier round's.
    - UPDATE: a client's update.
    - REFERENCE: an array that a scheme sends to all clients in addition to the model.
    - RESYNC: reply of a client that lacks the base model of its message, or has lost its scheme's state.
    - BUFFERS: buffers of the module (batch-norm statistics and others).
    """

    TASK = 1
    MODEL = 2
    UPDATE = 3
    REFERENCE = 4
    RESYNC = 5
    BUFFERS = 6


class SectionKind(IntEnum):
    """Type of a section's data. The ledger has a column each for INDEX and VALUE, and one for all others together."""

    INDEX = 1
    VALUE = 2
    SCALE = 3
    FACTOR = 4
    MANIFEST = 5
    CONTROL = 6
    BUFFER = 7


_FRAME_KINDS = {int(kind): kind for kind in FrameKind}
_SECTION_KINDS = {int(kind): kind for kind in SectionKind}


@dataclass(frozen=True)
class Section:
    """Typed bytes of a frame.

    Attributes:
        kind, data: type of the data, and the data.
        offset: position of the data in the decoded frame, for error messages only.
    """

    kind: SectionKind
    data: bytes | memoryview
    offset: int = field(default=0, compare=False)


Sections = tuple[Section, ...]


@dataclass(frozen=True)
class Header:
    """Header of a frame.

    Attributes:
        kind, round: purpose of the frame, and round from 1.
        codec: codec id of the compressor that encoded the sections; 0: none.
        base: base round of the sections; 0: none. In a TASK, the base of the message's first MODEL. In a RESYNC, the round of
            the client's model. In an UPDATE, equal to `round`.
        acknowledged: in a TASK, the last round in which the server accepted a reply of this client; in a RESYNC, the round of
            the client's last reply; 0: none. 0 in all other frames.
        client: number of the client, or ALL_CLIENTS.
        examples: training examples of the client in an UPDATE; 0 in all other frames.
    """

    kind: FrameKind
    round: int
    codec: int = 0
    base: int = 0
    acknowledged: int = 0
    client: int = ALL_CLIENTS
    examples: int = 0


@dataclass(frozen=True)
class Frame:
    """Header and sections of one encoded object.

    Attributes:
        header, sections: the header, and the sections in the order of their bytes.
    """

    header: Header
    sections: Sections = ()


@dataclass(frozen=True)
class ByteBreakdown:
    """Bytes of one frame by purpose. The four numbers add up to the frame's length.

    Attributes:
        header: frame header, section headers and checksum.
        index, value: data of the INDEX section, and of the VALUE section.
        side: data of all other sections: scales, factors, manifests, controls, buffers.
    """

    header: int
    index: int
    value: int
    side: int


def frame_overhead(n_sections: int) -> int:
    """Return the maximum number of bytes of a frame without its payload; exact for a frame without sections.

    Args:
        n_sections: number of sections of the frame.
    """
    return _HEADER.size + n_sections * MAX_SECTION_HEADER + _CHECKSUM.size


@timed("encode")
def encode_frame(frame: Frame) -> bytes:
    """Encode a frame as bytes.

    Raise ValueError for more than 255 sections, for a codec above 255, and for a round, client or count outside [0, 2³²).

    Args:
        frame: header and sections.

    >>> frame = Frame(Header(FrameKind.UPDATE, round=1, client=7), (Section(SectionKind.VALUE, b"abc"),))
    >>> len(encode_frame(frame)), decode_frame(encode_frame(frame)) == frame
    (35, True)
    """
    h = frame.header
    fields = (h.round, h.base, h.acknowledged, h.client, h.examples)
    if len(frame.sections) > MAX_SECTIONS or min(fields) < 0 or max(fields) >= 2**32 or not 0 <= h.codec <= 255:
        limits = f"expected a codec from 0 to 255, other fields from 0 to 2^32 - 1 and at most {MAX_SECTIONS} sections"
        raise ValueError(f"frame: got {h} and {len(frame.sections)} sections, {limits}")
    pieces: list[bytes | memoryview] = [_HEADER.pack(MAGIC, WIRE_VERSION, h.kind, h.codec, len(frame.sections), *fields)]
    for section in frame.sections:
        pieces += [pack_varint(section.kind) + pack_varint(len(section.data)), section.data]
    if sum(map(len, pieces)) <= MAX_SHORT_FRAME:  # one call for all pieces takes less time than a copy
        data = b"".join(pieces)
        return data + _CHECKSUM.pack(zlib.crc32(data))
    check = 0
    for piece in pieces:
        check = zlib.crc32(piece, check)
    return b"".join([*pieces, _CHECKSUM.pack(check)])


@timed("decode")
def decode_frame(data: bytes | memoryview, max_bytes: int | None = None) -> Frame:
    """Decode a frame and check its header, section lengths and checksum. The data of its sections are views of `data`.

    Args:
        data: bytes of one frame.
        max_bytes: maximum length to accept; None: any.
    """
    view = memoryview(data)
    if len(view) < frame_overhead(0):
        raise WireError(len(view), f"the frame ends after {len(view)} bytes, expected at least {frame_overhead(0)}")
    if max_bytes is not None and len(view) > max_bytes:
        raise WireError(0, f"the frame has {len(view)} bytes, expected at most {max_bytes}")
    magic, version, kind, codec, n_sections, *fields = _HEADER.unpack_from(view)
    if magic != MAGIC:
        raise WireError(0, f"magic is {magic!r}, expected {MAGIC!r}")
    if version != WIRE_VERSION:
        raise WireError(HEADER_OFFSETS["version"], f"version is {version}, expected {WIRE_VERSION}")
    end = len(view) - _CHECKSUM.size
    if zlib.crc32(view[:end]) != _CHECKSUM.unpack_from(view, end)[0]:
        raise WireError(end, "the checksum does not match")
    if kind not in _FRAME_KINDS:
        raise WireError(HEADER_OFFSETS["kind"], f"kind {kind} is unknown")
    header = Header(_FRAME_KINDS[kind], fields[0], codec, *fields[1:])
    return Frame(header, _read_sections(view, n_sections, end))


def require_header(header: Header, **fields: Sequence[int]) -> None:
    """Raise WireError unless fields of a header have allowed values. Fields that are not named may have any value.

    Args:
        header: header of a decoded frame.
        **fields: allowed values of a field, by the name of the field.
    """
    for name, options in fields.items():
        value = getattr(header, name)
        if value not in options:
            raise WireError(HEADER_OFFSETS[name], f"{name} is {value!s}, expected {' or '.join(map(str, options))}")


def peek_kind(data: bytes | memoryview) -> int:
    """Return the kind byte of a frame without any other check; 0 if the frame is too short.

    Args:
        data: bytes of one frame.
    """
    offset = HEADER_OFFSETS["kind"]
    return data[offset] if len(data) > offset else 0


def _read_sections(view: memoryview, n_sections: int, end: int) -> Sections:
    sections, offset, content = [], _HEADER.size, view[:end]
    for i in range(n_sections):
        if offset == end:
            raise WireError(offset, f"the frame ends before section {i + 1} of {n_sections}")
        kind = view[offset]
        length, start = unpack_varint(content, offset + 1)
        if kind not in _SECTION_KINDS:
            raise WireError(offset, f"section kind {kind} is unknown")
        if length > end - start:
            raise WireError(offset + 1, f"a section of {length} bytes, but the frame has only {end - start} more")
        sections.append(Section(_SECTION_KINDS[kind], view[start : start + length], start))
        offset = start + length
    if offset != end:
        raise WireError(offset, f"{end - offset} bytes follow the last section")
    return tuple(sections)


def frame_breakdown(data: bytes | memoryview) -> ByteBreakdown:
    """Count the bytes of an encoded frame by purpose.

    Args:
        data: bytes of one frame.
    """
    return breakdown_of(decode_frame(data), len(data))


def breakdown_of(frame: Frame, n_bytes: int) -> ByteBreakdown:
    """Count the bytes of a decoded frame by purpose.

    Args:
        frame: decoded frame.
        n_bytes: length of the encoded frame.
    """
    payload = sum(len(section.data) for section in frame.sections)
    index = sum(len(section.data) for section in frame.sections if section.kind == SectionKind.INDEX)
    value = sum(len(section.data) for section in frame.sections if section.kind == SectionKind.VALUE)
    return ByteBreakdown(n_bytes - payload, index, value, payload - index - value)
