"""What a node really sends and receives: a TCP proxy between it and the SuperLink that counts every byte, in each direction.

That is all that the two sockets carry: requests and replies with their headers, polls, heartbeats and the app's bundle, under
TLS as it is encrypted. Headers of TCP and IP are not in it. The loopback's own counters would count everything twice.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Literal, NamedTuple

CHUNK = 1 << 16
ACCEPT_SECONDS = 0.5


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
        self._threads = [threading.Thread(target=self._accept, name=f"proxy-{self.port}", daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        """Cut all connections and listen no longer."""
        self._open = False
        for line in list(self._lines):
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(2 * ACCEPT_SECONDS)
        self._listener.close()

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
            ways: tuple[tuple[socket.socket, socket.socket, Literal["down", "up"]], ...]
            ways = (node, link, "up"), (link, node, "down")
            self._lines |= {node, link}
            pair = [threading.Thread(target=self._pass_on, args=way, name=f"proxy-{self.port}", daemon=True) for way in ways]
            self._threads = [thread for thread in self._threads if thread.is_alive()] + pair
            for thread in pair:
                thread.start()
            threading.Thread(target=self._closed, args=(node, link, pair), name=f"proxy-{self.port}", daemon=True).start()

    def _pass_on(self, source: socket.socket, to: socket.socket, direction: Literal["down", "up"]) -> None:
        with suppress(OSError):
            source.settimeout(None)
            while data := source.recv(CHUNK):
                self.seen.append(Seen(time.monotonic(), direction, len(data)))
                to.sendall(data)
        with suppress(OSError):
            to.shutdown(socket.SHUT_WR)

    def _closed(self, node: socket.socket, link: socket.socket, pair: list[threading.Thread]) -> None:
        for thread in pair:
            thread.join()
        for line in (node, link):
            self._lines.discard(line)
            line.close()
