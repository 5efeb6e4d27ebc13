"""Tests of the certificates of a deployment."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest

from fedsgd.flower.deployment import tls


def test_certificate_is_valid_only_for_this_machine_and_its_own_authority(tmp_path: Path) -> None:
    certificates, other_folder = tls.create_certificates(tmp_path), tmp_path / "other"
    other_folder.mkdir()
    assert certificates.key.stat().st_mode & 0o077 == 0
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificates.certificate, certificates.key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(4):
                connection, _ = listener.accept()
                try:
                    with server.wrap_socket(connection, server_side=True) as tls_connection:
                        tls_connection.sendall(b"hello")
                except (ssl.SSLError, OSError):
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        for authority, name, expected in (
            (certificates.ca_certificate, "127.0.0.1", b"hello"),
            (certificates.ca_certificate, "localhost", b"hello"),
            (certificates.ca_certificate, "example.org", None),
            (tls.create_certificates(other_folder).ca_certificate, "localhost", None),
        ):
            client = ssl.create_default_context(cafile=str(authority))
            with socket.create_connection(listener.getsockname()) as connection:
                if expected is None:
                    with pytest.raises(ssl.SSLCertVerificationError):
                        client.wrap_socket(connection, server_hostname=name)
                else:
                    with client.wrap_socket(connection, server_hostname=name) as tls_connection:
                        assert tls_connection.recv(5) == expected
