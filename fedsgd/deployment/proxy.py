"""What a node really sends and receives: a TCP proxy between it and the SuperLink that counts every byte, in each direction.

That is all that the two sockets carry: requests and replies with their headers, polls, heartbeats and the app's bundle, under
TLS as it is encrypted. Headers of TCP and IP are not in it. The loopback's own counters would count everything twice.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

CHUNK = 1 << 16
ACCEPT_SECONDS = 0.5
JOIN_SECONDS = 5.0


class Seen(NamedTuple):
    """Bytes that went by. at: when, by the clock that all processes of a machine share; direction: as the ledger has it."""

    at: float
    direction: Literal["down", "up"]
    n_bytes: int


class CountingProxy:
    """Listens at `port` of 127.0.0.1 and passes on to `target`, another port of it, until it is closed."""

    def __init__(self, target: int) -> None:
        self.seen: list[Seen] = []
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(ACCEPT_SECONDS)
        self.port: int = self._listener.getsockname()[1]
        self._open = True
        self._lines: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._acceptor = self._thread(self._accept)

    def close(self) -> None:
        """Listen no longer, and cut all connections."""
        self._open = False
        self._acceptor.join()
        self._listener.close()
        for line in list(self._lines):
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(JOIN_SECONDS)

    def _thread(self, target: Callable[..., None], *given: Any) -> threading.Thread:
        thread = threading.Thread(target=target, args=given, name=f"proxy-{self.port}", daemon=True)
        thread.start()
        return thread

    def _accept(self) -> None:
        while self._open:
            try:
                node, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            try:
                link = socket.create_connection(("127.0.0.1", self._target))
            except OSError:  # as the node would find it without us
                node.close()
                continue
            self._lines |= {node, link}
            pair = self._thread(self._pass_on, node, link, "up"), self._thread(self._pass_on, link, node, "down")
            alive = [thread for thread in self._threads if thread.is_alive()]
            self._threads = [*alive, self._thread(self._closed, node, link, pair)]

    def _pass_on(self, source: socket.socket, to: socket.socket, direction: Literal["down", "up"]) -> None:
        with suppress(OSError):
            source.settimeout(None)
            while data := source.recv(CHUNK):
                self.seen.append(Seen(time.monotonic(), direction, len(data)))
                to.sendall(data)
        with suppress(OSError):
            to.shutdown(socket.SHUT_WR)

    def _closed(self, node: socket.socket, link: socket.socket, pair: Sequence[threading.Thread]) -> None:
        """Both ends are let go of when nothing more comes either way."""
        for thread in pair:
            thread.join()
        for line in (node, link):
            self._lines.discard(line)
            line.close()
