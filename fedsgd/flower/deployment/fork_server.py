"""Fork server: a process that has imported the modules of Flower's apps and built the scenario, and forks for each app.

    python -m fedsgd.flower.deployment.fork_server SOCKET SCENARIO DATA MODULES

Flower starts a process for each message to a ClientApp, so that messages cannot affect each other. A forked process is as
isolated as a new process: it has its own id, environment, output and exit status. It only
omits the imports and, at a node, the construction of the experiment.
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
"""File descriptors that come with a request: the three standard streams and the current folder."""
REQUEST_SECONDS = 5.0
"""Time limit for each part of a request."""
PARENT_CHECK_SECONDS = 1.0
"""Interval between two checks that the parent process is running."""


class ForkServer:
    """Server that forks a process for each request at a listening socket. The process runs one of `commands`, by name."""

    def __init__(self, listener: socket.socket, commands: Mapping[str, Callable[[], Any]], parent_pid: int) -> None:
        self._commands = commands
        self._parent_pid = parent_pid
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._forks: dict[int, socket.socket] = {}
        self._selector.register(listener, selectors.EVENT_READ)
        self._wakeup_reader, self._wakeup_writer = socket.socketpair()
        for end in (self._wakeup_reader, self._wakeup_writer):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wakeup_writer.fileno())
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self._selector.register(self._wakeup_reader, selectors.EVENT_READ)

    def serve(self) -> None:
        """Answer requests until the parent process ends, then end all forked processes."""
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
        """Run the command of a request with the arguments, environment, streams and folder of the client."""
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
        """End the forked process of a client that has ended."""
        self._selector.unregister(connection)
        for pid, client in self._forks.items():
            if client is connection:
                with suppress(OSError):
                    os.kill(pid, signal.SIGTERM)

    def _reap(self) -> None:
        while self._forks:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            connection = self._forks.pop(pid)
            with suppress(KeyError):
                self._selector.unregister(connection)
            with suppress(OSError):
                connection.sendall(bytes([os.waitstatus_to_exitcode(status) & 0xFF]))
            connection.close()


def _read_request(connection: socket.socket) -> tuple[bytes | None, list[int]]:
    """Return (request as JSON, file descriptors of the client). The request is None if it is incomplete or late."""
    files: list[int] = []
    try:
        connection.settimeout(REQUEST_SECONDS)
        size, files, *_ = socket.recv_fds(connection, 8, N_FILES)
        data = b""
        while len(data) < int.from_bytes(size, "little"):
            chunk = connection.recv(1 << 16)
            if not chunk:
                return None, files
            data += chunk
        connection.settimeout(None)
    except OSError:
        return None, files
    return (data if len(files) == N_FILES else None), files


def main() -> None:
    """Import the apps, build the scenario, and serve requests."""
    parent = os.getppid()  # first, because the parent may end during the imports
    address, scenario, data, module_folder = sys.argv[1:]
    sys.path.append(module_folder)
    listener = socket.socket(socket.AF_UNIX)
    try:
        commands = _load_commands(Path(scenario), data)
        listener.bind(address)
        listener.listen()
    finally:
        Path(f"{address}.starting").unlink(missing_ok=True)
    ForkServer(listener, commands, parent).serve()


def _load_commands(scenario_file: Path, data: str) -> dict[str, Callable[[], Any]]:
    """Import the modules of the apps, build the scenario, and return the functions of the commands by name."""
    functions: dict[str, Callable[[], Any]] = {}
    for name in (CLIENT_COMMAND, SERVER_COMMAND, SUPEREXEC_COMMAND):
        (command,) = entry_points(group="console_scripts", name=name)
        functions[name] = command.load()
    for module in ("fedsgd.flower.runtime.client_app", "fedsgd.flower.runtime.server_app", "fedsgd.runtime.workers.preload"):
        importlib.import_module(module)
    pin_single_thread()
    with suppress(Exception):  # each node meets the same error and reports it
        prebuild(NodeSource(scenario_file.read_text(encoding="utf-8"), data))
    gc.collect()
    gc.freeze()  # garbage collection in a forked process then does not copy shared pages
    return functions


if __name__ == "__main__":
    main()
