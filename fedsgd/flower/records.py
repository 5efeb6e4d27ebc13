"""Packing of bytes into Flower's records, and the size of Flower's messages.

A payload is one opaque value, so that a message has few objects and needs few requests. A payload above 5 MiB is one array,
because Flower sends an array in chunks, which is faster.
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
"""Record, key of its root object and bytes of its objects, by `id(record)`."""
RECORD_KEY = "fedsgd"
"""Name of fedsgd's record in a message's content and in a node's `context.state`."""
_VALUE_KEY = "frames"
_PAYLOAD_STYPE = "fedsgd.v1"
MAX_CONFIG_VALUE_BYTES = 5 * 2**20
_OBJECT_ID_LENGTH = 64
"""Number of characters in the name of one of Flower's objects."""
_MAX_SAMPLE_BYTES = 32
"""Maximum number of bytes in the sample of a chunk. Two chunks of equal length and with equal samples are compared whole."""
_BLOCK_BYTES = 2**16


def write_payload(content: RecordDict, data: bytes) -> RecordDict:
    """Add fedsgd's record with these bytes to a content, and return the content."""
    if len(data) <= MAX_CONFIG_VALUE_BYTES:
        content[RECORD_KEY] = ConfigRecord({_VALUE_KEY: data})
    else:
        content[RECORD_KEY] = ArrayRecord({_VALUE_KEY: Array("uint8", (len(data),), _PAYLOAD_STYPE, data)})
    return content


def read_payload(content: RecordDict) -> bytes:
    """Return the bytes that `write_payload` wrote into a content. WireError if the content has no payload of fedsgd."""
    record = content.get(RECORD_KEY)
    value = record.get(_VALUE_KEY) if isinstance(record, ConfigRecord | ArrayRecord) else None
    if isinstance(value, Array) and value.stype == _PAYLOAD_STYPE:
        return value.data
    if isinstance(value, bytes):
        return value
    raise WireError(0, f'the message has no payload of fedsgd, expected a record "{RECORD_KEY}" with bytes in "{_VALUE_KEY}"')


def pack_records(content: RecordDict) -> bytes:
    """Return a message's content as bytes: Flower's objects with their ids, the content itself last."""
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    objects = get_all_nested_objects(content)
    return protocol.pack_packets([(name.encode(), (part.deflate(),)) for name, part in objects.items()])


def unpack_records(data: bytes) -> RecordDict:
    """Return the content that `pack_records` packed. Nothing is unpickled."""
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    objects = {bytes(name).decode(): part for name, (part,) in protocol.unpack_packets(data)}
    content = inflate_object_from_contents(list(objects)[-1], objects)
    assert isinstance(content, RecordDict)
    return content


def count_message_bytes(message: Message, content: RecordDict | None = None, cache: RecordCache | None = None) -> int:
    """Return the bytes of a message as Flower stores and sends it: a tree of objects, equal objects once.

    Requests, headers and polls are not counted. Flower hashes contents to find equal objects; this function compares contents,
    which is faster unless they are equal.

    Args:
        message: message with a content or with an error.
        content: content to count instead of the message's own content.
        cache: sizes of records, extended by this call; unused for several ArrayRecords. Records must not change between calls.
    """
    objects = _ObjectCounter()
    if message.has_content():
        objects.add_content(message.content if content is None else content, {} if cache is None else cache)
    return objects.n_bytes + len(remove_content_from_message(message).deflate())


class _ObjectCounter:
    """Counter of a message's distinct objects, which are numbered; `n_bytes` is the size of all counted objects."""

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
        """Count a record that shares no objects with the other records of the message."""
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
        chunks = [self._add_chunk(data[start : start + CHUNK]) for start in range(0, len(data), CHUNK)]
        order = {chunk: i for i, chunk in enumerate(dict.fromkeys(chunks))}
        body = _build_array_body(array.dtype, tuple(array.shape), array.stype, tuple(order[chunk] for chunk in chunks))
        return self._add_parent(f"{body} {chunks}", type(array), len(order), len(body))

    def _add_chunk(self, data: bytes | memoryview) -> int:
        """Count a chunk. Its key is its length and a sample of its bytes, with a "+" for each other chunk of the same key."""
        key = b"%d %b" % (len(data), bytes(data[:: len(data) // _MAX_SAMPLE_BYTES + 1]))
        while (chunk := self._chunks.setdefault(key, data)) is not data and not _are_equal(chunk, data):
            key += b"+"
        return self._add_parent(key, ArrayChunk, 0, len(data))

    def _add_parent(self, key: Hashable, kind: type, n_children: int, n_body: int) -> int:
        """Count an object by the lengths of its head, which names its children, and its body."""
        head = len(f"{kind.__qualname__} {n_body}") + 2 + max(0, n_children * (_OBJECT_ID_LENGTH + 1) - 1)
        return self._add(key, head + n_body)

    def _add(self, key: Hashable, n_bytes: int) -> int:
        """Count an object, unless an equal object was counted, and return its number."""
        if key not in self._numbers:
            self._numbers[key] = len(self._numbers)
            self.n_bytes += n_bytes
        return self._numbers[key]


def _are_equal(a: bytes | memoryview, b: bytes | memoryview) -> bool:
    """Compare two buffers of equal length block by block."""
    starts = range(0, len(a), _BLOCK_BYTES)
    return all(bytes(a[start : start + _BLOCK_BYTES]) == bytes(b[start : start + _BLOCK_BYTES]) for start in starts)


@lru_cache(10_000)
def _build_array_body(dtype: str, shape: tuple[int, ...], stype: str, chunks: tuple[int, ...]) -> str:
    """Return the body of an array's object."""
    return json.dumps({"dtype": dtype, "shape": shape, "stype": stype, "arraychunk_ids": chunks})


def _count_reference_bytes(names: Iterable[str]) -> int:
    """Return the bytes of a body that refers to one object by each of these names."""
    return len(json.dumps(dict.fromkeys(names, "0" * _OBJECT_ID_LENGTH)))
