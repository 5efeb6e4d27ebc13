"""Frames and malformed sections for the tests of the wire format."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from fedsgd.certification.operator_laws import example_layout
from fedsgd.compression import CodecContext, Compressor
from fedsgd.compression.operators.topk import TopK
from fedsgd.wire import Frame, FrameKind, Header, bits, encode_frame, encode_indices, index_codec
from tests.laws.members import sections_of

SIZE = 2000


def seal(body: bytes) -> bytes:
    """Return the bytes with a valid checksum, as an attacker would send them."""
    return body + struct.pack("<I", zlib.crc32(body))


def draw_positions(k: int, size: int, seed: int = 0) -> np.ndarray:
    """Draw k ascending positions below `size`."""
    return np.sort(np.random.default_rng(seed).choice(size, k, replace=False))


def encode_example_update(op: Compressor | None = None) -> bytes:
    """Return an UPDATE frame of SIZE parameters."""
    op = op or TopK(0.05, "ternary")
    x = np.random.default_rng(1).standard_normal(SIZE).astype(np.float32)
    sections = sections_of(op, x, CodecContext(0, 7, 3, example_layout(SIZE)))
    return encode_frame(Frame(Header(FrameKind.UPDATE, 7, op.codec, 7, 0, 3, 60), sections))


MALFORMED_INDICES: dict[str, bytes] = {
    "empty": b"",
    "unknown codec": b"\x09\x01",
    "more indices than parameters": bytes([index_codec.RAW]) + bits.pack_varint(SIZE + 1),
    "gap above P": bytes([index_codec.RICE, 1]) + bits.pack(np.array([12]), np.array([5])) + b"\xff\x0f" + b"\x01",
    "no unary bits": bytes([index_codec.RICE, 5]) + b"\x00",
    "bytes after the unary bits": encode_indices(np.array([5]), SIZE) + b"\x00",
    "padding not zero": bytes([index_codec.RICE, 1, 0b11100000 | 2, 0, 1]),
    "raw out of range": bytes([index_codec.RAW, 1]) + struct.pack("<H", SIZE),
    "raw not ascending": bytes([index_codec.RAW, 2]) + struct.pack("<HH", 9, 9),
    "raw too short": bytes([index_codec.RAW, 2, 0, 0]),
    "bitmap too short": bytes([index_codec.BITMAP]) + bytes(10),
    "bitmap with a position above P": bytes([index_codec.BITMAP]) + b"\xff" * 249 + b"\xff\x01",
    "longer than a bitmap": bytes([index_codec.BITMAP]) + bytes(251),
    "endless varint": bytes([index_codec.RICE, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80]),
    "huge quotient": bytes([index_codec.RICE, 1, 31]) + b"\xff\xff\xff\x7f" + bytes(200) + b"\x01",
}
"""Data of index sections for SIZE parameters, by fault."""
