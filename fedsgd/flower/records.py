"""Bytes in Flower's records, and bytes of Flower's messages.

Our bytes are one opaque value, which costs the fewest objects and requests. Above 5 MiB they are one array, which Flower sends
in chunks, because that is quicker.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable
from functools import lru_cache, partial

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.app.message.message import remove_content_from_message
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE as CHUNK

from fedsgd.errors import WireError
from fedsgd.runtime.workers import protocol

Record = ArrayRecord | MetricRecord | ConfigRecord
RecordCache = dict[int, tuple[Record, Hashable, int]]
"""A record, its content and the bytes of its objects, by the record's id."""
RECORD_KEY = "fedsgd"
"""The record of a message's content, and of a node's state, that is ours."""
_VALUE_KEY = "frames"
_PAYLOAD_STYPE = "fedsgd.v1"
MAX_CONFIG_VALUE_BYTES = 5 * 2**20
_OBJECT_ID_LENGTH = 64
"""Characters of the name of one of Flower's objects."""
_MAX_SAMPLE_BYTES = 32
"""Bytes of a chunk, at most, that are compared before all of them are."""
_BLOCK_BYTES = 2**16


def write_payload(content: RecordDict, data: bytes) -> RecordDict:
    """Add our record with these bytes to a content, and return the content."""
    if len(data) <= MAX_CONFIG_VALUE_BYTES:
        content[RECORD_KEY] = ConfigRecord({_VALUE_KEY: data})
    else:
        content[RECORD_KEY] = ArrayRecord({_VALUE_KEY: Array("uint8", (len(data),), _PAYLOAD_STYPE, data)})
    return content


def read_payload(content: RecordDict) -> bytes:
    """Return the bytes of our record in a content.

    Raises:
        WireError: there is no such record, or it has no such bytes.
    """
    record = content.get(RECORD_KEY)
    value = record.get(_VALUE_KEY) if isinstance(record, ConfigRecord | ArrayRecord) else None
    if isinstance(value, Array) and value.stype == _PAYLOAD_STYPE:
        return value.data
    if isinstance(value, bytes):
        return value
    raise WireError(0, f'the message has no such bytes: expected a record "{RECORD_KEY}" with "{_VALUE_KEY}"')


def pack_records(content: RecordDict) -> bytes:
    """Return the records of a message's content as bytes: Flower's objects with their ids, the content itself last."""
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    objects = get_all_nested_objects(content)
    return protocol.pack_packets([(name.encode(), (part.deflate(),)) for name, part in objects.items()])


def unpack_records(data: bytes) -> RecordDict:
    """Return the records that `pack_records` packed; nothing is unpickled."""
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    objects = {bytes(name).decode(): part for name, (part,) in protocol.unpack_packets(data)}
    content = inflate_object_from_contents(list(objects)[-1], objects)
    assert isinstance(content, RecordDict)
    return content


def count_message_bytes(message: Message, content: RecordDict | None = None, cache: RecordCache | None = None) -> int:
    """Return the bytes of a message as Flower stores and sends it: a tree of objects, equal objects once.

    Requests, headers and polls come in addition to it. Flower names an object by a hash of its content. Here large contents
    are compared instead, which takes no time unless they are equal.

    Args:
        message: the message, with a content or with an error.
        content: content in the place of the message's own.
        cache: records of other messages, so that a shared record is read once; it is extended. Records must not change.
    """
    objects = _ObjectCounter()
    if message.has_content():
        objects.add_content(message.content if content is None else content, {} if cache is None else cache)
    return objects.n_bytes + len(remove_content_from_message(message).deflate())


class _ObjectCounter:
    """Distinct objects of one message, each with a number.

    Attributes:
        n_bytes: bytes of these objects.
    """

    def __init__(self) -> None:
        self.n_bytes = 0
        self._numbers: dict[Hashable, int] = {}
        self._chunks: dict[bytes, bytes | memoryview] = {}

    def add_content(self, content: RecordDict, cache: RecordCache) -> None:
        """Count the content of a message."""
        add = self._add_record
        if len(content.array_records) < 2:  # else two records may share arrays
            add = partial(self._add_separate_record, cache)
        children = {add(record) for record in content.values()}
        self._add_parent("content", type(content), len(children), _count_reference_bytes(content))

    def _add_separate_record(self, cache: RecordCache, record: Record) -> int:
        """Count a record that shares no objects with the other records of a message."""
        if id(record) not in cache:
            objects = _ObjectCounter()
            objects._add_record(record)
            cache[id(record)] = record, next(reversed(objects._numbers)), objects.n_bytes
        _, key, n_bytes = cache[id(record)]
        return self._add(key, n_bytes)

    def _add_record(self, record: Record) -> int:
        if not isinstance(record, ArrayRecord):
            data = record.deflate()
            return self._add(data, len(data))
        arrays = [self._add_array(array) for array in record.values()]
        return self._add_parent((tuple(record), tuple(arrays)), type(record), len(set(arrays)), _count_reference_bytes(record))

    def _add_array(self, array: Array) -> int:
        data = memoryview(array.data) if len(array.data) > CHUNK else array.data
        chunks = [self._add_chunk(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK)]
        order = {chunk: i for i, chunk in enumerate(dict.fromkeys(chunks))}
        body = _build_array_body(array.dtype, tuple(array.shape), array.stype, tuple(order[chunk] for chunk in chunks))
        return self._add_parent(f"{body} {chunks}", type(array), len(order), len(body))

    def _add_chunk(self, data: bytes | memoryview) -> int:
        """Count a chunk. Its key is its length and a sample of its bytes, with a sign for each other chunk with these."""
        key = b"%d %b" % (len(data), bytes(data[:: len(data) // _MAX_SAMPLE_BYTES + 1]))
        while (other := self._chunks.setdefault(key, data)) is not data and not _are_equal(other, data):
            key += b"+"
        return self._add_parent(key, ArrayChunk, 0, len(data))

    def _add_parent(self, key: Hashable, kind: type, n_children: int, n_body: int) -> int:
        """Count an object by the length of its head, which names its children, and of its body."""
        head = len(f"{kind.__qualname__} {n_body}") + 2 + max(0, n_children * (_OBJECT_ID_LENGTH + 1) - 1)
        return self._add(key, head + n_body)

    def _add(self, key: Hashable, n_bytes: int) -> int:
        """Count an object, unless an equal one was counted, and return its number."""
        if key not in self._numbers:
            self._numbers[key] = len(self._numbers)
            self.n_bytes += n_bytes
        return self._numbers[key]


def _are_equal(a: bytes | memoryview, b: bytes | memoryview) -> bool:
    """Compare two buffers of one length, block by block."""
    return all(bytes(a[at : at + _BLOCK_BYTES]) == bytes(b[at : at + _BLOCK_BYTES]) for at in range(0, len(a), _BLOCK_BYTES))


@lru_cache(10_000)
def _build_array_body(dtype: str, shape: tuple[int, ...], stype: str, chunks: tuple[int, ...]) -> str:
    """Return the body of the object of an array."""
    return json.dumps({"dtype": dtype, "shape": shape, "stype": stype, "arraychunk_ids": chunks})


def _count_reference_bytes(names: Iterable[str]) -> int:
    """Return the bytes of a body that refers to an object by each of these names."""
    return len(json.dumps(dict.fromkeys(names, "0" * _OBJECT_ID_LENGTH)))
