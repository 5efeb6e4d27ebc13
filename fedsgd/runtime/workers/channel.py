"""Channels between the server and its workers. A channel carries messages in order, independent of their meaning.

A message has a head of a few bytes and some frames. Large frames are written to a shared file, which is about four times as
fast as a pipe for frames of 800 kB or more.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Protocol

from fedsgd.runtime.workers.shared_memory import SharedFile

MIN_SHARED_FRAME_BYTES = 1 << 16
"""Minimum bytes of a frame that is written to the shared file, once for all messages that contain the frame."""
MAX_INLINE_MESSAGE_BYTES = 1 << 12
"""Maximum bytes of a body in the pipe. The shared file takes larger bodies, so that a full pipe does not block the sender."""
_NOTICE = struct.Struct("<QqQ")
"""Beginning of a pipe message: number of flips, offset of the body or `_INLINE` if the body follows, length of the body."""
_COUNTS = struct.Struct("<II")
"""Beginning of a body: length of the head, number of frames."""
_FRAME = struct.Struct("<qQ")
"""Entry of a frame in a body: offset in the shared file or `_INLINE`, length."""
_INLINE = -1
_SECOND_HALF_OFFSET = 1 << 40


class Channel(Protocol):
    """One end of a connection between two processes, of one machine or of two."""

    def fileno(self) -> int:
        """Return the file descriptor that becomes readable when there is a message to receive."""

    def send(self, head: bytes, frames: Sequence[bytes] = ()) -> None:
        """Send a message; raise an OSError if the other end is closed.

        Args:
            head: packed description of the message.
            frames: frames of the message.
        """

    def receive(self) -> tuple[bytes, list[bytes]]:
        """Return head and frames of the next message; raise EOFError or OSError if the other end is closed."""

    def close(self) -> None:
        """Close this end, which the other end notices."""


class SharedOutbox:
    """Shared file in which a sender writes the large messages of one channel or several.

    The sender writes to one half of the file, and `flip` switches to the other half. Data remains readable until the second
    flip after writing.
    """

    def __init__(self) -> None:
        self.file = SharedFile()
        self.n_flips = 0
        self._end_offset = 0
        self._offsets: dict[int, tuple[bytes, int]] = {}

    def flip(self) -> None:
        """Switch to the file's other half. The receivers must have read all messages from before the last flip."""
        self.n_flips += 1
        self._end_offset = self.n_flips % 2 * _SECOND_HALF_OFFSET
        self._offsets = {}

    def write_once(self, data: bytes) -> int:
        """Write bytes unless the same object was written since the last flip, and return their offset in the file."""
        if id(data) not in self._offsets:
            self._offsets[id(data)] = data, self._end_offset
            self._end_offset = self.file.write(self._end_offset, data)
        return self._offsets[id(data)][1]


class PipeChannel:
    """Channel between processes of one machine: a pipe, and for large messages the shared files `outbox` and `inbox`."""

    def __init__(self, pipe: Connection, outbox: SharedOutbox, inbox: SharedFile) -> None:
        self.pipe = pipe
        self.outbox = outbox
        self.inbox = inbox
        self._last_flip = 0
        self._frame_cache: dict[int, bytes] = {}

    def fileno(self) -> int:
        """Return the file descriptor of the pipe."""
        return self.pipe.fileno()

    def send(self, head: bytes, frames: Sequence[bytes] = ()) -> None:
        """Send a message; raise an OSError if the other end is closed."""
        offsets = [self.outbox.write_once(f) if len(f) >= MIN_SHARED_FRAME_BYTES else _INLINE for f in frames]
        parts = [_COUNTS.pack(len(head), len(frames))]
        parts += [_FRAME.pack(offset, len(frame)) for offset, frame in zip(offsets, frames, strict=True)]
        body = b"".join([*parts, head, *(f for f in frames if len(f) < MIN_SHARED_FRAME_BYTES)])
        offset = self.outbox.write_once(body) if len(body) > MAX_INLINE_MESSAGE_BYTES else _INLINE
        self.pipe.send_bytes(_NOTICE.pack(self.outbox.n_flips, offset, len(body)) + (body if offset == _INLINE else b""))

    def receive(self) -> tuple[bytes, list[bytes]]:
        """Return head and frames of the next message; raise EOFError or OSError if the other end is closed."""
        notice = self.pipe.recv_bytes()
        n_flips, offset, length = _NOTICE.unpack_from(notice)
        body = notice[_NOTICE.size :] if offset == _INLINE else self.inbox.read(offset, length)
        if n_flips != self._last_flip:
            self._last_flip, self._frame_cache = n_flips, {}
        head_length, n_frames = _COUNTS.unpack_from(body)
        position = _COUNTS.size + _FRAME.size * n_frames + head_length
        head, frames = body[position - head_length : position], []
        for number in range(n_frames):
            offset, length = _FRAME.unpack_from(body, _COUNTS.size + _FRAME.size * number)
            if offset == _INLINE:
                frames.append(body[position : position + length])
                position += length
            else:
                frames.append(self._read_shared_frame(offset, length))
        return head, frames

    def _read_shared_frame(self, offset: int, length: int) -> bytes:
        if offset not in self._frame_cache:
            self._frame_cache[offset] = self.inbox.read(offset, length)
        return self._frame_cache[offset]

    def close(self) -> None:
        """Close the pipe and the inbox, which the other end notices."""
        self.pipe.close()
        self.inbox.close()
