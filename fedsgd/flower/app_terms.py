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
from fedsgd.flower.app_arrays import NUMPY, is_float_type, packed_shape
from fedsgd.flower.app_model import Arrangement, ReplyArrays
from fedsgd.flower.app_settings import Terms, read_terms
from fedsgd.flower.app_ties import Groups
from fedsgd.flower.records import KEY, put, take
from fedsgd.rounds import Message
from fedsgd.runtime import parcel
from fedsgd.runtime.protocol import Said

Record = ArrayRecord | MetricRecord | ConfigRecord
TASK = "fedsgd-task"
"""The record of a message's content that is a node's own."""
_FRAME = "frame"


@dataclass(frozen=True, eq=False)
class Request:
    """Request to a node. frames: TASK and MODEL; aside: the exact arrays."""

    terms: Terms
    frames: Message
    aside: Mapping[str, Array]


def shared(terms: Terms, frames: Message, arrays: ArrayRecord) -> Record:
    """Return the record for all nodes with the same MODEL frames. arrays: the model, for its exact arrays."""
    data = parcel.packed([(terms.packed(), frames), said_aside(terms.model, arrays)])
    return put(RecordDict(), data)[KEY]


def asked(content: RecordDict, key: str, record: Record, task: bytes) -> RecordDict:
    """Return the content of a message with our records and a TASK frame in the place of the model's record."""
    return without(content, key, {KEY: record, TASK: ConfigRecord({_FRAME: task})})


def check_names(whose: str, content: RecordDict) -> None:
    """Raise ModelError for a content that has a record under a name of ours, which would be lost."""
    for name in (KEY, TASK):
        if name in content:
            raise ModelError(f'{whose} has a record "{name}", which is the name of a record of fedsgd: rename it')


def is_asked(content: RecordDict) -> bool:
    """Return True for a content with our records."""
    return KEY in content and TASK in content


def read_request(content: RecordDict) -> Request:
    """Inverse of `asked`."""
    record = content[TASK]
    task = record.get(_FRAME) if isinstance(record, ConfigRecord) else None
    (terms, frames), aside = _parts(take(content))
    if not isinstance(task, bytes):
        raise WireError(0, "the message has no TASK frame")
    read = read_terms(terms)
    return Request(read, (task, *frames), read_aside(read.model, aside))


def answered(key: str, frames: Message, terms: Terms, arrays: ReplyArrays | None) -> bytes:
    """Return the answer of a node.

    Args:
        key: the record of the reply that these frames stand for.
        frames: UPDATE or RESYNC.
        terms: the terms of the message.
        arrays: that record's arrays; None if the node cannot follow.
    """
    parts: list[Said] = [(key.encode(), frames), (b"", ()) if arrays is None else said_aside(terms.model, arrays.fitting)]
    types = {} if arrays is None else terms.model.types_in(arrays.fitting)
    if arrays is not None and (arrays.lacks or types):
        by_type = {dtype: [name for name in types if types[name] == dtype] for dtype in dict.fromkeys(types.values())}
        if len(by_type) == 1 and types.keys() == terms.model.parts.keys() - set(arrays.lacks):
            by_type = {dtype: [] for dtype in by_type}  # of all arrays, so their names need not be sent
        parts.append((json.dumps([arrays.lacks, by_type], separators=(",", ":")).encode(), ()))
    return parcel.packed(parts)


def answer_uncompressed(key: str, groups: Groups) -> bytes:
    """Return the answer of a node whose arrays contradict the terms and stay in its reply.

    Args:
        key: the record that has the arrays.
        groups: the names that are one tensor each in these arrays.
    """
    return parcel.packed([(key.encode(), ()), (json.dumps(groups).encode(), ())])


def read_groups(answer: Answered) -> Groups:
    """Return the groups of `answer_uncompressed`. WireError if there are none to be read."""
    try:
        groups = tuple(tuple(group) for group in json.loads(answer.aside[0]))
    except (ValueError, TypeError, RecursionError):
        raise WireError(0, "the names of one tensor cannot be read") from None
    if not all(isinstance(name, str) for group in groups for name in group):
        raise WireError(0, "the names of one tensor are no text")
    return groups


@dataclass(frozen=True, eq=False)
class Answered:
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
    aside: Said
    lacks: tuple[str, ...] = ()
    types: Mapping[str, str] = field(default_factory=dict)


def read_answer(content: RecordDict, model: Arrangement) -> Answered:
    """Inverse of `answered`; the exact arrays are not read.

    Args:
        content: content of the reply.
        model: the model, whose arrays the answer may name.

    Raises:
        WireError: it is no answer, or it names arrays that are not in the model.
    """
    (key, frames), aside, *rest = _parts(take(content), most=3)
    try:
        text = bytes(key).decode()
    except UnicodeDecodeError:
        raise WireError(0, "the name of the record is no text") from None
    lacks, types = _read_differences(rest[0][0], model) if rest else ((), {})
    return Answered(text, tuple(frames), aside, lacks, types)


def _read_differences(data: bytes, model: Arrangement) -> tuple[tuple[str, ...], dict[str, str]]:
    try:
        lacks, by_type = json.loads(data)
        types = {name: dtype for dtype, names in by_type.items() for name in names or model.parts.keys() - set(lacks)}
        if not {*lacks} <= {*model.names} or not types.keys() <= model.parts.keys() - {*lacks}:
            raise ValueError
        if not all(map(is_float_type, by_type)):
            raise ValueError
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise WireError(0, "the reply's names of arrays that it lacks, and their types, cannot be read") from None
    return tuple(lacks), types


def without(content: RecordDict, key: str, instead: Mapping[str, Record]) -> RecordDict:
    """Return a new content with other records in the place of the record `key`, and without ours."""
    out = RecordDict()
    for name, record in content.items():
        if name == key:
            for other, value in instead.items():
                out[other] = value
        elif name not in (KEY, TASK):
            out[name] = record
    return out


def _parts(data: bytes, most: int = 2) -> Sequence[Said]:
    parts = list(parcel.unpacked(data))
    if not 2 <= len(parts) <= most:
        raise WireError(0, f"{len(parts)} parts, expected 2: the frames and the exact arrays")
    return parts


def said_aside(arrangement: Arrangement, arrays: Mapping[str, Array]) -> Said:
    """Return the exact arrays among some arrays, to be sent.

    Equal bytes are sent once: a later array has the number of their frame.
    """
    head: list[tuple[object, ...]] = []
    frames: dict[bytes, int] = {}
    for name in (name for name in arrangement.aside if name in arrays):
        array = arrays[name]
        repeated = (frames[array.data],) if array.data in frames else ()
        frames.setdefault(array.data, len(frames))
        head.append((name, array.dtype, tuple(array.shape), array.stype, *repeated))
    return json.dumps(head).encode() if head else b"", list(frames)


def read_aside(
    arrangement: Arrangement, said: Said, like: Mapping[str, Array] | None = None, lacks: Collection[str] = ()
) -> dict[str, Array]:
    """Inverse of `said_aside`.

    Args:
        arrangement: the model.
        said: the exact arrays.
        like: arrays whose packing they must have.
        lacks: names of the model's arrays that were not sent.

    Raises:
        WireError: they are not the model's exact arrays, or cannot be read.
    """
    head, frames = said
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
    expected = [name for name in arrangement.aside if name not in lacks]
    if arrays.keys() != set(expected):
        raise WireError(0, f"the exact arrays are {sorted(arrays)}, expected {sorted(expected)}")
    for name, array in arrays.items():
        packed, dtype = (array.stype, array.dtype) if like is None else (like[name].stype, like[name].dtype)
        if array.stype != packed or (packed == NUMPY and packed_shape(array, dtype) != arrangement.aside[name]):
            raise WireError(0, f'"{name}" is no array of numbers of shape {arrangement.aside[name]}')
    return arrays


def ours(content: RecordDict) -> int:
    """Return the size of our records in a content. WireError if there are none."""
    task = content.get(TASK)
    frame = task.get(_FRAME) if isinstance(task, ConfigRecord) else None
    return len(take(content)) + (len(frame) if isinstance(frame, bytes) else 0)
