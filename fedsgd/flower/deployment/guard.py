"""Guard of a deployment: a small process that ends all others if their launcher is killed.

    python -P -m fedsgd.flower.deployment.guard LAUNCHER

A process cannot act on its own SIGKILL, and Flower's processes do not end with the process that started them. The launcher
holds the write end of the guard's standard input and writes a line of JSON for each fact that the guard needs. If the launcher
ends without the word `finished`, the guard ends the processes of the deployment and removes its temporary folders.
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
"""Between two looks at the launcher: the pipe stays open where another process has inherited its write end."""
EXIT_SECONDS = 10.0
"""For the guard of a finished deployment to end."""
_IGNORED_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class Guard:
    """Handle of the guard process, for the launcher. As a context it says at the end that the deployment is finished.

    Raises:
        DeploymentError: the process cannot be started.
    """

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
        """Have all processes with this FLWR_HOME ended if the launcher is killed."""
        self._send("home", str(home))

    def register_address(self, address: str) -> None:
        """Have younger processes with a hidden environment ended too if this address is on their command line."""
        self._send("address", address)

    def unregister_address(self, address: str) -> None:
        """Undo `register_address`: a different deployment may have the address now."""
        self._send("spare", address)

    def register_folder(self, folder: Path) -> None:
        """Have a folder removed if the launcher is killed."""
        self._send("folder", str(folder))

    def unregister_folder(self, folder: Path) -> None:
        """Leave a folder after all that was to be removed."""
        self._send("keep", str(folder))

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _send(self, kind: str, value: str) -> None:
        with suppress(OSError):  # a guard that was killed does not end the deployment
            self._stdin.write(json.dumps([kind, value]).encode() + b"\n")
            self._stdin.flush()


def main() -> None:
    """Read facts until the launcher ends; then end and remove what it left."""
    for name in _IGNORED_SIGNALS:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    began = time.time()
    homes, addresses, folders = set[str](), set[str](), set[str]()
    for fact, value in _read_messages(int(sys.argv[1])):
        match fact:
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
        processes.stop(Path(home), (), addresses, began)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _read_messages(launcher_pid: int) -> Iterator[tuple[str, str]]:
    """Yield (fact, value) for each complete line of standard input until the launcher has ended and the pipe is empty."""
    data = b""
    while True:
        is_running = os.getppid() == launcher_pid  # before the pipe is read: a launcher that has ended writes nothing more
        if select.select([0], [], [], POLL_SECONDS if is_running else 0.0)[0]:
            part = os.read(0, 1 << 16)
            if not part:
                return
            *lines, data = (data + part).split(b"\n")
            yield from (tuple(json.loads(line)) for line in lines)
        elif not is_running:
            return


if __name__ == "__main__":
    main()
