"""A process that has imported what Flower's apps need, and built the scenario, and is forked for each of them.

    python -m fedsgd.deployment.warm SOCKET SCENARIO DATA

Flower starts a ClientApp for each message, because no two of them may have anything to do with each other. A fork is just as
much a process of its own, with its own id, environment, output and end; it only has its imports behind it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from fedsgd.deployment.launchers import CLIENT, EXECUTOR, SERVER

FILES = 4
"""That come with what is asked: the standard streams, and the folder."""
ASK_SECONDS = 5.0
"""For who asks to have said all of it."""
PARENT_SECONDS = 1.0
"""Between two looks whether who started us is still there."""


class Warm:
    """Forks for whoever asks at this socket. commands: what a fork may run, by name; parent: the process that started this one,
    which may be gone by now."""

    def __init__(self, listener: socket.socket, commands: Mapping[str, Callable[[], Any]], parent: int) -> None:
        self._commands = commands
        self._parent = parent
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._forks: dict[int, socket.socket] = {}
        self._selector.register(listener, selectors.EVENT_READ)
        self._woken, wake = socket.socketpair()
        for end in (self._woken, wake):
            end.setblocking(False)
        self._wake = wake
        signal.set_wakeup_fd(wake.fileno())
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self._selector.register(self._woken, selectors.EVENT_READ)

    def serve(self) -> None:
        """Until the process that started this one is gone."""
        while os.getppid() == self._parent:
            for key, _ in self._selector.select(PARENT_SECONDS):
                if key.fileobj is self._listener:
                    self._fork(self._listener.accept()[0])
                elif key.fileobj is self._woken:
                    self._woken.recv(4096)
                else:
                    self._forsaken(key.fileobj)
            self._reap()
        for pid in self._forks:
            with suppress(OSError):
                os.kill(pid, signal.SIGTERM)

    def _fork(self, line: socket.socket) -> None:
        data, files = _heard(line)
        if data is None:
            for file in files:
                os.close(file)
            line.close()
            return
        pid = os.fork()
        if pid:
            for file in files:
                os.close(file)
            self._forks[pid] = line
            self._selector.register(line, selectors.EVENT_READ)
            return
        try:
            self._become(json.loads(data), files)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
            status = 1
        else:
            status = 0
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)

    def _become(self, asked: dict[str, Any], files: list[int]) -> None:
        """What the command would be if it had been started where and how the asker was."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for end in (self._listener, self._woken, self._wake, *self._forks.values()):
            end.close()
        *streams, folder = files
        for number, file in enumerate(streams):
            os.dup2(file, number)
        os.fchdir(folder)
        for file in files:
            os.close(file)
        os.environ.clear()
        os.environ.update(asked["environment"])
        sys.argv = [asked["command"], *asked["arguments"]]
        self._commands[asked["command"]]()

    def _forsaken(self, line: Any) -> None:
        """Who asked is gone, so nobody wants what the fork does."""
        self._selector.unregister(line)
        for pid, asker in self._forks.items():
            if asker is line:
                with suppress(OSError):
                    os.kill(pid, signal.SIGTERM)

    def _reap(self) -> None:
        while self._forks:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            line = self._forks.pop(pid)
            with suppress(KeyError):
                self._selector.unregister(line)
            with suppress(OSError):
                line.sendall(bytes([os.waitstatus_to_exitcode(status) & 0xFF]))
            line.close()


def _heard(line: socket.socket) -> tuple[bytes | None, list[int]]:
    """(what is asked, the asker's files); None if who asks does not say it all, and soon."""
    files: list[int] = []
    try:
        line.settimeout(ASK_SECONDS)
        size, files, *_ = socket.recv_fds(line, 8, FILES)
        data = b""
        while len(data) < int.from_bytes(size, "little"):
            part = line.recv(1 << 16)
            if not part:
                return None, files
            data += part
        line.settimeout(None)
    except OSError:
        return None, files
    return (data if len(files) == FILES else None), files


def main() -> None:
    """Import, build, listen."""
    parent = os.getppid()  # before anything that takes time
    address, scenario, data = sys.argv[1:]
    listener = socket.socket(socket.AF_UNIX)
    try:
        commands = _prepared(Path(scenario), data)
        listener.bind(address)
        listener.listen()
    finally:
        Path(f"{address}.starting").unlink(missing_ok=True)
    Warm(listener, commands, parent).serve()


def _prepared(scenario: Path, data: str) -> dict[str, Callable[[], Any]]:
    """The commands, when all that they will need is there."""
    loaded: dict[str, Callable[[], Any]] = {}
    for name in (CLIENT, SERVER, EXECUTOR):
        (command,) = entry_points(group="console_scripts", name=name)
        loaded[name] = command.load()
    for module in ("fedsgd.flower.client", "fedsgd.flower.server", "fedsgd.runtime.preload"):
        importlib.import_module(module)
    from fedsgd.flower.node import Source, build_here
    from fedsgd.torch_scope import only_one_thread

    only_one_thread()
    with suppress(Exception):  # the nodes will say what is wrong, and that they cannot take part
        build_here(Source(scenario.read_text(encoding="utf-8"), data))
    gc.collect()
    gc.freeze()  # so that collecting garbage in a fork does not copy what it shares
    return loaded


if __name__ == "__main__":
    main()
