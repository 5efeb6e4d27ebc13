"""The wire: frames, index codecs, value codecs. Hostile input stops here."""

from fedsgd.wire.frame import (
    ALL,
    HEADER_OFFSETS,
    MAX_SECTIONS,
    Frame,
    Header,
    Kind,
    Part,
    Section,
    Sections,
    Split,
    decode_frame,
    encode_frame,
    overhead,
    split_frame,
)
from fedsgd.wire.index import count_indices, decode_indices, encode_indices, max_index_bytes
from fedsgd.wire.values import DenseFormat, ValueFormat, decode_values, encode_values, max_value_bytes

__all__ = [
    "ALL",
    "HEADER_OFFSETS",
    "MAX_SECTIONS",
    "DenseFormat",
    "Frame",
    "Header",
    "Kind",
    "Part",
    "Section",
    "Sections",
    "Split",
    "ValueFormat",
    "count_indices",
    "decode_frame",
    "decode_indices",
    "decode_values",
    "encode_frame",
    "encode_indices",
    "encode_values",
    "max_index_bytes",
    "max_value_bytes",
    "overhead",
    "split_frame",
]
