"""SuperLink and SuperNodes on this machine's loopback interface, which run while a context is open."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

from fedsgd.errors import DeploymentError, OutputError, make_write_error
from fedsgd.flower.deployment import launchers, processes, tls
from fedsgd.flower.deployment.addresses import ProcessAddresses
from fedsgd.flower.deployment.app_bundle import MODULE_FOLDER, write_modules
from fedsgd.flower.deployment.counting_proxy import CountingProxy
from fedsgd.flower.deployment.guard import Guard
from fedsgd.flower.deployment.launch_folder import SOCKET_NAME, find_launch_folder
from fedsgd.flower.deployment.tls import TlsCertificates
from fedsgd.numerics.kernels import FALLBACK_CACHE_VARIABLE

CONNECTION_NAME = "here"
MAX_PORT_TRIES = 5
"""Maximum number of ports that are tried: another process may take a free port before the SuperLink listens on it."""
SUPERLINK_SECONDS = 60.0
"""Time limit for the SuperLink's first answer, which takes about two seconds on an idle machine."""
HEALTH_CHECK_SECONDS = 5.0
COMMAND_SECONDS = 60.0
"""Time limit for one of Flower's commands."""
POLL_SECONDS = 0.1
PORT_IN_USE_TEXT = "address already in use"
_NO_LAUNCH_FOLDER = "because no folder can hold the launcher's commands"
LOG_PATTERNS = ("superlink", "serverapp", "submission", "warm", "node-*")
"""Patterns of the names of logs, without the suffix."""


@dataclass(frozen=True)
class ClusterConfig:
    """Configuration of a local deployment, with the settings of `deploy`.

    `scenario_toml` and `data` are "" for a user's own app. `data` is also "" for the default folder. `user_modules` has the
    contents of the files that travel in the app, by relative path.
    """

    nodes: int
    scenario_toml: str = ""
    data: str = ""
    tls: bool = False
    measure_socket: bool = False
    use_fork_server: bool = True
    user_modules: Mapping[str, bytes] = field(default_factory=dict)


@dataclass
class LocalCluster:
    """Running processes of a deployment.

    Attributes:
        folder: folder of all files that the deployment needs while it runs.
        on_trouble: called with a message if the deployment continues without a process.
        port: port of the SuperLink.
        fork_server: process that Flower's apps are forked from, None if no fork server was started or it has ended.
        nodes, proxies: SuperNode processes and their counting proxies, by partition; no proxies if bytes are not counted.
        child_processes: all processes that were started, in order of their start.
        addresses: addresses at which processes serve their own children, by the name of their log.
    """

    config: ClusterConfig
    folder: Path
    logs: Path
    env: dict[str, str]
    on_trouble: Callable[[str], None] = lambda text: None
    tls_certificates: TlsCertificates | None = None
    port: int = 0
    superlink: subprocess.Popen[bytes] | None = None
    fork_server: subprocess.Popen[bytes] | None = None
    nodes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    proxies: dict[int, CountingProxy] = field(default_factory=dict)
    child_processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    addresses: ProcessAddresses = field(default_factory=ProcessAddresses)

    @property
    def flwr_home(self) -> Path:
        """FLWR_HOME of the deployment's processes."""
        return self.folder / "home"

    def start_superlink(self) -> None:
        """Start the SuperLink and wait until it answers. DeploymentError if it ends, does not answer, or finds no free port."""
        security = ["--insecure"]
        if self.tls_certificates is not None:
            files = {
                "ca-certfile": self.tls_certificates.ca_certificate,
                "certfile": self.tls_certificates.certificate,
                "keyfile": self.tls_certificates.key,
            }
            security = [f"--ssl-{name}={path}" for name, path in files.items()]
        for _ in range(MAX_PORT_TRIES):
            self.port = self._assign_port("superlink")
            options = ["--disable-runtime-dependency-installation", "--host", "127.0.0.1", "--port", str(self.port)]
            self.superlink = self.start_process("superlink", ["flower-superlink", *security, *options])
            if self._wait_for_superlink():
                break
            if not self._count_port_conflicts("superlink"):
                raise self.make_process_error("the SuperLink", self.superlink, "superlink")
        else:
            raise DeploymentError(
                f"no free port for the SuperLink after {MAX_PORT_TRIES} tries; its log is {self.get_log_path('superlink')}"
            )
        (self.flwr_home / "config.toml").write_text(self._format_connection_config(), encoding="utf-8")

    def start_node(self, partition: int) -> None:
        """Start the SuperNode of a partition, or restart it."""
        superlink_port, certificates = self.port, self.tls_certificates
        if self.config.measure_socket:
            if partition not in self.proxies:
                self.proxies[partition] = CountingProxy(self.port)
            superlink_port = self.proxies[partition].port
        security = ["--insecure"] if certificates is None else ["--root-certificates", str(certificates.ca_certificate)]
        node_config = f"partition-id={partition} num-partitions={self.config.nodes}"
        port = str(self._assign_port(f"node-{partition}"))
        addresses = ["--superlink", f"127.0.0.1:{superlink_port}", "--host", "127.0.0.1", "--port", port]
        command = ["flower-supernode", *security, *addresses, "--max-retries", "20", "--node-config", node_config]
        self.nodes[partition] = self.start_process(f"node-{partition}", command)

    def start_fork_server(self, launch_folder: Path) -> None:
        """Start the process that Flower's apps are forked from. It listens on a socket in `launch_folder`."""
        address, scenario_file = launch_folder / SOCKET_NAME, self.folder / "scenario.toml"
        scenario_file.write_text(self.config.scenario_toml, encoding="utf-8")
        _get_startup_marker(address).touch()
        self.env[launchers.SOCKET_VARIABLE] = str(address)
        self.addresses.assign("warm", str(address))  # forked processes have the same command line
        module_folder = self.folder / MODULE_FOLDER
        write_modules(module_folder, self.config.user_modules)
        python = [sys.executable, "-P", "-m", "fedsgd.flower.deployment.fork_server"]
        arguments = [str(address), str(scenario_file), self.config.data, str(module_folder)]
        self.fork_server = self.start_process("warm", [*python, *arguments])

    def check_fork_server(self) -> None:
        """Let apps start without the fork server if it has ended, and report its end once."""
        if self.fork_server is None or self.fork_server.poll() is None:
            return
        _get_startup_marker(Path(self.env[launchers.SOCKET_VARIABLE])).unlink(missing_ok=True)
        first_line, *log_lines = str(self.make_process_error("the fork server", self.fork_server, "warm")).splitlines()
        self.fork_server = None
        self.on_trouble("\n".join([f"{first_line}; from now on each app starts as a new process, more slowly", *log_lines]))

    def submit(self, app: Path, *, stream: bool = False) -> subprocess.Popen[bytes]:
        """Submit the app of a folder by `flwr run`. With `stream`, this process prints the run's log and ends with the run."""
        return self.start_process("submission", ["flwr", "run", str(app), CONNECTION_NAME, *(["--stream"] if stream else [])])

    def read_flower_byte_counters(self) -> dict[str, int] | None:
        """Return Flower's own count of the run's bytes by direction, without headers and polls; None if not available."""
        command = [launchers.find_flower_command("flwr"), "list", CONNECTION_NAME, "--format", "json"]
        with suppress(subprocess.SubprocessError, ValueError, LookupError, OSError):
            result = subprocess.run(command, env=self.env, capture_output=True, timeout=COMMAND_SECONDS, check=True)
            (run,) = json.loads(result.stdout)["runs"]
            traffic = run["network-traffic"]
            return {"down": int(traffic["outbound-bytes"]), "up": int(traffic["inbound-bytes"])}
        return None

    def restart_after_port_conflict(self, partition: int) -> bool:
        """Restart a node that ended because its port was in use. Return whether the node was restarted."""
        if self.nodes[partition].poll() is None or not 0 < self._count_port_conflicts(f"node-{partition}") < MAX_PORT_TRIES:
            return False
        self.start_node(partition)
        return True

    def get_log_path(self, name: str) -> Path:
        """Return the path of a process's log."""
        return self.logs / f"{name}.log"

    def make_process_error(
        self, description: str, process: subprocess.Popen[bytes], log_name: str, seconds: float = SUPERLINK_SECONDS
    ) -> DeploymentError:
        """Return the error for a process that ended, or that has not answered for `seconds`."""
        status = processes.describe_exit(process) or f"does not answer after {seconds:g} s"
        return DeploymentError(f"{description} (process {process.pid}) {status}{self.describe_log(log_name)}")

    def describe_log(self, name: str) -> str:
        """Return the end of an error message: the path of a process's log, and its last lines."""
        path = self.get_log_path(name)
        return f"; its log is {path}{processes.read_tail(path)}"

    def start_process(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a command that ends with the deployment, with a log and a state folder of this name.

        The command begins with the name of one of Flower's commands, or with an absolute path.
        """
        env = {**self.env, "FEDSGD_STATE": str(self.folder / "state" / name)}
        program = command[0] if Path(command[0]).is_absolute() else launchers.find_flower_command(command[0])
        self.child_processes.append(processes.start([program, *command[1:]], env, self.get_log_path(name)))
        return self.child_processes[-1]

    def stop(self) -> None:
        """End all processes, nodes before the SuperLink, but no process at an address that another deployment uses."""
        for name, process in {"superlink": self.superlink, **{f"node-{i}": node for i, node in self.nodes.items()}}.items():
            with suppress(OSError):  # the log was removed
                if process is not None and process.poll() is not None and self._count_port_conflicts(name):
                    self.addresses.drop(name)
        processes.stop(
            self.flwr_home, self.child_processes[::-1], self.addresses.address_by_name.values(), self.addresses.start_time
        )

    def _count_port_conflicts(self, name: str) -> int:
        return self.get_log_path(name).read_text(errors="replace").lower().count(PORT_IN_USE_TEXT)

    def _assign_port(self, name: str) -> int:
        port = processes.find_free_port()
        self.addresses.assign(name, f"127.0.0.1:{port}")
        return port

    def _wait_for_superlink(self) -> bool:
        """Wait until the SuperLink answers. Return False if the SuperLink ended, or did not answer in time."""
        assert self.superlink is not None
        deadline = time.monotonic() + SUPERLINK_SECONDS
        while time.monotonic() < deadline and self.superlink.poll() is None:
            if self.is_superlink_healthy():  # if the SuperLink has ended, another program answered at its port
                return self.superlink.poll() is None
            time.sleep(POLL_SECONDS)
        return False

    def is_superlink_healthy(self) -> bool:
        """Return whether the SuperLink answers within `HEALTH_CHECK_SECONDS`."""
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if self.tls_certificates is not None:
            context = ssl.create_default_context(cafile=str(self.tls_certificates.ca_certificate))
            handlers.append(urllib.request.HTTPSHandler(context=context))
        url = f"http{'s' * (self.tls_certificates is not None)}://127.0.0.1:{self.port}/health"
        try:
            with urllib.request.build_opener(*handlers).open(url, timeout=HEALTH_CHECK_SECONDS):
                return True
        except (OSError, HTTPException):
            return False

    def _format_connection_config(self) -> str:
        certificates = self.tls_certificates
        security = "insecure = true" if certificates is None else f'root-certificates = "{certificates.ca_certificate}"'
        connection = (
            f'[superlink]\ndefault = "{CONNECTION_NAME}"\n[superlink.{CONNECTION_NAME}]\naddress = "127.0.0.1:{self.port}"\n'
        )
        return f"{connection}{security}\n"


@contextmanager
def local_cluster(
    config: ClusterConfig,
    folder: Path,
    logs: Path,
    on_stop: Callable[[], None] = lambda: None,
    on_trouble: Callable[[str], None] = lambda text: None,
    guard: Guard | None = None,
) -> Iterator[LocalCluster]:
    """Start a SuperLink and SuperNodes; end all processes and free all ports at the end, also after an error.

    The SuperLink answers when the context begins. The SuperNodes are still starting.

    Args:
        config: configuration of the deployment.
        folder: folder to create, for the files that the processes need while they run.
        logs: folder of the logs; logs of an earlier deployment are replaced.
        on_stop: called before any process is stopped.
        on_trouble: called with a message if the deployment continues without a process or a log.
        guard: guard process of this launcher; None starts a guard for the deployment.
    """
    with ExitStack() as stack:
        guard = stack.enter_context(Guard()) if guard is None else guard
        guard.register_home(folder / "home")
        _prepare_logs(logs)
        try:
            (folder / "home").mkdir(parents=True)
            launch_folder, refusals = find_launch_folder(folder)
            if launch_folder is not None and launch_folder != folder:
                guard.register_folder(launch_folder)
                stack.callback(shutil.rmtree, launch_folder, ignore_errors=True)
            env = _build_environment(folder, launch_folder, logs)
            certificates = tls.create_certificates(folder) if config.tls else None
        except OSError as error:
            raise make_write_error(error.filename or folder, error) from None
        if launch_folder is None:
            consequence = "each app starts as a new process, more slowly, and " * config.use_fork_server
            reasons = "; ".join(refusals)
            on_trouble(f"{consequence}the ServerApp has no log, {_NO_LAUNCH_FOLDER}: {reasons}; other logs are in {logs}")
        cluster = LocalCluster(config, folder, logs, env, on_trouble, certificates, addresses=ProcessAddresses(guard))
        try:
            _start_processes(cluster, launch_folder)
            yield cluster
        finally:
            on_stop()
            try:
                cluster.stop()
            finally:
                for proxy in cluster.proxies.values():
                    proxy.close()


def _prepare_logs(logs: Path) -> None:
    try:
        logs.mkdir(parents=True, exist_ok=True)
        for log in (path for pattern in LOG_PATTERNS for path in logs.glob(f"{pattern}.log")):
            log.unlink()
        (logs / "superlink.log").touch()
    except OSError as error:
        raise OutputError(f"{logs}: logs cannot be written there ({error.strerror})") from None


def _build_environment(folder: Path, launch_folder: Path | None, logs: Path) -> dict[str, str]:
    """Return the environment of the processes: the launcher commands first on PATH, and a cache for compiled kernels."""
    commands = None if launch_folder is None else launchers.write_launchers(launch_folder / "bin", logs / "serverapp.log")
    env = processes.build_environment(folder / "home", commands)
    env.setdefault(FALLBACK_CACHE_VARIABLE, str(folder / "kernels"))
    return env


def _start_processes(cluster: LocalCluster, launch_folder: Path | None) -> None:
    try:
        if cluster.config.use_fork_server and launch_folder is not None:
            cluster.start_fork_server(launch_folder)
        cluster.start_superlink()
        for partition in range(cluster.config.nodes):
            cluster.start_node(partition)
    except OSError as error:  # the system has no free socket, or no space for a file
        raise DeploymentError(f"the deployment cannot be started: {error}") from None


def _get_startup_marker(address: Path) -> Path:
    """Return the file that exists while the fork server at this address is starting."""
    return address.with_name(f"{address.name}.starting")
