"""The frame: a fixed header, typed sections, a checksum. Everything that crosses the wire is one of these.

    header   magic "fS", version u8, kind u8, codec u8, sections u8,
             round u32, base round u32, acknowledged round u32, client u32, examples u32       26 bytes
    section  part u8, length as a varint, then `length` bytes                         2 to 6 bytes each, and the payload
    check    CRC32 of all that stands before it                                                4 bytes

Little-endian. Rounds count from 1, so that 0 can say "none". The payload of a section belongs to its compressor.
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
VERSION = 1
ALL_CLIENTS = 2**32 - 1
"""The client field of a frame that is the same for every client."""
MAX_SECTIONS = 255

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
"""Where each field of the header stands, for messages."""
MAX_SECTION_HEADER = 1 + 5
_CHECKSUM = struct.Struct("<I")


class FrameKind(IntEnum):
    """What a frame is for: TASK tells a client its round, MODEL carries the parameters, or how they differ from an earlier
    round's, UPDATE a client's answer, REFERENCE what the scheme wants every client to know beside the model. RESYNC is the
    answer of a client that cannot follow: it has lost the model that its message builds on, or what it remembered. BUFFERS
    carries what a module keeps beside its parameters."""

    TASK = 1
    MODEL = 2
    UPDATE = 3
    REFERENCE = 4
    RESYNC = 5
    BUFFERS = 6


class SectionKind(IntEnum):
    """What a section holds. The ledger counts INDEX and VALUE by themselves and all others as side information."""

    INDEX = 1
    VALUE = 2
    SCALE = 3
    FACTOR = 4
    MANIFEST = 5
    CONTROL = 6
    BUFFER = 7


@dataclass(frozen=True)
class Section:
    """One typed stretch of bytes. offset: where its data stood in the frame it was read from, for messages only."""

    kind: SectionKind
    data: bytes | memoryview
    offset: int = field(default=0, compare=False)


Sections = tuple[Section, ...]


@dataclass(frozen=True)
class Header:
    """kind: what the frame is for; codec: the wire id of the compressor whose sections these are (0: none).

    round: the round it belongs to; base: the round whose model it is relative to (0: absolute; in a TASK, of the message's
    first MODEL; in a RESYNC, the model that the client has); acknowledged: the last round in which the server accepted a reply
    of this client (0: none; in a RESYNC, the last reply that the client knows of); client: whose it is, or ALL; examples: the
    client's number of training examples (0 on the downlink).
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
    """A header and its sections."""

    header: Header
    sections: Sections = ()


@dataclass(frozen=True)
class ByteBreakdown:
    """The bytes of one frame by what they are for; they add up to its length.

    header: frame header, section headers and checksum; side: scales and everything else that is neither index nor value.
    """

    header: int
    index: int
    value: int
    side: int


def frame_overhead(n_sections: int) -> int:
    """The most bytes that a frame has beside its sections' payload; exact for a frame without sections."""
    return _HEADER.size + n_sections * MAX_SECTION_HEADER + _CHECKSUM.size


@timed("encode")
def encode_frame(frame: Frame) -> bytes:
    """The frame as bytes."""
    h = frame.header
    fixed = (h.round, h.base, h.acknowledged, h.client, h.examples)
    if len(frame.sections) > MAX_SECTIONS or not all(0 <= value < 2**32 for value in fixed):
        raise ValueError(f"does not fit a frame: {h}, {len(frame.sections)} sections")
    pieces: list[bytes | memoryview] = [
        _HEADER.pack(MAGIC, VERSION, h.kind, h.codec, len(frame.sections), *fixed),
    ]
    for section in frame.sections:
        pieces += [bytes([section.kind]) + pack_varint(len(section.data)), section.data]
    check = 0
    for piece in pieces:
        check = zlib.crc32(piece, check)
    return b"".join([*pieces, _CHECKSUM.pack(check)])


@timed("decode")
def decode_frame(data: bytes | memoryview, max_bytes: int | None = None) -> Frame:
    """Inverse of `encode_frame`; WireError with offset and cause for anything else. Payloads are views, nothing is copied."""
    view = memoryview(data)
    if len(view) < frame_overhead(0):
        raise WireError(len(view), f"the frame ends after {len(view)} bytes, the shortest has {frame_overhead(0)}")
    if max_bytes is not None and len(view) > max_bytes:
        raise WireError(0, f"a frame of {len(view)} bytes, at most {max_bytes} expected")
    magic, version, kind, codec, n_sections, *fixed = _HEADER.unpack_from(view)
    if magic != MAGIC:
        raise WireError(0, f"magic is {magic!r}, expected {MAGIC!r}")
    if version != VERSION:
        raise WireError(HEADER_OFFSETS["version"], f"version is {version}, expected {VERSION}")
    end = len(view) - _CHECKSUM.size
    if zlib.crc32(view[:end]) != _CHECKSUM.unpack_from(view, end)[0]:
        raise WireError(end, "the checksum does not match")
    if kind not in FrameKind.__members__.values():
        raise WireError(HEADER_OFFSETS["kind"], f"unknown kind {kind}")
    header = Header(FrameKind(kind), fixed[0], codec, *fixed[1:])
    return Frame(header, _read_sections(view, n_sections, end))


def require_header(header: Header, **fit: Sequence[int]) -> None:
    """WireError unless each of these fields of the header has one of its values; other fields may say anything."""
    for name, allowed in fit.items():
        got = getattr(header, name)
        if got not in allowed:
            raise WireError(HEADER_OFFSETS[name], f"{name} is {got!s}, expected {' or '.join(map(str, allowed))}")


def peek_kind(data: bytes | memoryview) -> int:
    """The kind that a frame says it has, without any check of the rest; 0 where it is too short to say."""
    at = HEADER_OFFSETS["kind"]
    return data[at] if len(data) > at else 0


def _read_sections(view: memoryview, n_sections: int, end: int) -> Sections:
    sections, at = [], _HEADER.size
    for i in range(n_sections):
        if at == end:
            raise WireError(at, f"the frame ends before section {i + 1} of {n_sections}")
        part = view[at]
        length, start = unpack_varint(view[:end], at + 1)
        if part not in SectionKind.__members__.values():
            raise WireError(at, f"unknown section part {part}")
        if length > end - start:
            raise WireError(at + 1, f"a section of {length} bytes, {end - start} are left")
        sections.append(Section(SectionKind(part), view[start : start + length], start))
        at = start + length
    if at != end:
        raise WireError(at, f"{end - at} bytes after the last section")
    return tuple(sections)


def frame_breakdown(data: bytes | memoryview) -> ByteBreakdown:
    """The bytes of an encoded frame by part: read from the bytes themselves, not from what was meant to be sent."""
    return breakdown_of(decode_frame(data), len(data))


def breakdown_of(frame: Frame, n_bytes: int) -> ByteBreakdown:
    """The same of a frame of so many bytes that has been decoded from them."""
    by_part = {SectionKind.INDEX: 0, SectionKind.VALUE: 0}
    side = 0
    for section in frame.sections:
        if section.kind in by_part:
            by_part[section.kind] += len(section.data)
        else:
            side += len(section.data)
    header = n_bytes - by_part[SectionKind.INDEX] - by_part[SectionKind.VALUE] - side
    return ByteBreakdown(header, by_part[SectionKind.INDEX], by_part[SectionKind.VALUE], side)
