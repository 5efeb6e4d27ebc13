"""Commands that stand before Flower's own on PATH, under the same names and with the same arguments.

A SuperExec starts `flwr-serverapp` and `flwr-clientapp` by name, and is itself started so; which program that is, is PATH's
business. Ours add the output of a ServerApp, which Flower throws away, to a log; and have them forked from a process that has
imported everything (`fedsgd.flower.deployment.fork_server`), where there is one. Otherwise they become Flower's own commands.
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
"""Names the socket of the process to be forked; without it there is none."""


def write_launchers(folder: Path, server_log: Path) -> Path:
    """Write the commands to a new folder, and return it.

    Args:
        folder: the folder, on a file system that runs scripts.
        server_log: file that the output of a ServerApp is added to.

    Raises:
        OutputError: Flower's own commands do not exist.
    """
    folder.mkdir()
    python, ask = shlex.quote(sys.executable), shlex.quote(str(Path(__file__).with_name("fork_client.py")))
    for name in (CLIENT_COMMAND, SERVER_COMMAND, SUPEREXEC_COMMAND):
        command = shlex.quote(flower_executable(name))
        to_log = f"exec >>{shlex.quote(str(server_log))} 2>&1\n" if name == SERVER_COMMAND else ""
        # -S and -I: without the environment's packages, Python is there in milliseconds.
        asking = f'exec {python} -I -S {ask} "${SOCKET_VARIABLE}" {command} "$@"'
        path = folder / name
        path.write_text(f'#!/bin/sh\n{to_log}[ -n "${SOCKET_VARIABLE}" ] || exec {command} "$@"\n{asking}\n')
        path.chmod(0o700)
    return folder


def flower_executable(name: str) -> str:
    """Flower's own command of this name. OutputError if it is not installed for this Python."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise OutputError(f"{name}: no such command; it comes with flwr, which is not installed for {sys.executable}")
    return found
