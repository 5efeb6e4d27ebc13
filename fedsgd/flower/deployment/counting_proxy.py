"""TCP proxy between a node and the SuperLink that counts all bytes in each direction.

The count covers all data of the sockets: requests and replies with their headers, polls, heartbeats and the app's bundle. With
TLS, the proxy counts the encrypted bytes. Headers of TCP and IP are not counted. The system's counters are not used, because
they would count each byte on the loopback interface twice.
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
    """Number of bytes that the proxy forwarded at once, and the time in seconds of the machine's monotonic clock."""

    time: float
    direction: Literal["down", "up"]
    n_bytes: int


class CountingProxy:
    """Proxy from `port`, a free port of 127.0.0.1, to a target port, which runs until `close`."""

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
        """Stop listening, and close all connections."""
        self._is_open = False
        self._acceptor.join()
        self._listener.close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(JOIN_SECONDS)

    def _start_thread(self, target: Callable[..., None], *arguments: Any) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, name=f"proxy-{self.port}", daemon=True)
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
                superlink = socket.create_connection(("127.0.0.1", self._target_port))
            except OSError:  # the SuperLink would refuse a direct connection too
                node.close()
                continue
            self._connections |= {node, superlink}
            uplink = self._start_thread(self._forward, node, superlink, "up")
            downlink = self._start_thread(self._forward, superlink, node, "down")
            threads = [thread for thread in self._threads if thread.is_alive()]
            self._threads = [*threads, self._start_thread(self._close_connections, node, superlink, (uplink, downlink))]

    def _forward(self, source: socket.socket, destination: socket.socket, direction: Literal["down", "up"]) -> None:
        with suppress(OSError):
            source.settimeout(None)
            while data := source.recv(CHUNK_BYTES):
                self.traffic.append(SocketTraffic(time.monotonic(), direction, len(data)))
                destination.sendall(data)
        with suppress(OSError):
            destination.shutdown(socket.SHUT_WR)

    def _close_connections(self, node: socket.socket, superlink: socket.socket, threads: Sequence[threading.Thread]) -> None:
        """Close both sockets when both directions have ended."""
        for thread in threads:
            thread.join()
        for connection in (node, superlink):
            self._connections.discard(connection)
            connection.close()
