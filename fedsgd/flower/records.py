"""Bytes in Flower's records: one opaque value, which costs the fewest objects and requests, or where it is large one array,
which Flower sends in pieces (above 5 MiB that is quicker)."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedsgd.errors import WireError
from fedsgd.runtime import parcel

KEY = "fedsgd"
"""The record of a message's content, and of a node's state, that is ours."""
_VALUE = "frames"
_STYPE = "fedsgd.v1"
LARGE = 5 * 2**20


def put(content: RecordDict, data: bytes) -> RecordDict:
    """The content, with these bytes in it."""
    if len(data) <= LARGE:
        content[KEY] = ConfigRecord({_VALUE: data})
    else:
        content[KEY] = ArrayRecord({_VALUE: Array("uint8", (len(data),), _STYPE, data)})
    return content


def take(content: RecordDict) -> bytes:
    """The bytes that were put there; WireError if there are none."""
    record = content.get(KEY)
    value = record.get(_VALUE) if isinstance(record, ConfigRecord | ArrayRecord) else None
    if isinstance(value, Array) and value.stype == _STYPE:
        return value.data
    if isinstance(value, bytes):
        return value
    raise WireError(0, f'the message has no bytes of ours: expected a record "{KEY}" with "{_VALUE}"')


def message_bytes(message: Message) -> int:
    """What Flower stores and sends of a message: of the tree of objects that it is, each object once. Requests, headers and
    polls come on top of it."""
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    return sum(len(part.deflate()) for part in get_all_nested_objects(message).values())


def pack_records(content: RecordDict) -> bytes:
    """Return the records of a message's content as bytes: Flower's objects with their ids, the content itself last."""
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    objects = get_all_nested_objects(content)
    return parcel.packed([(name.encode(), (part.deflate(),)) for name, part in objects.items()])


def unpack_records(data: bytes) -> RecordDict:
    """Return the records that `pack_records` packed; nothing is unpickled."""
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    objects = {bytes(name).decode(): part for name, (part,) in parcel.unpacked(data)}
    content = inflate_object_from_contents(list(objects)[-1], objects)
    assert isinstance(content, RecordDict)
    return content
