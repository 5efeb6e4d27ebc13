"""Client of the fork server: request a command in a forked process, and end with the exit status of the command.

    python -I -S fork_client.py SOCKET COMMAND ARGUMENTS...

If no fork server answers, this process executes COMMAND itself. This module delays the start of each ClientApp, so it imports
only a few modules of the standard library.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time

READY_SECONDS = 120.0
"""Time limit for a fork server that is starting."""


def main() -> int:
    """Run the command, and return its exit status."""
    address, command, *arguments = sys.argv[1:]
    connection = _connect(address)
    if connection is None:
        os.execv(command, [command, *arguments])
    request = {"command": command.rpartition("/")[2], "arguments": arguments, "environment": dict(os.environ)}
    data = json.dumps(request).encode()
    folder = os.open(".", os.O_RDONLY)
    socket.send_fds(connection, [len(data).to_bytes(8, "little")], [0, 1, 2, folder])
    connection.sendall(data)
    status = connection.recv(1)  # empty if the fork server was killed: the status of the forked process is then unknown
    return status[0] if status else 1


def _connect(address: str) -> socket.socket | None:
    """Connect to the fork server. Return None if no server listens and no server is starting (file `ADDRESS.starting`)."""
    connection = socket.socket(socket.AF_UNIX)
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            connection.connect(address)
            return connection
        except OSError:
            if not os.access(f"{address}.starting", os.F_OK) or time.monotonic() > deadline:
                return None
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
