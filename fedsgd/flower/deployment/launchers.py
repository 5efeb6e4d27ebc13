"""Launcher commands, which come before Flower's commands on PATH and have the same names and arguments.

A SuperExec starts `flwr-serverapp` and `flwr-clientapp` by name, and is itself started by name, so PATH selects the program. A
launcher command starts Flower's command in a fork of the fork server (`fedsgd.flower.deployment.fork_server`), or executes
Flower's command if there is no fork server. It also appends the output of a ServerApp, which Flower discards, to a log.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from fedsgd.errors import OutputError

CLIENT_COMMAND, SERVER_COMMAND, SUPEREXEC_COMMAND = "flwr-clientapp", "flwr-serverapp", "flower-superexec"
SOCKET_VARIABLE = "FEDSGD_WARM_SOCKET"
"""Environment variable with the path of the fork server's socket; not set without a fork server."""


def write_launchers(folder: Path, server_log: Path) -> Path:
    """Create a folder with the launcher commands, and return it. The output of a ServerApp is appended to `server_log`."""
    folder.mkdir()
    python, fork_client = shlex.quote(sys.executable), shlex.quote(str(Path(__file__).with_name("fork_client.py")))
    for name in (CLIENT_COMMAND, SERVER_COMMAND, SUPEREXEC_COMMAND):
        command = shlex.quote(find_flower_command(name))
        redirection = f"exec >>{shlex.quote(str(server_log))} 2>&1\n" if name == SERVER_COMMAND else ""
        # -I and -S: Python starts in milliseconds without the packages of the environment.
        request = f'exec {python} -I -S {fork_client} "${SOCKET_VARIABLE}" {command} "$@"'
        path = folder / name
        path.write_text(f'#!/bin/sh\n{redirection}[ -n "${SOCKET_VARIABLE}" ] || exec {command} "$@"\n{request}\n')
        path.chmod(0o700)
    return folder


def find_flower_command(name: str) -> str:
    """Return the path of Flower's own command of this name. OutputError if Flower is not installed for this Python."""
    path = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if path is None:
        raise OutputError(f"{name}: this command of flwr does not exist; flwr is not installed for {sys.executable}")
    return path
