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

CHUNK_BYTES = 1 << 16
ACCEPT_SECONDS = 0.5
JOIN_SECONDS = 5.0


class SocketTraffic(NamedTuple):
    """Bytes that went by. at: when, by the clock that all processes of a machine share; direction: as the ledger has it."""

    time: float
    direction: Literal["down", "up"]
    n_bytes: int


class CountingProxy:
    """Listens at `port` of 127.0.0.1 and passes on to `target_port`, another port of it, until it is closed."""

    def __init__(self, target_port: int) -> None:
        self.traffic: list[SocketTraffic] = []
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(ACCEPT_SECONDS)
        self.port: int = self._listener.getsockname()[1]
        self._is_open = True
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._acceptor = self._start_thread(self._accept_connections)

    def close(self) -> None:
        """Listen no longer, and cut all connections."""
        self._is_open = False
        self._acceptor.join()
        self._listener.close()
        for line in list(self._connections):
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(JOIN_SECONDS)

    def _start_thread(self, target: Callable[..., None], *given: Any) -> threading.Thread:
        thread = threading.Thread(target=target, args=given, name=f"proxy-{self.port}", daemon=True)
        thread.start()
        return thread

    def _accept_connections(self) -> None:
        while self._is_open:
            try:
                node, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            try:
                link = socket.create_connection(("127.0.0.1", self._target_port))
            except OSError:  # as the node would find it without us
                node.close()
                continue
            self._connections |= {node, link}
            pair = self._start_thread(self._forward, node, link, "up"), self._start_thread(self._forward, link, node, "down")
            alive = [thread for thread in self._threads if thread.is_alive()]
            self._threads = [*alive, self._start_thread(self._close_connections, node, link, pair)]

    def _forward(self, source: socket.socket, destination: socket.socket, direction: Literal["down", "up"]) -> None:
        with suppress(OSError):
            source.settimeout(None)
            while data := source.recv(CHUNK_BYTES):
                self.traffic.append(SocketTraffic(time.monotonic(), direction, len(data)))
                destination.sendall(data)
        with suppress(OSError):
            destination.shutdown(socket.SHUT_WR)

    def _close_connections(self, node: socket.socket, superlink: socket.socket, threads: Sequence[threading.Thread]) -> None:
        """Both ends are let go of when nothing more comes either way."""
        for thread in threads:
            thread.join()
        for line in (node, superlink):
            self._connections.discard(line)
            line.close()
