"""What is said between two hosts, in one piece: some heads, each with the frames that belong to it.

    for each: length of the head u32, number of frames u32, length of each frame u64; then the head, then the frames

Little-endian. What comes from another machine is not trusted: anything that does not add up is a WireError.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import Struct

from fedsgd.errors import WireError
from fedsgd.runtime.protocol import Said

_COUNTS = Struct("<II")
_LENGTH = Struct("<Q")


def packed(said: Sequence[Said]) -> bytes:
    """All of it, as one string of bytes."""
    parts: list[bytes] = []
    for head, frames in said:
        lengths = (_LENGTH.pack(len(frame)) for frame in frames)
        parts += [_COUNTS.pack(len(head), len(frames)), *lengths, head, *frames]
    return b"".join(parts)


def unpacked(data: bytes) -> Iterator[Said]:
    """Inverse of `packed`, one after the other; WireError at the first that does not fit into what there is."""
    at = 0
    while at < len(data):
        if len(data) - at < _COUNTS.size:
            raise WireError(at, f"{len(data) - at} bytes are left, expected {_COUNTS.size} with two lengths")
        n_head, n_frames = _COUNTS.unpack_from(data, at)
        first = at + _COUNTS.size
        if (len(data) - first) // _LENGTH.size < n_frames:
            raise WireError(at, f"{n_frames} frames are announced in {len(data) - first} bytes")
        lengths = [_LENGTH.unpack_from(data, first + _LENGTH.size * i)[0] for i in range(n_frames)]
        begin = first + _LENGTH.size * n_frames
        if len(data) - begin < n_head + sum(lengths):
            raise WireError(
                at, f"a head of {n_head} and frames of {sum(lengths)} bytes are announced, {len(data) - begin} are left"
            )
        at = begin + n_head
        frames = []
        for length in lengths:
            frames.append(data[at : at + length])
            at += length
        yield data[begin : begin + n_head], frames
