"""Starts ranks as a launcher of torch.distributed does, some of them on machines of their own by pretence."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

PROGRAM = """
import sys
machine, *arguments = sys.argv[1:]
from fedsgd.runtime.ranks import rendezvous
rendezvous.describe_place = lambda: {"machine": machine, "host": machine}
if machine == "apart":
    from pathlib import Path
    from fedsgd.experiment import rank_execution
    rank_execution.FOLDER_SECONDS = 0.5
    Path.exists = lambda path: not path.name.startswith(".fedsgd-")
from fedsgd.cli import main
main(arguments, prog_name="fedsgd")
"""
"""`fedsgd` on a machine with a name of its own: ranks on machines of different names share no memory and use gloo.

The machine "apart" does not see a new file of rank 0.
"""


def find_free_port() -> int:
    """Return a port that is free at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Ranks:
    """Processes of `fedsgd`, of which rank r is on the machine `machines[r]`.

    Args:
        machines: name of the machine of each rank.
        arguments: arguments of `fedsgd`, for all ranks or for each rank.
        variables: environment variables of all ranks, in addition to those of a launcher; None removes a variable.
    """

    def __init__(
        self,
        machines: Sequence[str],
        arguments: Sequence[str] | Sequence[Sequence[str]],
        variables: dict[str, str | None] | None = None,
        cwd: Path | None = None,
    ) -> None:
        port = find_free_port()
        self.processes: list[subprocess.Popen[str]] = []
        for rank, machine in enumerate(machines):
            own: Any = arguments if isinstance(arguments[0], str) else arguments[rank]
            place = {"RANK": str(rank), "WORLD_SIZE": str(len(machines)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            environment = {
                **os.environ,
                "GLOO_SOCKET_IFNAME": "lo",
                "TORCH_CPP_LOG_LEVEL": "FATAL",
                "OMP_NUM_THREADS": "1",
                **place,
                **(variables or {}),
            }
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, machine, *own],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    cwd=cwd,
                    env={name: value for name, value in environment.items() if value is not None},
                )
            )

    def wait(self, seconds: float = 120) -> list[tuple[int, str, str]]:
        """Return exit status, standard output and standard error of each rank; kill ranks that are still alive."""
        try:
            outputs = [process.communicate(timeout=seconds) for process in self.processes]
            return [
                (process.returncode, *(remove_torch_lines(text) for text in output))
                for process, output in zip(self.processes, outputs, strict=True)
            ]
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill all ranks."""
        for process in self.processes:
            with suppress(OSError):
                process.kill()


def remove_torch_lines(text: str) -> str:
    """Remove lines that torch's own code logs about sockets."""
    return "".join(line for line in text.splitlines(keepends=True) if "socket.cpp" not in line and "[c10d]" not in line)
