"""Tests of the proxy that counts the bytes on a node's connections."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from fedsgd.flower.deployment.counting_proxy import CountingProxy


@pytest.fixture
def doubling_server() -> Iterator[int]:
    """Yield the port of a server that answers each connection with all of its bytes, twice."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                data = b""
                while chunk := connection.recv(1 << 16):
                    data += chunk
                connection.sendall(data * 2)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def request(port: int, data: bytes) -> bytes:
    """Send data to a port, and return the answer."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(1 << 16):
            answer += chunk
    return answer


def test_proxy_forwards_and_counts_each_byte_once(doubling_server: int) -> None:
    proxy = CountingProxy(doubling_server)
    try:
        for n in (0, 1, 100_000):
            assert request(proxy.port, b"x" * n) == b"x" * (2 * n)
    finally:
        proxy.close()
    for direction, total in (("up", 100_001), ("down", 200_002)):
        assert sum(traffic.n_bytes for traffic in proxy.traffic if traffic.direction == direction) == total
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", proxy.port))


def test_proxy_without_target_or_after_close_ends_connections() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        proxy = CountingProxy(port)
        with socket.create_connection(("127.0.0.1", proxy.port)) as connection:
            listener.accept()[0].close()
            assert connection.recv(1) == b""
        with socket.create_connection(("127.0.0.1", proxy.port)) as connection, listener.accept()[0]:
            proxy.close()
            assert connection.recv(1) == b""
    proxy_without_target = CountingProxy(port)
    with socket.create_connection(("127.0.0.1", proxy_without_target.port)) as connection:
        assert connection.recv(1) == b""
    proxy_without_target.close()
    assert not [thread for thread in threading.enumerate() if thread.name == f"proxy-{proxy.port}"]
