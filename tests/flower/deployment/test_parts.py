"""The parts of a deployment by themselves: the proxy that counts, certificates, the table of what became of frames, commands that
stand before Flower's own, and what is made of what a ServerApp tells."""

from __future__ import annotations

import errno
import inspect
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from fedsgd.errors import (
    DataError,
    DeploymentError,
    FedsgdError,
    NonFiniteError,
    OutputError,
    RunError,
    ScenarioWarning,
    WireError,
)
from fedsgd.flower.deployment import DeploymentCallbacks, app_bundle, launch_folder, launchers, processes, tls, transport_table
from fedsgd.flower.deployment.addresses import ProcessAddresses
from fedsgd.flower.deployment.cluster import ClusterConfig, LocalCluster
from fedsgd.flower.deployment.counting_proxy import CountingProxy, SocketTraffic
from fedsgd.flower.deployment.fork_server import ForkServer
from fedsgd.flower.deployment.guard import Guard
from fedsgd.flower.deployment.monitor import DeploymentMonitor

# ---------------------------------------------------------------------------------------------------------------------------- proxy


@pytest.fixture
def shouting() -> Iterator[int]:
    """A server that answers each connection's bytes twice over when it has them all; its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            with line:
                data = b""
                while part := line.recv(1 << 16):
                    data += part
                line.sendall(data * 2)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def asked(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.sendall(data)
        line.shutdown(socket.SHUT_WR)
        answer = b""
        while part := line.recv(1 << 16):
            answer += part
    return answer


def test_every_byte_is_passed_on_and_counted_once(shouting: int) -> None:
    proxy = CountingProxy(shouting)
    try:
        for n in (0, 1, 100_000):
            assert asked(proxy.port, b"x" * n) == b"x" * (2 * n)
    finally:
        proxy.close()
    for direction, total in (("up", 100_001), ("down", 200_002)):
        assert sum(seen.n_bytes for seen in proxy.traffic if seen.direction == direction) == total
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", proxy.port))


def test_a_proxy_before_nothing_hangs_up_and_one_that_is_closed_cuts_its_lines() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        proxy = CountingProxy(port)
        with socket.create_connection(("127.0.0.1", proxy.port)) as line:
            listener.accept()[0].close()
            assert line.recv(1) == b""
        with socket.create_connection(("127.0.0.1", proxy.port)) as line, listener.accept()[0]:
            proxy.close()
            assert line.recv(1) == b""
    alone = CountingProxy(port)
    with socket.create_connection(("127.0.0.1", alone.port)) as line:
        assert line.recv(1) == b""
    alone.close()
    assert not [thread for thread in threading.enumerate() if thread.name == f"proxy-{proxy.port}"]


# --------------------------------------------------------------------------------------------------------------------- certificates


def test_certificates_hold_for_this_machine_and_by_their_own_authority(tmp_path: Path) -> None:
    made, other = tls.create_certificates(tmp_path), tmp_path / "other"
    other.mkdir()
    assert made.key.stat().st_mode & 0o077 == 0
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.certificate, made.key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(4):
                line, _ = listener.accept()
                try:
                    with server.wrap_socket(line, server_side=True) as talking:
                        talking.sendall(b"hello")
                except (ssl.SSLError, OSError):
                    line.close()

        threading.Thread(target=serve, daemon=True).start()
        for authority, name, expected in (
            (made.ca_certificate, "127.0.0.1", b"hello"),
            (made.ca_certificate, "localhost", b"hello"),
            (made.ca_certificate, "example.org", None),
            (tls.create_certificates(other).ca_certificate, "localhost", None),
        ):
            client = ssl.create_default_context(cafile=str(authority))
            with socket.create_connection(listener.getsockname()) as line:
                if expected is None:
                    with pytest.raises(ssl.SSLCertVerificationError):
                        client.wrap_socket(line, server_hostname=name)
                else:
                    with client.wrap_socket(line, server_hostname=name) as talking:
                        assert talking.recv(5) == expected


# ------------------------------------------------------------------------------------------------------------------------ transport


def carried(round: int, node: int, direction: str, n: int, process: int = 0) -> dict[str, Any]:
    given = {"round": round, "node": node, "direction": direction, "frame_bytes": n, "message_bytes": n + 300}
    return {**given, "process": process, "seconds": 0.5 if process else 0.0}


CARRIED = [
    carried(1, 0, "down", 1000),
    carried(1, 0, "up", 10, 77),
    carried(1, 1, "down", 2000),
    carried(2, 0, "down", 1000),
    carried(2, 0, "down", 1),  # who could not follow had a second message
    carried(2, 0, "up", 10, 78),
    carried(2, 0, "up", 5, 79),
]
SEEN = {
    0: [
        SocketTraffic(9.0, "up", 1),
        SocketTraffic(10.5, "up", 100),
        SocketTraffic(11.0, "down", 7000),
        SocketTraffic(15.0, "up", 200),
        SocketTraffic(21.0, "up", 5),
    ],
    1: [],
}


def test_bytes_on_sockets_are_those_of_the_round_that_they_fell_into(tmp_path: Path) -> None:
    """Ready at 10, rounds over at 11 and 20."""
    rows = transport_table.transport_rows(CARRIED, [10.0, 11.0, 20.0], SEEN)
    transport_table.save(tmp_path / "transport.parquet", rows)
    assert pq.read_table(tmp_path / "transport.parquet").to_pylist() == rows
    assert list(rows[0]) == list(transport_table.COLUMNS)
    told = {(r["round"], r["node"], r["direction"]): list(r.values())[3:] for r in rows}
    assert told == {
        (0, 0, "up"): [0, 0, 0, 6, None, None],
        (1, 0, "down"): [1, 1000, 1300, 7000, None, None],
        (1, 0, "up"): [1, 10, 310, 100, 77, 0.5],
        (1, 1, "down"): [1, 2000, 2300, 0, None, None],
        (2, 0, "down"): [2, 1001, 1601, 0, None, None],
        (2, 0, "up"): [2, 15, 615, 200, 79, 1.0],
    }
    assert transport_table.sum_by_direction(rows) == {
        "down": {"messages": 4, "frame_bytes": 4001, "message_bytes": 5201, "socket_bytes": 7000, "outside_rounds": None},
        "up": {"messages": 3, "frame_bytes": 25, "message_bytes": 925, "socket_bytes": 300, "outside_rounds": 6},
    }


def test_what_was_not_measured_is_not_nothing() -> None:
    rows = transport_table.transport_rows(CARRIED, [10.0, 11.0, 20.0], None)
    assert {row["socket_bytes"] for row in rows} == {None}
    assert {totals["socket_bytes"] for totals in transport_table.sum_by_direction(rows).values()} == {None}


def test_settings_of_the_app_survive_toml(tmp_path: Path) -> None:
    settings: dict[str, app_bundle.AppConfigValue] = {"a": 'x = "é\n\\ ü\x7f\t"', "b": 3, "c": 0.5, "d": True}
    folder = app_bundle.write_app(tmp_path / "app", settings)
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["flwr"]["app"]["config"] == settings


# ------------------------------------------------------------------------------------------------------------------------ processes


def test_only_processes_of_the_deployment_are_ended_and_all_of_them(tmp_path: Path) -> None:
    """Also those that others started, in sessions of their own, and that do not want to."""
    home, code = (
        tmp_path / "home",
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(99)",
    )
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {code!r}], start_new_session=True); {code}"
    env = processes.build_environment(home, tmp_path)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as stranger:
        ours = processes.start([sys.executable, "-c", parent], env, tmp_path / "log")
        while (tmp_path / "log").read_text() != "1\n1\n":
            time.sleep(0.02)
        assert len(found := processes.find_processes(home)) == 2
        processes.stop(home, [ours])
        assert processes.find_processes(home) == []
        assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in found)
        assert processes.describe_exit(ours) == "was killed by SIGKILL"
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (None, 0, "No such file or directory"),
        ("#!/nowhere/python\n", 0o700, "the interpreter that its first line names does not exist"),
        ("#!/bin/sh\n", 0o600, "Permission denied"),
        ("\0\1\2", 0o700, "Exec format error"),
    ],
    ids=["missing", "no interpreter", "not executable", "not a program"],
)
def test_program_that_cannot_be_started_is_named_in_one_line(
    tmp_path: Path, content: str | None, mode: int, reason: str
) -> None:
    program = tmp_path / "flower-superlink"
    if content is not None:
        program.write_text(content)
        program.chmod(mode)
    with pytest.raises(DeploymentError) as caught:
        processes.start([str(program)], {}, tmp_path / "log")
    assert str(caught.value) == f"{program}: cannot be started ({reason})"


def test_process_limit_that_is_reached_is_a_deployment_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(DeploymentError, match=r"^/bin/true: cannot be started \(Resource temporarily unavailable\)$"):
        processes.start(["/bin/true"], {}, tmp_path / "log")


def test_log_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"^\S+: cannot be written \(Is a directory\)$"):
        processes.start(["/bin/true"], {}, tmp_path)


STUB = [sys.executable, "-c", "import time; time.sleep(99)", "--runtime-api-address"]
"""A process with an address on its command line, as a SuperExec has."""


def address(number: int) -> str:
    """Return an address that no other run of these tests has at the same time: stubs are found on the whole machine."""
    return f"127.0.0.1:{port_number(number)}"


def port_number(number: int) -> int:
    return 100 * os.getpid() + number


def start_stub(number: int) -> subprocess.Popen[bytes]:
    """Start a stub and wait until its command line can be read: for a moment after exec the system reports an empty one."""
    stub = subprocess.Popen([*STUB, address(number)])
    while not psutil.Process(stub.pid).cmdline():
        time.sleep(0.001)
    return stub


@pytest.fixture
def hidden_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes whose environment cannot be read, as a SuperExec's by all but root."""

    def denied(self: psutil.Process) -> dict[str, str]:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "environ", denied)


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ports that `free_port` returns, one after the other."""
    ports = [port_number(number) for number in range(1, 10)]
    monkeypatch.setattr(processes, "find_free_port", lambda: ports.pop(0))
    return ports


@pytest.fixture
def nodes_without_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of Flower that end since their port is taken."""
    program = tmp_path / "taken"
    program.write_text("#!/bin/sh\necho Address already in use\n")
    program.chmod(0o700)
    monkeypatch.setattr(launchers, "find_flower_command", lambda name: str(program))


@pytest.mark.usefixtures("hidden_environments")
def test_a_process_that_hides_its_environment_is_known_by_its_address(tmp_path: Path) -> None:
    with start_stub(1) as hidden:
        assert [process.pid for process in processes.find_processes(tmp_path, [address(1)])] == [hidden.pid]
        assert processes.find_processes(tmp_path, [address(2)]) == []
        hidden.kill()


@pytest.mark.usefixtures("hidden_environments")
def test_process_older_than_the_deployment_at_its_address_is_spared(tmp_path: Path) -> None:
    with start_stub(1) as other:
        created = psutil.Process(other.pid).create_time()
        for age, expected in ((3600, []), (-1, [other.pid])):
            found = processes.find_processes(tmp_path, [address(1)], start_time=created + age)
            assert [process.pid for process in found] == expected
        other.kill()


@pytest.mark.usefixtures("hidden_environments", "nodes_without_port", "ports")
def test_process_at_a_port_that_a_node_lost_is_spared(tmp_path: Path) -> None:
    made = LocalCluster(ClusterConfig(1), tmp_path, tmp_path, dict(os.environ))
    made.start_node(0)
    made.nodes[0].wait()
    assert made.restart_after_port_conflict(0)
    made.nodes[0].wait()
    with start_stub(1) as other, start_stub(2) as another:
        made.stop()
        assert (other.poll(), another.poll()) == (None, None)
        for stranger in (other, another):
            stranger.kill()


@pytest.mark.usefixtures("hidden_environments", "ports")
def test_process_at_the_port_of_a_running_node_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "find_flower_command", lambda name: "/bin/cat")
    made = LocalCluster(ClusterConfig(1), tmp_path, tmp_path, dict(os.environ))
    made.start_node(0)
    made.get_log_path("node-0").write_text("Address already in use\n")  # at the first start
    made.nodes[0] = made.start_process("node-0", [sys.executable, "-c", "import time; time.sleep(99)"])
    with start_stub(1) as hidden:
        made.stop()
        assert hidden.poll() is not None


def test_a_log_ends_with_what_was_said_last(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert processes.read_tail(log) == ""
    log.write_text(
        "".join(f"line {i}\n" for i in range(20)) + "\x1b[92mINFO \x1b[0m:      \n\x1b[92mINFO \x1b[0m:      the end\n\n"
    )
    lines = processes.read_tail(log).splitlines()
    assert lines[1] == "  | line 13"
    assert lines[-1] == "  | INFO :      the end"


def test_flowers_commands_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="flwr-nothing: no such command; it comes with flwr"):
        launchers.find_flower_command("flwr-nothing")
    assert Path(launchers.find_flower_command(launchers.CLIENT_COMMAND)).name == launchers.CLIENT_COMMAND


def test_the_command_has_the_defaults_of_the_function() -> None:
    from fedsgd.cli.flower import flower_command
    from fedsgd.flower.deployment import deploy

    options = {option.name: option.default for option in flower_command.params}
    for name in ("start_seconds", "round_seconds"):
        assert options[name] == inspect.signature(deploy).parameters[name].default


# ---------------------------------------------------------------------------------------------------------------------------- guard

LAUNCHER = """
import os, sys, time
from pathlib import Path
from fedsgd.flower.deployment import processes
from fedsgd.flower.deployment.guard import Guard
home, folder, how = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
with Guard() as guard:
    guard.end_home(home)
    guard.remove(folder / "removed")
    guard.remove(folder / "kept")
    guard.keep(folder / "kept")
    processes.start([sys.executable, "-c", "import time; time.sleep(99)"], processes.environment(home, None), folder / "log")
    child = os.fork()  # it inherits the write end of the guard's pipe
    if child == 0:
        time.sleep(99)
    print(child, guard._process.pid, flush=True)
    if how == "killed":
        time.sleep(99)
"""


GUARD = """
import psutil
from fedsgd.flower.deployment import guard
def denied(self):
    raise psutil.AccessDenied(self.pid)
psutil.Process.environ = denied
guard.main()
"""


def test_guard_without_launcher_ends_processes_at_current_addresses_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard can read no environment, as a user's guard cannot read that of a SuperExec."""
    real = processes.popen
    monkeypatch.setattr(processes, "popen", lambda command, **given: real([sys.executable, "-c", GUARD, command[-1]], **given))
    guard = Guard()
    addresses = ProcessAddresses(guard)
    guard.register_home(tmp_path / "home")
    for name, port in (("node-0", 1), ("node-0", 2), ("node-1", 3), ("node-2", 4)):
        addresses.assign(name, address(port))
    addresses.drop("node-2")
    stubs = [start_stub(port) for port in (1, 2, 3, 4)]
    guard._stdin.close()
    guard._process.wait()
    assert [stub.poll() is None for stub in stubs] == [True, False, False, True]
    for stub in stubs:
        stub.kill()
        stub.wait()


@pytest.mark.parametrize("how", ["killed", "finished"])
def test_guard_ends_what_a_killed_launcher_leaves_and_nothing_of_a_finished_one(tmp_path: Path, how: str) -> None:
    home = tmp_path / "home"
    for name in ("removed", "kept"):
        (tmp_path / name).mkdir()
    with subprocess.Popen([sys.executable, "-c", LAUNCHER, home, tmp_path, how], stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None
        child, guard = map(int, launcher.stdout.readline().split())
        (running,) = processes.find_processes(home)
        if how == "killed":
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if Path("/proc/self/status").exists() else ():
                wait_until_ignored(guard, number)
                os.kill(guard, number)
            launcher.kill()
    try:
        wait_for_end(guard)
    finally:
        os.kill(child, signal.SIGKILL)
    assert (tmp_path / "removed").exists() == (how == "finished")
    assert (tmp_path / "kept").exists()
    assert (running in processes.find_processes(home)) == (how == "finished")
    processes.stop(home, [])


def wait_until_ignored(pid: int, number: int) -> None:
    """Wait until a process ignores a signal."""
    for _ in range(1500):
        (line,) = (x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("SigIgn:"))
        if int(line.split()[1], 16) >> (number - 1) & 1:
            return
        time.sleep(0.02)


def wait_for_end(pid: int) -> None:
    """Wait until a process that is no child of this one has ended."""
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


# ---------------------------------------------------------------------------------------------------------------- launch folder


def test_work_folder_that_runs_scripts_and_binds_sockets_is_the_launch_folder(tmp_path: Path) -> None:
    assert launch_folder.find_launch_folder(tmp_path) == (tmp_path, [])
    assert list(tmp_path.iterdir()) == []


def test_work_folder_with_a_long_path_the_next_private_folder_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / ("x" * 120)
    work.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    found, refused = launch_folder.find_launch_folder(work)
    assert found is not None
    try:
        assert found.parent == Path("/tmp")
        assert found.stat().st_mode & 0o777 == 0o700
    finally:
        found.rmdir()
    assert refused == [
        f"{work} (a socket there cannot be used: AF_UNIX path too long)",
        f"{tmp_path / 'missing'} (No such file or directory)",
    ]


@pytest.mark.parametrize("way", ["owner", "above", "for all"])
def test_folder_that_another_user_can_replace_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    work, runtime = tmp_path / "work", tmp_path / "above" / "runtime"
    for folder in (work, runtime.parent, runtime):
        folder.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    real, status = launch_folder.find_problem, Path.stat

    def stat(path: Path, **options: Any) -> os.stat_result:
        values = list(status(path, **options))
        values[4] = values[4] + (path == runtime) * 1000
        return os.stat_result(values)

    if way == "owner":
        monkeypatch.setattr(Path, "stat", stat)
    else:
        (runtime if way == "for all" else runtime.parent).chmod(0o777)
    monkeypatch.setattr(launch_folder, "find_problem", lambda folder: "no" if folder == work else real(folder))
    found, refused = launch_folder.find_launch_folder(work)
    assert found is not None
    found.rmdir()
    assert found.parent == Path("/tmp")
    reason = "another user can replace entries of it, or of a folder above it"
    assert refused == [f"{work} (no)", f"{runtime} ({reason})"]
    assert list(runtime.iterdir()) == []
    if way != "owner":
        (runtime / "run").mkdir()
        found, refused = launch_folder.find_launch_folder(runtime / "run")
        assert found is not None
        found.rmdir()
        assert refused == [f"{runtime / 'run'} (in {runtime}, {reason})", f"{runtime} ({reason})"]


def test_folders_that_run_no_scripts_the_first_other_one_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on file systems that are mounted with noexec."""
    for name in ("work", "noexec", "cache"):
        (tmp_path / name).mkdir(mode=0o700)
    real = subprocess.run

    def run(command: list[Path], **options: Any) -> Any:
        if tmp_path / "cache" not in command[0].parents:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(command, **options)

    monkeypatch.setattr(launch_folder.subprocess, "run", run)
    monkeypatch.setattr(launch_folder, "_list_candidate_parents", lambda: [tmp_path / "noexec", tmp_path / "cache"])
    found, refused = launch_folder.find_launch_folder(tmp_path / "work")
    assert found is not None
    assert found.parent == tmp_path / "cache"
    reason = "(a script there cannot be run: Permission denied)"
    assert refused == [f"{tmp_path / 'work'} {reason}", f"{tmp_path / 'noexec'} {reason}"]
    assert list((tmp_path / "noexec").iterdir()) == []


# ----------------------------------------------------------------------------------------------------------------- a warm process


def test_warm_process_that_ends_is_reported_once_with_the_end_of_its_log(tmp_path: Path) -> None:
    troubles: list[str] = []
    made = LocalCluster(
        ClusterConfig(1), tmp_path, tmp_path, {launchers.SOCKET_VARIABLE: str(tmp_path / "warm")}, on_trouble=troubles.append
    )
    made.check_fork_server()
    (tmp_path / "warm.starting").touch()
    made.fork_server = made.start_process("warm", ["/bin/sh", "-c", "echo no module named fedsgd; exit 3"])
    made.fork_server.wait()
    pid = made.fork_server.pid
    for _ in range(2):
        made.check_fork_server()
    assert troubles == [
        f"the fork server (process {pid}) ended with exit status 3; its log is {tmp_path / 'warm.log'}; "
        "from now on each app starts as a new process, more slowly\n  | no module named fedsgd"
    ]
    assert not (tmp_path / "warm.starting").exists()


def test_warm_process_imports_no_module_of_the_current_folder_in_place_of_an_installed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise ImportError('the json of a user')\n")
    monkeypatch.chdir(tmp_path)
    made = LocalCluster(ClusterConfig(1), tmp_path, tmp_path, dict(os.environ))
    made.start_fork_server(tmp_path)
    assert made.fork_server is not None
    try:
        while made.fork_server.poll() is None and (tmp_path / "warm.starting").exists():
            time.sleep(0.05)
        assert made.fork_server.poll() is None, (tmp_path / "warm.log").read_text()
    finally:
        made.fork_server.kill()
        made.fork_server.wait()


COMMAND = """
import os, sys
print(os.getpid(), os.getppid(), *sys.argv[1:], os.environ["WHO"], os.getcwd(), flush=True)
if sys.argv[1] == "raise":
    raise KeyError("gone")
if sys.argv[1] == "wait":
    import time
    time.sleep(99)
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def warm(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """(the socket of a process that forks for whoever asks, the process)."""
    (tmp_path / "command.py").write_text(COMMAND)
    code = f"""
import os, runpy, socket, sys
from fedsgd.flower.deployment.fork_server import Warm
listener = socket.socket(socket.AF_UNIX)
listener.bind("{tmp_path}/s")
listener.listen()
run = lambda: runpy.run_path("{tmp_path}/command.py", run_name="__main__")
Warm(listener, {{"flwr-clientapp": run}}, os.getppid()).serve()
"""
    (tmp_path / "s.starting").touch()
    process = subprocess.Popen([sys.executable, "-c", code])
    yield tmp_path / "s", process
    process.kill()
    process.wait()


def ask(address: Path, *arguments: str, **given: Any) -> subprocess.Popen[str]:
    script = Path(launchers.__file__).with_name("fork_client.py")
    command = [sys.executable, "-I", "-S", str(script), str(address), "/nowhere/flwr-clientapp", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **given)


def test_a_fork_is_a_process_of_its_own_where_and_as_whoever_asked(warm: tuple[Path, Any], tmp_path: Path) -> None:
    address, process = warm
    (tmp_path / "there").mkdir()
    seen = set()
    for status in (0, 3, 0):
        asking = ask(address, "a b", str(status), cwd=tmp_path / "there", env={**os.environ, "WHO": f"me {status}"})
        out, err = asking.communicate(timeout=60)
        assert (asking.returncode, err) == (status, "")
        pid, parent, rest = out.strip().split(" ", 2)
        assert rest == f"a b {status} me {status} {tmp_path / 'there'}"
        assert int(parent) == process.pid
        seen.add(int(pid))
    assert len(seen) == 3
    assert process.pid not in seen
    failing = ask(address, "raise", env={**os.environ, "WHO": "me"})
    _, err = failing.communicate(timeout=60)
    assert failing.returncode == 1
    assert "KeyError: 'gone'" in err


def test_a_fork_that_nobody_waits_for_is_ended(warm: tuple[Path, Any]) -> None:
    asking = ask(warm[0], "wait", env={**os.environ, "WHO": "me"})
    assert asking.stdout is not None
    fork = psutil.Process(int(asking.stdout.readline().split()[0]))
    asking.kill()
    asking.communicate()
    fork.wait(10)


def test_whoever_asks_a_warm_process_that_dies_is_told(warm: tuple[Path, Any]) -> None:
    asking = ask(warm[0], "wait", env={**os.environ, "WHO": "me"})
    assert asking.stdout is not None
    fork = psutil.Process(int(asking.stdout.readline().split()[0]))
    warm[1].send_signal(signal.SIGSTOP)  # so that it does not see to the fork
    fork.kill()
    warm[1].kill()
    asking.communicate(timeout=30)
    assert asking.returncode == 1


def test_who_does_not_say_all_of_it_holds_nobody_up(warm: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for said in (b"", b"\xff\0\0\0\0\0\0\0", b"\xff\0\0\0\0\0\0\0{"):
        line = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 30
        while line.connect_ex(str(warm[0])) and time.monotonic() < deadline:
            time.sleep(0.05)
        if said:
            socket.send_fds(line, [said], [0, 1, 2])
        line.close()
    out, _ = ask(warm[0], "a", "0", env={**os.environ, "WHO": "me"}).communicate(timeout=60)
    assert " a 0 me " in out


def test_where_nobody_answers_it_is_flowers_own_command(tmp_path: Path) -> None:
    command = tmp_path / "flwr-clientapp"
    command.write_text('#!/bin/sh\necho own "$@"\n')
    command.chmod(0o700)
    script = Path(launchers.__file__).with_name("fork_client.py")
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(script), str(tmp_path / "s"), str(command), "a", "b c"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "own a b c\n"


def test_a_warm_process_ends_with_whoever_started_it(tmp_path: Path) -> None:
    assert ForkServer.serve.__doc__
    code = f"""
import subprocess, sys, time
inner = '''
import os, socket
parent = os.getppid()
from fedsgd.flower.deployment.fork_server import Warm
listener = socket.socket(socket.AF_UNIX)
listener.bind("{tmp_path}/s")
listener.listen()
print("listening", flush=True)
Warm(listener, {{}}, parent).serve()
'''
child = subprocess.Popen([sys.executable, "-c", inner], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    try:
        psutil.Process(int(done.stdout)).wait(10)
    except psutil.NoSuchProcess:
        return


# ---------------------------------------------------------------------------------------------------------------------------- watch


def test_a_user_is_asked_for_no_proxy_that_there_is_none_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", ".corp.example")
    monkeypatch.delenv("NO_PROXY", raising=False)
    env = processes.build_environment(tmp_path, tmp_path)
    assert env["no_proxy"] == env["NO_PROXY"] == ".corp.example,127.0.0.1,localhost"
    assert env.get("PYTHONPATH") == os.environ.get("PYTHONPATH"), "a user's random.py is not the standard library's"
    assert env["FEDSGD_FOLDER"] == str(Path.cwd())


def test_what_is_ignored_stays_ignored_and_a_stop_is_not_broken_off() -> None:
    from fedsgd.flower.deployment.runner import _handle_signals

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _handle_signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        with _handle_signals() as signals:
            signals.ignore()
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGHUP, before)


def watching(tmp_path: Path, *events: dict[str, Any], watched: DeploymentCallbacks | None = None) -> DeploymentMonitor:
    """One that hears these events."""
    made = LocalCluster(ClusterConfig(2), tmp_path, tmp_path, {})
    (tmp_path / "events").write_text("".join(json.dumps({"at": 1.0, **event}) + "\n" for event in events))
    submission = subprocess.Popen(["true"])
    submission.wait()
    (tmp_path / "submission.log").write_text("Successfully started run 1")
    return DeploymentMonitor(made, tmp_path / "events", submission, watched or DeploymentCallbacks(), 5.0, False)


@pytest.mark.parametrize(
    "error",
    [
        RunError(3, 5, "gone"),
        RunError(3, None, "gone"),
        NonFiniteError(3, 5, "nan"),
        WireError(7, "bad", "round 3, client 5: ", 5),
        DataError("no data"),
        OutputError("no room"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_our_own_errors_are_made_again(tmp_path: Path, error: FedsgdError) -> None:
    from fedsgd.flower.runtime.server_app import _ERROR_ATTRIBUTES

    parts = {name: getattr(error, name) for name in _ERROR_ATTRIBUTES if hasattr(error, name)}
    watch = watching(tmp_path, {"event": "error", "kind": type(error).__name__, "text": str(error), **parts})
    with pytest.raises(type(error)) as caught:
        watch.wait()
    assert str(caught.value) == str(error)
    assert vars(caught.value) == vars(error)


def test_warnings_of_the_server_app_are_issued_here(tmp_path: Path) -> None:
    told = {"event": "warning", "text": "uplink.compressor.momentum = 0.9: ..."}
    with pytest.warns(ScenarioWarning, match="^uplink.compressor.momentum = 0.9: ...$"):
        watching(tmp_path, told, {"event": "done"}).wait()


def test_other_errors_are_the_server_apps_and_nodes_have_their_log_named(tmp_path: Path) -> None:
    (tmp_path / "serverapp.log").write_text("Traceback\n")
    with pytest.raises(DeploymentError, match=r"the ServerApp failed: KeyError: 1; its log is .*serverapp.log\n  \| Traceback"):
        watching(tmp_path, {"event": "error", "kind": "", "text": "KeyError: 1"}).wait()
    error = RunError(3, 5, "TimeoutError: node 1: no answer within 4 s")
    told = {"event": "error", "kind": "RunError", "text": str(error), "round": 3, "client": 5, "cause": error.cause}
    with pytest.raises(DeploymentError, match=r"client 5: TimeoutError: node 1: no answer within 4 s; its log is .*node-1.log"):
        watching(tmp_path, told).wait()


def test_a_server_app_that_dies_or_never_begins_is_missed(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(DeploymentError, match=rf"the ServerApp \(process {gone.pid}\) died; its log is"):
        watching(tmp_path, {"event": "begun", "process": gone.pid}).wait()
    watch = watching(tmp_path)
    watch._start_deadline = time.monotonic() + 0.2
    with pytest.raises(DeploymentError, match="the ServerApp did not begin within 5 s; its log is"):
        watch.wait()
    (tmp_path / "submission.log").write_text("Connection refused\n")
    with pytest.raises(
        DeploymentError,
        match=r"the app could not be submitted: `flwr run` ended with exit status 0; its log is .*\n  \| Connection refused",
    ):
        watching_again(tmp_path).wait()


def watching_again(tmp_path: Path) -> DeploymentMonitor:
    text = (tmp_path / "submission.log").read_text()
    watch = watching(tmp_path)
    (tmp_path / "submission.log").write_text(text)
    return watch


def test_lines_are_heard_when_they_are_complete(tmp_path: Path) -> None:
    said: list[str] = []
    watch = watching(tmp_path, {"event": "begun", "process": os.getpid()}, watched=DeploymentCallbacks(on_status=said.append))
    line = json.dumps({"event": "done", "at": 2.0}) + "\n"

    def write() -> None:
        for part in (line[:5], line[5:]):
            time.sleep(0.2)
            with (tmp_path / "events").open("a") as file:
                file.write(part)

    thread = threading.Thread(target=write)
    thread.start()
    assert watch.wait().is_done
    thread.join()
    assert said == ["building the scenario"]
