"""Asks a warm process to run a command in a fork of itself, and ends as that ends: ask.py SOCKET COMMAND ARGUMENTS...

Where nobody answers, it becomes COMMAND. This imports nothing but the standard library, and little of it: it is what a
ClientApp costs before it begins.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time

READY_SECONDS = 120.0
"""For a warm process that is just being started to answer."""


def main() -> int:
    """The exit status of the command."""
    address, command, *arguments = sys.argv[1:]
    line = _connect(address)
    if line is None:
        os.execv(command, [command, *arguments])
    asked = {"command": command.rpartition("/")[2], "arguments": arguments, "environment": dict(os.environ)}
    data = json.dumps(asked).encode()
    folder = os.open(".", os.O_RDONLY)
    socket.send_fds(line, [len(data).to_bytes(8, "little")], [0, 1, 2, folder])
    line.sendall(data)
    answer = line.recv(1)  # nothing: the warm process was killed, and how the fork ends nobody will know
    return answer[0] if answer else 1


def _connect(address: str) -> socket.socket | None:
    """None if nobody listens and nobody is about to: `ADDRESS.starting` is there for as long as somebody is."""
    line = socket.socket(socket.AF_UNIX)
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            line.connect(address)
            return line
        except OSError:
            if not os.access(f"{address}.starting", os.F_OK) or time.monotonic() > deadline:
                return None
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
