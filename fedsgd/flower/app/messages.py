"""Messages between CompressedStrategy and compression_mod, in an app's own messages.

server  record "fedsgd", the same for all nodes that build on the same model: the terms, with the MODEL frames; the exact arrays
        record "fedsgd-task", a node's own: its TASK frame
node    record "fedsgd": the name of the reply's record, with the UPDATE or RESYNC frame; the exact arrays; where the arrays are
        not the model's, which are missing and which have another type. Arrays of other names or shapes stay in their record.
        or, without a frame, the name of a record that crosses as it is; the names that are one tensor

The terms come with each message, so a node needs no settings, and both ends always go by the same.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedsgd.errors import ModelError, WireError
from fedsgd.federation import Message
from fedsgd.flower.app.array_layout import ArrayLayout, ReplyArrays
from fedsgd.flower.app.arrays import NUMPY_STYPE, is_float_type, read_packed_shape
from fedsgd.flower.app.settings import CompressionSettings, decode_settings
from fedsgd.flower.app.tied_weights import TiedGroups
from fedsgd.flower.records import RECORD_KEY, read_payload, write_payload
from fedsgd.runtime.workers import protocol
from fedsgd.runtime.workers.protocol import Packet

Record = ArrayRecord | MetricRecord | ConfigRecord
TASK_KEY = "fedsgd-task"
"""The record of a message's content that is a node's own."""
_FRAME_KEY = "frame"


@dataclass(frozen=True, eq=False)
class CompressedRequest:
    """Request to a node. frames: TASK and MODEL; aside: the exact arrays."""

    settings: CompressionSettings
    frames: Message
    exact_arrays: Mapping[str, Array]


def create_shared_record(settings: CompressionSettings, frames: Message, arrays: ArrayRecord) -> Record:
    """Return the record for all nodes with the same MODEL frames. arrays: the model, for its exact arrays."""
    data = protocol.pack_packets([(settings.encode(), frames), encode_exact_arrays(settings.array_layout, arrays)])
    return write_payload(RecordDict(), data)[RECORD_KEY]


def build_compressed_content(content: RecordDict, key: str, record: Record, task: bytes) -> RecordDict:
    """Return the content of a message with our records and a TASK frame in the place of the model's record."""
    return replace_records(content, key, {RECORD_KEY: record, TASK_KEY: ConfigRecord({_FRAME_KEY: task})})


def check_names(source: str, content: RecordDict) -> None:
    """Raise ModelError for a content that has a record under a name of ours, which would be lost."""
    for name in (RECORD_KEY, TASK_KEY):
        if name in content:
            raise ModelError(f'{source} has a record "{name}", which is the name of a record of fedsgd: rename it')


def is_compressed(content: RecordDict) -> bool:
    """Return True for a content with our records."""
    return RECORD_KEY in content and TASK_KEY in content


def decode_request(content: RecordDict) -> CompressedRequest:
    """Inverse of `build_compressed_content`."""
    record = content[TASK_KEY]
    task = record.get(_FRAME_KEY) if isinstance(record, ConfigRecord) else None
    (terms, frames), aside = _unpack_parts(read_payload(content))
    if not isinstance(task, bytes):
        raise WireError(0, "the message has no TASK frame")
    read = decode_settings(terms)
    return CompressedRequest(read, (task, *frames), decode_exact_arrays(read.array_layout, aside))


def encode_reply(key: str, frames: Message, settings: CompressionSettings, arrays: ReplyArrays | None) -> bytes:
    """Return the answer of a node.

    Args:
        key: the record of the reply that these frames stand for.
        frames: UPDATE or RESYNC.
        terms: the terms of the message.
        arrays: that record's arrays; None if the node cannot follow.
    """
    parts: list[Packet] = [
        (key.encode(), frames),
        (b"", ()) if arrays is None else encode_exact_arrays(settings.array_layout, arrays.model_arrays),
    ]
    types = {} if arrays is None else settings.array_layout.find_dtype_changes(arrays.model_arrays)
    if arrays is not None and (arrays.missing_names or types):
        by_type = {dtype: [name for name in types if types[name] == dtype] for dtype in dict.fromkeys(types.values())}
        if len(by_type) == 1 and types.keys() == settings.array_layout.slices.keys() - set(arrays.missing_names):
            by_type = {dtype: [] for dtype in by_type}  # of all arrays, so their names need not be sent
        parts.append((json.dumps([arrays.missing_names, by_type], separators=(",", ":")).encode(), ()))
    return protocol.pack_packets(parts)


def encode_uncompressed_reply(key: str, groups: TiedGroups) -> bytes:
    """Return the answer of a node whose arrays contradict the terms and stay in its reply.

    Args:
        key: the record that has the arrays.
        groups: the names that are one tensor each in these arrays.
    """
    return protocol.pack_packets([(key.encode(), ()), (json.dumps(groups).encode(), ())])


def decode_groups(compressed_reply: CompressedReply) -> TiedGroups:
    """Return the groups of `encode_uncompressed_reply`. WireError if there are none to be read."""
    try:
        groups = tuple(tuple(group) for group in json.loads(compressed_reply.side_packet[0]))
    except (ValueError, TypeError, RecursionError):
        raise WireError(0, "the names of one tensor cannot be read") from None
    if not all(isinstance(name, str) for group in groups for name in group):
        raise WireError(0, "the names of one tensor are no text")
    return groups


@dataclass(frozen=True, eq=False)
class CompressedReply:
    """Answer of a node.

    Attributes:
        key: name of the record that the answer stands for; empty for a reply with no record of the model.
        frames: UPDATE or RESYNC; none where the record crosses as it is.
        aside: the exact arrays, or the names that are one tensor.
        lacks: names of the model's arrays that the record lacks.
        types: types of the record's arrays that are not the model's, by name.
    """

    key: str
    frames: Message
    side_packet: Packet
    missing_names: tuple[str, ...] = ()
    dtypes: Mapping[str, str] = field(default_factory=dict)


def decode_reply(content: RecordDict, array_layout: ArrayLayout) -> CompressedReply:
    """Inverse of `encode_reply`; the exact arrays are not read.

    Args:
        content: content of the reply.
        model: the model, whose arrays the answer may name.

    Raises:
        WireError: it is no answer, or it names arrays that are not in the model.
    """
    (key, frames), aside, *rest = _unpack_parts(read_payload(content), max_parts=3)
    try:
        text = bytes(key).decode()
    except UnicodeDecodeError:
        raise WireError(0, "the name of the record is no text") from None
    lacks, types = _decode_differences(rest[0][0], array_layout) if rest else ((), {})
    return CompressedReply(text, tuple(frames), aside, lacks, types)


def _decode_differences(data: bytes, array_layout: ArrayLayout) -> tuple[tuple[str, ...], dict[str, str]]:
    try:
        lacks, by_type = json.loads(data)
        types = {name: dtype for dtype, names in by_type.items() for name in names or array_layout.slices.keys() - set(lacks)}
        if not {*lacks} <= {*array_layout.names} or not types.keys() <= array_layout.slices.keys() - {*lacks}:
            raise ValueError
        if not all(map(is_float_type, by_type)):
            raise ValueError
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise WireError(0, "the reply's names of arrays that it lacks, and their types, cannot be read") from None
    return tuple(lacks), types


def replace_records(content: RecordDict, key: str, replacements: Mapping[str, Record]) -> RecordDict:
    """Return a new content with other records in the place of the record `key`, and without ours."""
    out = RecordDict()
    for name, record in content.items():
        if name == key:
            for other, value in replacements.items():
                out[other] = value
        elif name not in (RECORD_KEY, TASK_KEY):
            out[name] = record
    return out


def _unpack_parts(data: bytes, max_parts: int = 2) -> Sequence[Packet]:
    parts = list(protocol.unpack_packets(data))
    if not 2 <= len(parts) <= max_parts:
        raise WireError(0, f"{len(parts)} parts, expected 2: the frames and the exact arrays")
    return parts


def encode_exact_arrays(array_layout: ArrayLayout, arrays: Mapping[str, Array]) -> Packet:
    """Return the exact arrays among some arrays, to be sent.

    Equal bytes are sent once: a later array has the number of their frame.
    """
    head: list[tuple[object, ...]] = []
    frames: dict[bytes, int] = {}
    for name in (name for name in array_layout.exact_shapes if name in arrays):
        array = arrays[name]
        repeated = (frames[array.data],) if array.data in frames else ()
        frames.setdefault(array.data, len(frames))
        head.append((name, array.dtype, tuple(array.shape), array.stype, *repeated))
    return json.dumps(head).encode() if head else b"", list(frames)


def decode_exact_arrays(
    array_layout: ArrayLayout, packet: Packet, templates: Mapping[str, Array] | None = None, missing_names: Collection[str] = ()
) -> dict[str, Array]:
    """Inverse of `encode_exact_arrays`.

    Args:
        arrangement: the model.
        said: the exact arrays.
        like: arrays whose packing they must have.
        lacks: names of the model's arrays that were not sent.

    Raises:
        WireError: they are not the model's exact arrays, or cannot be read.
    """
    head, frames = packet
    try:
        told = json.loads(head) if head else []
        own = itertools.count()
        placed = [(*entry, next(own)) if len(entry) == 4 else tuple(entry) for entry in told]
        arrays = {
            name: Array(dtype, tuple(shape), stype, bytes(frames[at])) for name, dtype, shape, stype, at in placed if at >= 0
        }
        if next(own) != len(frames) or not all(isinstance(name, str) for name in arrays):
            raise ValueError
    except (ValueError, TypeError, IndexError, RecursionError):
        raise WireError(0, "the exact arrays cannot be read") from None
    expected = [name for name in array_layout.exact_shapes if name not in missing_names]
    if arrays.keys() != set(expected):
        raise WireError(0, f"the exact arrays are {sorted(arrays)}, expected {sorted(expected)}")
    for name, array in arrays.items():
        packed, dtype = (array.stype, array.dtype) if templates is None else (templates[name].stype, templates[name].dtype)
        if array.stype != packed or (
            packed == NUMPY_STYPE and read_packed_shape(array, dtype) != array_layout.exact_shapes[name]
        ):
            raise WireError(0, f'"{name}" is no array of numbers of shape {array_layout.exact_shapes[name]}')
    return arrays


def payload_bytes(content: RecordDict) -> int:
    """Return the size of our records in a content. WireError if there are none."""
    task = content.get(TASK_KEY)
    frame = task.get(_FRAME_KEY) if isinstance(task, ConfigRecord) else None
    return len(read_payload(content)) + (len(frame) if isinstance(frame, bytes) else 0)
