"""Tests of the guard, which ends a deployment whose launcher was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fedsgd.flower.deployment import processes
from fedsgd.flower.deployment.addresses import ProcessAddresses
from fedsgd.flower.deployment.guard import Guard
from tests.flower.deployment.stubs import build_address, start_stub

pytestmark = pytest.mark.slow

LAUNCHER_CODE = """
import os, sys, time
from pathlib import Path
from fedsgd.flower.deployment import processes
from fedsgd.flower.deployment.guard import Guard
home, folder, ending = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
env = processes.build_environment(home, None)
with Guard() as guard:
    guard.register_home(home)
    guard.register_folder(folder / "removed")
    guard.register_folder(folder / "kept")
    guard.unregister_folder(folder / "kept")
    processes.start([sys.executable, "-c", "import time; time.sleep(99)"], env, folder / "log")
    child = os.fork()  # it inherits the write end of the guard's pipe
    if child == 0:
        time.sleep(99)
    print(child, guard._process.pid, flush=True)
    if ending == "killed":
        time.sleep(99)
"""


GUARD_CODE = """
import psutil
from fedsgd.flower.deployment import guard
def deny(self):
    raise psutil.AccessDenied(self.pid)
psutil.Process.environ = deny
guard.main()
"""


def test_guard_of_an_ended_launcher_ends_processes_at_current_addresses_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard can read no environment, as a user's guard cannot read the environment of a SuperExec."""
    popen = processes.popen
    monkeypatch.setattr(
        processes, "popen", lambda command, **options: popen([sys.executable, "-c", GUARD_CODE, command[-1]], **options)
    )
    guard = Guard()
    addresses = ProcessAddresses(guard)
    guard.register_home(tmp_path / "home")
    for name, port in (("node-0", 1), ("node-0", 2), ("node-1", 3), ("node-2", 4)):
        addresses.assign(name, build_address(port))
    addresses.drop("node-2")
    stubs = [start_stub(port) for port in (1, 2, 3, 4)]
    guard._stdin.close()
    guard._process.wait()
    assert [stub.poll() is None for stub in stubs] == [True, False, False, True]
    for stub in stubs:
        stub.kill()
        stub.wait()


@pytest.mark.parametrize("ending", ["killed", "finished"])
def test_guard_removes_processes_and_folders_only_of_a_killed_launcher(tmp_path: Path, ending: str) -> None:
    home = tmp_path / "home"
    for name in ("removed", "kept"):
        (tmp_path / name).mkdir()
    with subprocess.Popen([sys.executable, "-c", LAUNCHER_CODE, home, tmp_path, ending], stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None
        child, guard = map(int, launcher.stdout.readline().split())
        (running_process,) = processes.find_processes(home)
        if ending == "killed":
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if Path("/proc/self/status").exists() else ():
                wait_until_ignored(guard, number)
                os.kill(guard, number)
            launcher.kill()
    try:
        wait_for_end(guard)
    finally:
        os.kill(child, signal.SIGKILL)
    assert (tmp_path / "removed").exists() == (ending == "finished")
    assert (tmp_path / "kept").exists()
    assert (running_process in processes.find_processes(home)) == (ending == "finished")
    processes.stop(home, [])


def wait_until_ignored(pid: int, number: int) -> None:
    """Wait until a process ignores a signal."""
    for _ in range(1500):
        (line,) = (x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("SigIgn:"))
        if int(line.split()[1], 16) >> (number - 1) & 1:
            return
        time.sleep(0.02)


def wait_for_end(pid: int) -> None:
    """Wait until a process that is not a child of this process has ended."""
    try:
        process = psutil.Process(pid)
        for _ in range(1500):
            if process.status() == psutil.STATUS_ZOMBIE:
                return
            time.sleep(0.02)
    except psutil.NoSuchProcess:
        return
    pytest.fail(f"process {pid} does not end")


def test_guard_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, fedsgd.flower.deployment.guard; print({'torch', 'numpy', 'flwr'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
