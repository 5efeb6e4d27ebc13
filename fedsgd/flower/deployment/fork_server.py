"""A process that has imported what Flower's apps need, and built the scenario, and is forked for each of them.

    python -m fedsgd.flower.deployment.fork_server SOCKET SCENARIO DATA

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

from fedsgd.flower.deployment.launchers import CLIENT_COMMAND, SERVER_COMMAND, SUPEREXEC_COMMAND
from fedsgd.flower.runtime.node import NodeSource, prebuild
from fedsgd.system.torch_threads import pin_single_thread

N_FILES = 4
"""That come with what is asked: the standard streams, and the folder."""
REQUEST_SECONDS = 5.0
"""For who asks to have said all of it."""
PARENT_CHECK_SECONDS = 1.0
"""Between two looks whether who started us is still there."""


class ForkServer:
    """Forks for whoever asks at this socket. commands: what a fork may run, by name; parent: the process that started this one,
    which may be gone by now."""

    def __init__(self, listener: socket.socket, commands: Mapping[str, Callable[[], Any]], parent_pid: int) -> None:
        self._commands = commands
        self._parent_pid = parent_pid
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._forks: dict[int, socket.socket] = {}
        self._selector.register(listener, selectors.EVENT_READ)
        self._wakeup_reader, wake = socket.socketpair()
        for end in (self._wakeup_reader, wake):
            end.setblocking(False)
        self._wakeup_writer = wake
        signal.set_wakeup_fd(wake.fileno())
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self._selector.register(self._wakeup_reader, selectors.EVENT_READ)

    def serve(self) -> None:
        """Until the process that started this one is gone."""
        while os.getppid() == self._parent_pid:
            for key, _ in self._selector.select(PARENT_CHECK_SECONDS):
                if key.fileobj is self._listener:
                    self._fork(self._listener.accept()[0])
                elif key.fileobj is self._wakeup_reader:
                    self._wakeup_reader.recv(4096)
                else:
                    self._handle_disconnect(key.fileobj)
            self._reap()
        for pid in self._forks:
            with suppress(OSError):
                os.kill(pid, signal.SIGTERM)

    def _fork(self, connection: socket.socket) -> None:
        data, files = _read_request(connection)
        if data is None:
            for file in files:
                os.close(file)
            connection.close()
            return
        pid = os.fork()
        if pid:
            for file in files:
                os.close(file)
            self._forks[pid] = connection
            self._selector.register(connection, selectors.EVENT_READ)
            return
        try:
            self._run_as(json.loads(data), files)
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

    def _run_as(self, request: dict[str, Any], files: list[int]) -> None:
        """What the command would be if it had been started where and how the asker was."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for end in (self._listener, self._wakeup_reader, self._wakeup_writer, *self._forks.values()):
            end.close()
        *streams, folder = files
        for number, file in enumerate(streams):
            os.dup2(file, number)
        os.fchdir(folder)
        for file in files:
            os.close(file)
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = [request["command"], *request["arguments"]]
        self._commands[request["command"]]()

    def _handle_disconnect(self, connection: Any) -> None:
        """Who asked is gone, so nobody wants what the fork does."""
        self._selector.unregister(connection)
        for pid, asker in self._forks.items():
            if asker is connection:
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


def _read_request(connection: socket.socket) -> tuple[bytes | None, list[int]]:
    """(what is asked, the asker's files); None if who asks does not say it all, and soon."""
    files: list[int] = []
    try:
        connection.settimeout(REQUEST_SECONDS)
        size, files, *_ = socket.recv_fds(connection, 8, N_FILES)
        data = b""
        while len(data) < int.from_bytes(size, "little"):
            part = connection.recv(1 << 16)
            if not part:
                return None, files
            data += part
        connection.settimeout(None)
    except OSError:
        return None, files
    return (data if len(files) == N_FILES else None), files


def main() -> None:
    """Import, build, listen."""
    parent = os.getppid()  # before anything that takes time
    address, scenario, data = sys.argv[1:]
    listener = socket.socket(socket.AF_UNIX)
    try:
        commands = _load_commands(Path(scenario), data)
        listener.bind(address)
        listener.listen()
    finally:
        Path(f"{address}.starting").unlink(missing_ok=True)
    ForkServer(listener, commands, parent).serve()


def _load_commands(scenario_file: Path, data: str) -> dict[str, Callable[[], Any]]:
    """The commands, when all that they will need is there."""
    loaded: dict[str, Callable[[], Any]] = {}
    for name in (CLIENT_COMMAND, SERVER_COMMAND, SUPEREXEC_COMMAND):
        (command,) = entry_points(group="console_scripts", name=name)
        loaded[name] = command.load()
    for module in ("fedsgd.flower.runtime.client_app", "fedsgd.flower.runtime.server_app", "fedsgd.runtime.workers.preload"):
        importlib.import_module(module)
    pin_single_thread()
    with suppress(Exception):  # the nodes will say what is wrong, and that they cannot take part
        prebuild(NodeSource(scenario_file.read_text(encoding="utf-8"), data))
    gc.collect()
    gc.freeze()  # so that collecting garbage in a fork does not copy what it shares
    return loaded


if __name__ == "__main__":
    main()
