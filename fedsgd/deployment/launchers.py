"""Commands that stand before Flower's own on PATH, under the same names and with the same arguments.

A SuperExec starts `flwr-serverapp` and `flwr-clientapp` by name; which program that is, is PATH's business. Ours adds the
output of a ServerApp, which Flower throws away, to a log; and has a ClientApp forked from a process that has imported all of it
(`fedsgd.deployment.warm`), where there is one. Otherwise it becomes Flower's own command.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from fedsgd.errors import OutputError

CLIENT, SERVER = "flwr-clientapp", "flwr-serverapp"
SOCKET = "FEDSGD_WARM_SOCKET"
"""Names the socket of the process to be forked; without it there is none."""


def make(folder: Path, server_log: Path) -> Path:
    """The folder with the commands. OutputError if Flower's own are not there."""
    folder.mkdir()
    python, ask = sys.executable, Path(__file__).with_name("ask.py")
    client, server = (shlex.quote(own(name)) for name in (CLIENT, SERVER))
    # -S and -I: without the environment's packages, Python is there in milliseconds.
    asking = f'exec {shlex.quote(python)} -I -S {shlex.quote(str(ask))} "${SOCKET}" {client} "$@"'
    _write(folder / CLIENT, f'[ -n "${SOCKET}" ] || exec {client} "$@"\n{asking}')
    _write(folder / SERVER, f'exec {server} "$@" >>{shlex.quote(str(server_log))} 2>&1')
    return folder


def own(name: str) -> str:
    """Flower's own command of this name. OutputError if it is not installed for this Python."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise OutputError(f"{name}: no such command; it comes with flwr, which is not installed for {sys.executable}")
    return found


def _write(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o700)
