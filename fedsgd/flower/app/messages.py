"""Records that CompressedStrategy and compression_mod add to an app's messages.

- Server, record "fedsgd": settings, MODEL frames and exact arrays. Nodes with the same base round get the same record.
- Server, record "fedsgd-task": the TASK frame of one node.
- Node, record "fedsgd", compressed: the name of the reply's record, the UPDATE or RESYNC frame, the exact arrays, and the names
  of missing arrays and of arrays with other types than the model's. Arrays that the model does not have stay in their record.
- Node, record "fedsgd", uncompressed: the name of the record that is sent as it is, and the tied names.

Each message has the settings, so a node applies the server's settings and needs none of its own.
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
"""Name of the record with the TASK frame of one node."""
_FRAME_KEY = "frame"


@dataclass(frozen=True, eq=False)
class CompressedRequest:
    """Compressed message to a node: settings of the session, the TASK frame and MODEL frames, and exact arrays by name."""

    settings: CompressionSettings
    frames: Message
    exact_arrays: Mapping[str, Array]


def create_shared_record(settings: CompressionSettings, frames: Message, arrays: ArrayRecord) -> Record:
    """Return the record for all nodes with the same MODEL frames: settings, frames, and the model's exact arrays."""
    data = protocol.pack_packets([(settings.encode(), frames), encode_exact_arrays(settings.array_layout, arrays)])
    return write_payload(RecordDict(), data)[RECORD_KEY]


def build_compressed_content(content: RecordDict, key: str, record: Record, task: bytes) -> RecordDict:
    """Return the content of a message with fedsgd's two records instead of the model's record."""
    return replace_records(content, key, {RECORD_KEY: record, TASK_KEY: ConfigRecord({_FRAME_KEY: task})})


def check_names(source: str, content: RecordDict) -> None:
    """Raise ModelError if a content has a record with a name of fedsgd's records, because fedsgd would replace this record."""
    for name in (RECORD_KEY, TASK_KEY):
        if name in content:
            raise ModelError(f'{source} has a record "{name}", but fedsgd uses this name: rename the record')


def is_compressed(content: RecordDict) -> bool:
    """Return True for a content with both records of fedsgd."""
    return RECORD_KEY in content and TASK_KEY in content


def decode_request(content: RecordDict, allowed_paths: Collection[str] = ()) -> CompressedRequest:
    """Decode a content that `build_compressed_content` built. WireError for any other content.

    Of the compressor classes outside fedsgd, only those in `allowed_paths` are imported.
    """
    record = content[TASK_KEY]
    task = record.get(_FRAME_KEY) if isinstance(record, ConfigRecord) else None
    (data, frames), exact_packet = _unpack_parts(read_payload(content))
    if not isinstance(task, bytes):
        raise WireError(0, "the message has no TASK frame")
    settings = decode_settings(data, allowed_paths)
    return CompressedRequest(settings, (task, *frames), decode_exact_arrays(settings.array_layout, exact_packet))


def encode_reply(key: str, frames: Message, settings: CompressionSettings, arrays: ReplyArrays | None) -> bytes:
    """Encode a reply whose UPDATE frame replaces the record `key`, or a reply with a RESYNC frame and without arrays."""
    parts: list[Packet] = [
        (key.encode(), frames),
        (b"", ()) if arrays is None else encode_exact_arrays(settings.array_layout, arrays.model_arrays),
    ]
    dtypes = {} if arrays is None else settings.array_layout.find_dtype_changes(arrays.model_arrays)
    if arrays is not None and (arrays.missing_names or dtypes):
        names_by_dtype = {dtype: [name for name in dtypes if dtypes[name] == dtype] for dtype in dict.fromkeys(dtypes.values())}
        if len(names_by_dtype) == 1 and dtypes.keys() == settings.array_layout.slices.keys() - set(arrays.missing_names):
            names_by_dtype = {dtype: [] for dtype in names_by_dtype}  # all arrays have this type: no names need be sent
        parts.append((json.dumps([arrays.missing_names, names_by_dtype], separators=(",", ":")).encode(), ()))
    return protocol.pack_packets(parts)


def encode_uncompressed_reply(key: str, groups: TiedGroups) -> bytes:
    """Encode the record for a reply that is sent uncompressed, with the groups of tied names in the reply's record `key`.

    The key is empty if no record has arrays of the model.
    """
    return protocol.pack_packets([(key.encode(), ()), (json.dumps(groups).encode(), ())])


def decode_groups(compressed_reply: CompressedReply) -> TiedGroups:
    """Return the groups that `encode_uncompressed_reply` encoded. WireError for other bytes."""
    try:
        groups = tuple(tuple(group) for group in json.loads(compressed_reply.side_packet[0]))
    except (ValueError, TypeError, RecursionError):
        raise WireError(0, "the groups of tied names cannot be read") from None
    if not all(isinstance(name, str) for group in groups for name in group):
        raise WireError(0, "the groups of tied names contain something other than text")
    return groups


@dataclass(frozen=True, eq=False)
class CompressedReply:
    """Reply of a node, as far as the reply can be decoded without the plan.

    Attributes:
        key: name of the record that the frames replace, or that is sent uncompressed; empty for a reply without such a record.
        frames: UPDATE or RESYNC frame; empty for a record that is sent uncompressed.
        side_packet: encoded exact arrays; for a reply without frames, the tied names.
        missing_names: names of the model's arrays that the record lacks.
        dtypes: types of the record's arrays that differ from the model's types, by name.
    """

    key: str
    frames: Message
    side_packet: Packet
    missing_names: tuple[str, ...] = ()
    dtypes: Mapping[str, str] = field(default_factory=dict)


def decode_reply(content: RecordDict, array_layout: ArrayLayout) -> CompressedReply:
    """Decode a reply of `encode_reply` or `encode_uncompressed_reply`. WireError for any other content."""
    (key_bytes, frames), side_packet, *rest = _unpack_parts(read_payload(content), max_parts=3)
    try:
        key = bytes(key_bytes).decode()
    except UnicodeDecodeError:
        raise WireError(0, "the name of the record is no text") from None
    missing_names, dtypes = _decode_differences(rest[0][0], array_layout) if rest else ((), {})
    return CompressedReply(key, tuple(frames), side_packet, missing_names, dtypes)


def _decode_differences(data: bytes, array_layout: ArrayLayout) -> tuple[tuple[str, ...], dict[str, str]]:
    """Decode the names of missing arrays, and the types that differ from the model's by name."""
    try:
        missing_names, names_by_dtype = json.loads(data)
        reply_names = array_layout.slices.keys() - {*missing_names}
        dtypes = {name: dtype for dtype, names in names_by_dtype.items() for name in names or reply_names}
        if not {*missing_names} <= {*array_layout.names} or not dtypes.keys() <= reply_names:
            raise ValueError
        if not all(map(is_float_type, names_by_dtype)):
            raise ValueError
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise WireError(0, "the names of missing arrays and the types of arrays cannot be read") from None
    return tuple(missing_names), dtypes


def replace_records(content: RecordDict, key: str, replacements: Mapping[str, Record]) -> RecordDict:
    """Return a new content with replacements at the place of the record `key`, and without fedsgd's records."""
    new_content = RecordDict()
    for name, record in content.items():
        if name == key:
            for new_name, replacement in replacements.items():
                new_content[new_name] = replacement
        elif name not in (RECORD_KEY, TASK_KEY):
            new_content[name] = record
    return new_content


def _unpack_parts(data: bytes, max_parts: int = 2) -> Sequence[Packet]:
    parts = list(protocol.unpack_packets(data))
    if not 2 <= len(parts) <= max_parts:
        raise WireError(0, f"the record has {len(parts)} parts, expected {' or '.join(map(str, range(2, max_parts + 1)))}")
    return parts


def encode_exact_arrays(array_layout: ArrayLayout, arrays: Mapping[str, Array]) -> Packet:
    """Encode the exact arrays among some arrays. Equal bytes are sent once: later arrays refer to the frame by its number."""
    head: list[tuple[object, ...]] = []
    frames: dict[bytes, int] = {}
    for name in (name for name in array_layout.exact_shapes if name in arrays):
        array = arrays[name]
        reference = (frames[array.data],) if array.data in frames else ()
        frames.setdefault(array.data, len(frames))
        head.append((name, array.dtype, tuple(array.shape), array.stype, *reference))
    return json.dumps(head).encode() if head else b"", list(frames)


def decode_exact_arrays(
    array_layout: ArrayLayout, packet: Packet, templates: Mapping[str, Array] | None = None, missing_names: Collection[str] = ()
) -> dict[str, Array]:
    """Decode the model's exact arrays, except missing arrays. WireError for other arrays.

    `templates` are arrays whose packing is expected, by name; None to accept any packing.
    """
    head, frames = packet
    try:
        entries = json.loads(head) if head else []
        frame_numbers = itertools.count()
        complete_entries = [(*entry, next(frame_numbers)) if len(entry) == 4 else tuple(entry) for entry in entries]
        arrays = {
            name: Array(dtype, tuple(shape), stype, bytes(frames[number]))
            for name, dtype, shape, stype, number in complete_entries
            if number >= 0
        }
        if next(frame_numbers) != len(frames) or not all(isinstance(name, str) for name in arrays):
            raise ValueError
    except (ValueError, TypeError, IndexError, RecursionError):
        raise WireError(0, "the exact arrays cannot be read") from None
    expected_names = array_layout.exact_shapes.keys() - set(missing_names)
    if arrays.keys() != expected_names:
        raise WireError(0, f"got the exact arrays {sorted(arrays)}, expected {sorted(expected_names)}")
    for name, array in arrays.items():
        stype, dtype = (array.stype, array.dtype) if templates is None else (templates[name].stype, templates[name].dtype)
        if array.stype != stype or (
            stype == NUMPY_STYPE and read_packed_shape(array, dtype) != array_layout.exact_shapes[name]
        ):
            raise WireError(0, f'"{name}" is no array of numbers of shape {array_layout.exact_shapes[name]}')
    return arrays


def payload_bytes(content: RecordDict) -> int:
    """Return the number of bytes in fedsgd's records of a content. WireError for a content without the record "fedsgd"."""
    task = content.get(TASK_KEY)
    frame = task.get(_FRAME_KEY) if isinstance(task, ConfigRecord) else None
    return len(read_payload(content)) + (len(frame) if isinstance(frame, bytes) else 0)
