"""SuperLink and SuperNodes on this machine's loopback, for as long as a context lasts."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

from fedsgd.deployment import certificates, launchers, processes
from fedsgd.deployment.addresses import Addresses
from fedsgd.deployment.certificates import Certificates
from fedsgd.deployment.guard import Guard
from fedsgd.deployment.launch_folder import SOCKET_NAME, find
from fedsgd.deployment.proxy import CountingProxy
from fedsgd.errors import DeploymentError, OutputError, cannot_write
from fedsgd.kernel import FALLBACK_CACHE

CONNECTION = "here"
TRIES = 5
"""A port that is free when it is looked for may be taken when it is wanted."""
LINK_SECONDS = 60.0
"""For a SuperLink to answer: two on a quiet machine."""
PROBE_SECONDS = 5.0
COMMAND_SECONDS = 60.0
"""For one of Flower's commands to answer."""
BIND_SECONDS = 0.1
IN_USE = "address already in use"
_UNUSABLE = "since no folder can hold the launcher's commands"
LOGS = ("superlink", "serverapp", "submission", "warm", "node-*")
"""What logs are called, as patterns."""


@dataclass(frozen=True)
class Asked:
    """nodes: how many; scenario, data: what is to be run, nothing if it is somebody's own app; tls: whether nodes and server
    talk by TLS; measured: whether all bytes on nodes' sockets are counted; warm: whether Flower's apps are forked from a
    process that is ready."""

    nodes: int
    scenario: str = ""
    data: str = ""
    tls: bool = False
    measured: bool = False
    warm: bool = True


@dataclass
class Federation:
    """Running processes of a deployment.

    Attributes:
        asked: what the deployment is to be.
        folder: folder of all files that it needs while it runs.
        logs: folder of the processes' logs.
        env: environment of the processes.
        on_trouble: called with a line if the deployment goes on without a process.
        secrets: certificates, None without TLS.
        port: port of the SuperLink.
        superlink: process of the SuperLink.
        warm: process that Flower's apps are forked from, None if there is none, or no longer.
        nodes: SuperNode processes by partition.
        proxies: counting proxies by partition, if bytes are counted.
        started: all processes that were started, in this order.
        addresses: addresses at which processes serve their own children, by the name of their log.
    """

    asked: Asked
    folder: Path
    logs: Path
    env: dict[str, str]
    on_trouble: Callable[[str], None] = lambda text: None
    secrets: Certificates | None = None
    port: int = 0
    superlink: subprocess.Popen[bytes] | None = None
    warm: subprocess.Popen[bytes] | None = None
    nodes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    proxies: dict[int, CountingProxy] = field(default_factory=dict)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    addresses: Addresses = field(default_factory=Addresses)

    @property
    def home(self) -> Path:
        """The FLWR_HOME of all its processes."""
        return self.folder / "home"

    def start_link(self) -> None:
        """Start the SuperLink, and wait until it answers. DeploymentError if it does not."""
        security = ["--insecure"]
        if self.secrets is not None:
            files = {"ca-certfile": self.secrets.authority, "certfile": self.secrets.certificate, "keyfile": self.secrets.key}
            security = [f"--ssl-{name}={path}" for name, path in files.items()]
        for _ in range(TRIES):
            self.port = self._port("superlink")
            options = ["--disable-runtime-dependency-installation", "--host", "127.0.0.1", "--port", str(self.port)]
            self.superlink = self.start("superlink", ["flower-superlink", *security, *options])
            if self._answers():
                break
            if not self._times_in_use("superlink"):
                raise self.died("the SuperLink", self.superlink, "superlink")
        else:
            raise DeploymentError(f"no free port for the SuperLink after {TRIES} tries; its log is {self.log('superlink')}")
        (self.home / "config.toml").write_text(self._connection(), encoding="utf-8")

    def start_node(self, partition: int) -> None:
        """Start the SuperNode of this partition, again if it was started before."""
        asked, to = self.asked, self.port
        if asked.measured:
            if partition not in self.proxies:
                self.proxies[partition] = CountingProxy(self.port)
            to = self.proxies[partition].port
        security = ["--insecure"] if self.secrets is None else ["--root-certificates", str(self.secrets.authority)]
        config = f"partition-id={partition} num-partitions={asked.nodes}"
        place = ["--superlink", f"127.0.0.1:{to}", "--host", "127.0.0.1", "--port", str(self._port(f"node-{partition}"))]
        command = ["flower-supernode", *security, *place, "--max-retries", "20", "--node-config", config]
        self.nodes[partition] = self.start(f"node-{partition}", command)

    def start_warm(self, launch_folder: Path) -> None:
        """Start the process that Flower's apps are forked from, which serves a socket in this folder."""
        address, scenario_file = launch_folder / SOCKET_NAME, self.folder / "scenario.toml"
        scenario_file.write_text(self.asked.scenario, encoding="utf-8")
        _starting(address).touch()
        self.env[launchers.SOCKET] = str(address)
        self.addresses.assign("warm", str(address))  # forks keep the command line
        command = [sys.executable, "-P", "-m", "fedsgd.deployment.warm", str(address), str(scenario_file), self.asked.data]
        self.warm = self.start("warm", command)

    def look_after_warm(self) -> None:
        """Let apps start without the warm process if it has ended, and report that once."""
        if self.warm is None or self.warm.poll() is None:
            return
        _starting(Path(self.env[launchers.SOCKET])).unlink(missing_ok=True)
        first, *rest = str(self.died("the warm process", self.warm, "warm")).splitlines()
        self.warm = None
        self.on_trouble("\n".join([f"{first}; each app starts by itself from now on, slower", *rest]))

    def submit(self, app: Path, *, stream: bool = False) -> subprocess.Popen[bytes]:
        """Submit an app (its folder) by `flwr run`. stream: whether the process prints the run's log, and ends with it."""
        return self.start("submission", ["flwr", "run", str(app), CONNECTION, *(["--stream"] if stream else [])])

    def counted(self) -> dict[str, int] | None:
        """Flower's own counter of its only run's bytes, at the SuperLink, without headers and polls; None if there is none."""
        command = [launchers.own("flwr"), "list", CONNECTION, "--format", "json"]
        with suppress(subprocess.SubprocessError, ValueError, LookupError, OSError):
            done = subprocess.run(command, env=self.env, capture_output=True, timeout=COMMAND_SECONDS, check=True)
            (run,) = json.loads(done.stdout)["runs"]
            traffic = run["network-traffic"]
            return {"down": int(traffic["outbound-bytes"]), "up": int(traffic["inbound-bytes"])}
        return None

    def restart_where_the_port_was_taken(self, partition: int) -> bool:
        """Whether that is why this node ended, and it was started once more."""
        if self.nodes[partition].poll() is None or not 0 < self._times_in_use(f"node-{partition}") < TRIES:
            return False
        self.start_node(partition)
        return True

    def log(self, name: str) -> Path:
        """Where a process's log is."""
        return self.logs / f"{name}.log"

    def died(self, what: str, process: subprocess.Popen[bytes], log: str, seconds: float = LINK_SECONDS) -> DeploymentError:
        """Return the error for a process that ended, or has not answered for so many seconds."""
        how = processes.ended(process) or f"does not answer after {seconds:g} s"
        path = self.log(log)
        return DeploymentError(f"{what} (process {process.pid}) {how}; its log is {path}{processes.tail(path)}")

    def start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a command, one of Flower's or with its path, that ends with the deployment.

        Raises:
            OutputError: Flower has no such command, or the log cannot be written.
            DeploymentError: the process cannot be started.
        """
        env = {**self.env, "FEDSGD_STATE": str(self.folder / "state" / name)}
        program = command[0] if Path(command[0]).is_absolute() else launchers.own(command[0])
        self.started.append(processes.start([program, *command[1:]], env, self.log(name)))
        return self.started[-1]

    def stop(self) -> None:
        """End all processes, nodes before their server, but none at an address that was taken by another deployment."""
        for name, process in {"superlink": self.superlink, **{f"node-{i}": node for i, node in self.nodes.items()}}.items():
            with suppress(OSError):  # the log is gone
                if process is not None and process.poll() is not None and self._times_in_use(name):
                    self.addresses.drop(name)
        processes.stop(self.home, self.started[::-1], self.addresses.by_name.values(), self.addresses.began)

    def _times_in_use(self, name: str) -> int:
        return self.log(name).read_text(errors="replace").lower().count(IN_USE)

    def _port(self, name: str) -> int:
        port = processes.free_port()
        self.addresses.assign(name, f"127.0.0.1:{port}")
        return port

    def _answers(self) -> bool:
        """Whether the SuperLink is ready; False if it ended."""
        assert self.superlink is not None
        deadline = time.monotonic() + LINK_SECONDS
        while time.monotonic() < deadline and self.superlink.poll() is None:
            if self.link_answers():  # and it is not a stranger at a port that was taken
                return self.superlink.poll() is None
            time.sleep(BIND_SECONDS)
        return False

    def link_answers(self) -> bool:
        """Whether the SuperLink answers now, within some seconds."""
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if self.secrets is not None:
            handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(self.secrets.authority))))
        url = f"http{'s' * (self.secrets is not None)}://127.0.0.1:{self.port}/health"
        try:
            with urllib.request.build_opener(*handlers).open(url, timeout=PROBE_SECONDS):
                return True
        except (OSError, HTTPException):
            return False

    def _connection(self) -> str:
        security = "insecure = true" if self.secrets is None else f'root-certificates = "{self.secrets.authority}"'
        place = f'[superlink]\ndefault = "{CONNECTION}"\n[superlink.{CONNECTION}]\naddress = "127.0.0.1:{self.port}"\n'
        return f"{place}{security}\n"


@contextmanager
def federation(
    asked: Asked,
    folder: Path,
    logs: Path,
    on_stop: Callable[[], None] = lambda: None,
    on_trouble: Callable[[str], None] = lambda text: None,
    guard: Guard | None = None,
) -> Iterator[Federation]:
    """Start a SuperLink and SuperNodes. However the context is left, no process and no port is left behind.

    The SuperLink answers when the context begins; the SuperNodes are starting.

    Args:
        asked: what the deployment is to be.
        folder: new folder for the files that the processes need meanwhile.
        logs: folder of the logs; those of an earlier deployment are replaced.
        on_stop: called before anything is stopped.
        on_trouble: called with a line if the deployment goes on, but not as asked.
        guard: guard process of this launcher, None: the deployment has its own.

    Raises:
        OutputError: there can be no logs, or Flower is not installed.
        DeploymentError: a process cannot be started, or ended.
    """
    with ExitStack() as stack:
        guard = stack.enter_context(Guard()) if guard is None else guard
        guard.end_home(folder / "home")
        _prepare_logs(logs)
        try:
            (folder / "home").mkdir(parents=True)
            launch_folder, refused = find(folder)
            if launch_folder is not None and launch_folder != folder:
                guard.remove(launch_folder)
                stack.callback(shutil.rmtree, launch_folder, ignore_errors=True)
            env = _environment(folder, launch_folder, logs)
            secrets = certificates.make(folder) if asked.tls else None
        except OSError as error:
            raise cannot_write(error.filename or folder, error) from None
        if launch_folder is None:
            slower = "each app starts by itself, slower, and " * asked.warm
            on_trouble(f"{slower}the ServerApp has no log, {_UNUSABLE}: {'; '.join(refused)}; other logs are in {logs}")
        made = Federation(asked, folder, logs, env, on_trouble, secrets, addresses=Addresses(guard))
        try:
            _start(made, launch_folder)
            yield made
        finally:
            on_stop()
            try:
                made.stop()
            finally:
                for proxy in made.proxies.values():
                    proxy.close()


def _prepare_logs(logs: Path) -> None:
    try:
        logs.mkdir(parents=True, exist_ok=True)
        for earlier in (path for name in LOGS for path in logs.glob(f"{name}.log")):
            earlier.unlink()
        (logs / "superlink.log").touch()
    except OSError as error:
        raise OutputError(f"{logs}: no folder for logs ({error.strerror})") from None


def _environment(folder: Path, launch_folder: Path | None, logs: Path) -> dict[str, str]:
    """Return the environment of the processes: the launcher commands first on PATH, and a cache for compiled loops."""
    commands = None if launch_folder is None else launchers.make(launch_folder / "bin", logs / "serverapp.log")
    env = processes.environment(folder / "home", commands)
    env.setdefault(FALLBACK_CACHE, str(folder / "kernels"))
    return env


def _start(made: Federation, launch_folder: Path | None) -> None:
    try:
        if made.asked.warm and launch_folder is not None:
            made.start_warm(launch_folder)
        made.start_link()
        for partition in range(made.asked.nodes):
            made.start_node(partition)
    except OSError as error:  # no socket is left, or no room for a file
        raise DeploymentError(f"the deployment cannot be started: {error}") from None


def _starting(address: Path) -> Path:
    """Return the file that exists as long as the warm process at this address is being started."""
    return address.with_name(f"{address.name}.starting")
