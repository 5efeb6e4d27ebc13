"""Guard of a deployment: a small process that ends all other processes if their launcher is killed.

    python -P -m fedsgd.flower.deployment.guard LAUNCHER_PID

A process cannot act on its own SIGKILL, and Flower's processes do not end with the process that started them. The launcher
writes messages to the guard's standard input, each as a line of JSON, [kind, value]. If the launcher ends without the message
`finished`, the guard ends the deployment's processes and removes the temporary folders.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from fedsgd.flower.deployment import processes

POLL_SECONDS = 1.0
"""Interval between two checks of the launcher. The end of the pipe does not suffice: another process may have inherited it."""
EXIT_SECONDS = 10.0
"""Time limit for the guard of a finished deployment to end."""
_IGNORED_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class Guard:
    """Handle of the guard process in the launcher. Leaving its context reports that the deployment is finished."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-m", "fedsgd.flower.deployment.guard", str(os.getpid())]
        self._process = processes.popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._send("finished", "")
        with suppress(OSError):
            self._stdin.close()
        try:
            self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def register_home(self, home: Path) -> None:
        """Make the guard end all processes with this FLWR_HOME if the launcher is killed."""
        self._send("home", str(home))

    def register_address(self, address: str) -> None:
        """Make the guard also end later processes that hide their environment and have this address on their command line."""
        self._send("address", address)

    def unregister_address(self, address: str) -> None:
        """Undo `register_address`, because a different deployment may use the address now."""
        self._send("spare", address)

    def register_folder(self, folder: Path) -> None:
        """Make the guard remove a folder if the launcher is killed."""
        self._send("folder", str(folder))

    def unregister_folder(self, folder: Path) -> None:
        """Undo `register_folder`, so that the folder remains."""
        self._send("keep", str(folder))

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _send(self, kind: str, value: str) -> None:
        with suppress(OSError):  # the deployment continues if the guard was killed
            self._stdin.write(json.dumps([kind, value]).encode() + b"\n")
            self._stdin.flush()


def main() -> None:
    """Read messages until the launcher ends. Then end an unfinished deployment's processes and remove its folders."""
    for name in _IGNORED_SIGNALS:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    start_time = time.time()
    homes, addresses, folders = set[str](), set[str](), set[str]()
    for kind, value in _read_messages(int(sys.argv[1])):
        match kind:
            case "finished":
                return
            case "home":
                homes.add(value)
            case "address":
                addresses.add(value)
            case "spare":
                addresses.discard(value)
            case "folder":
                folders.add(value)
            case "keep":
                folders.discard(value)
    for home in homes:
        processes.stop(Path(home), (), addresses, start_time)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _read_messages(launcher_pid: int) -> Iterator[tuple[str, str]]:
    """Yield (kind, value) for each complete line of standard input until the launcher has ended and the pipe is empty."""
    data = b""
    while True:
        is_running = os.getppid() == launcher_pid  # checked before the pipe: a launcher that has ended writes nothing more
        if select.select([0], [], [], POLL_SECONDS if is_running else 0.0)[0]:
            chunk = os.read(0, 1 << 16)
            if not chunk:
                return
            *lines, data = (data + chunk).split(b"\n")
            yield from (tuple(json.loads(line)) for line in lines)
        elif not is_running:
            return


if __name__ == "__main__":
    main()
