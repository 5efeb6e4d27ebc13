"""Wire format: frames, index codecs and value codecs.

Decoders check lengths and values before they use them. For malformed bytes they raise WireError, with an offset and a cause.
"""

from fedsgd.wire.frame import (
    ALL_CLIENTS,
    HEADER_OFFSETS,
    MAX_SECTIONS,
    WIRE_VERSION,
    ByteBreakdown,
    Frame,
    FrameKind,
    Header,
    Section,
    SectionKind,
    Sections,
    breakdown_of,
    decode_frame,
    encode_frame,
    frame_breakdown,
    frame_overhead,
    peek_kind,
    require_header,
)
from fedsgd.wire.index_codec import count_indices, decode_indices, encode_indices, max_index_bytes
from fedsgd.wire.value_codec import (
    DenseFormat,
    FloatFormat,
    ValueFormat,
    decode_values,
    encode_values,
    max_relative_squared_error,
    max_value_bytes,
)

__all__ = [
    "ALL_CLIENTS",
    "HEADER_OFFSETS",
    "MAX_SECTIONS",
    "WIRE_VERSION",
    "ByteBreakdown",
    "DenseFormat",
    "FloatFormat",
    "Frame",
    "FrameKind",
    "Header",
    "Section",
    "SectionKind",
    "Sections",
    "ValueFormat",
    "breakdown_of",
    "count_indices",
    "decode_frame",
    "decode_indices",
    "decode_values",
    "encode_frame",
    "encode_indices",
    "encode_values",
    "frame_breakdown",
    "frame_overhead",
    "max_index_bytes",
    "max_relative_squared_error",
    "max_value_bytes",
    "peek_kind",
    "require_header",
]
