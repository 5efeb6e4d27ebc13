"""What happens while a deployment runs: what its ServerApp tells, and which of its processes die."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from fedsgd import errors
from fedsgd.errors import DeploymentError, FedsgdError, RunError, ScenarioWarning, WireError, warn_once
from fedsgd.federation.round_record import RoundRecord
from fedsgd.flower.deployment import processes
from fedsgd.flower.deployment.cluster import LocalCluster

POLL_SECONDS = 0.05
PROBE_SECONDS, SILENT_SECONDS = 5.0, 60.0
"""How often the SuperLink is asked whether it is well, and after how long without an answer of it, or a word of the ServerApp,
the run is given up: Flower itself would go on trying."""
SUBMITTED_TEXT = "Successfully started run"
"""What `flwr run` prints if it did; its exit status says nothing of it."""
_NODE_CAUSE = re.compile(r"(?:(?:Connection|Timeout)Error: |\d+ of \d+ nodes are ready after [^:]*: )?nodes? (\d+)\b")
"""How the causes begin that FlowerRuntime gives."""


@dataclass(frozen=True)
class DeploymentCallbacks:
    """Callbacks of a running deployment.

    Attributes:
        on_state: called with the state that the deployment is in.
        on_engine: called with the engine that was chosen.
        on_round: called after each round.
        on_trouble: called with a line, and the end of a log, if the deployment goes on without a process.
        on_warning: called with a line about settings that a component is not made for.
        on_up: called with the federation, once it runs.
    """

    on_status: Callable[[str], None] = lambda text: None
    on_engine: Callable[[str], None] = lambda text: None
    on_round: Callable[[RoundRecord], None] = lambda record: None
    on_trouble: Callable[[str], None] = lambda text: None
    on_warning: Callable[[str], None] = lambda text: warn_once(text, ScenarioWarning, stacklevel=2)
    on_cluster_start: Callable[[LocalCluster], None] = lambda made: None


@dataclass
class ServerAppProgress:
    """Events of the ServerApp so far.

    Attributes:
        process: id of the ServerApp's process, 0 before it began.
        carried: messages that crossed.
        ready: time at which the nodes were ready.
        ends: time at which each round was over.
        done: whether the run is over.
    """

    pid: int = 0
    messages: list[dict[str, Any]] = field(default_factory=list)
    ready_time: float | None = None
    round_ends: list[float] = field(default_factory=list)
    is_done: bool = False


class DeploymentMonitor:
    """Listens and looks. events: the file that the ServerApp writes to; submission: the process that submits the app;
    start_seconds: for the ServerApp to begin; goes_on: whether the run can do without a SuperNode."""

    def __init__(
        self,
        cluster: LocalCluster,
        events: Path,
        submission: subprocess.Popen[bytes],
        callbacks: DeploymentCallbacks,
        start_seconds: float,
        tolerate_node_loss: bool,
    ) -> None:
        self.progress = ServerAppProgress()
        self._cluster = cluster
        self._events = events
        self._submission = submission
        self._callbacks = callbacks
        self._start_deadline = time.monotonic() + start_seconds
        self._start_seconds = start_seconds
        self._tolerate_node_loss = tolerate_node_loss
        self._dead_node_pids: dict[int, int] = {}
        self._last_event_time = self._last_response_time = time.monotonic()
        self._stop_probing = threading.Event()

    def wait(self) -> ServerAppProgress:
        """Returns when the run is over; raises what the ServerApp raised, or DeploymentError for who died."""
        threading.Thread(target=self._probe_superlink, name="probe", daemon=True).start()
        try:
            return self._follow_events()
        finally:
            self._stop_probing.set()

    def _follow_events(self) -> ServerAppProgress:
        with self._events.open(encoding="utf-8") as file:
            while True:
                dead = self._is_server_app_dead()
                for event in _read_events(file):
                    self._last_event_time = time.monotonic()
                    self._handle_event(event)
                if self.progress.is_done:
                    return self.progress
                if dead:
                    raise DeploymentError(f"the ServerApp (process {self.progress.pid}) died{self._describe_log('serverapp')}")
                self._check_processes()
                time.sleep(POLL_SECONDS)

    def _probe_superlink(self) -> None:
        """Beside the rest, because whoever hangs does not answer at once."""
        while not self._stop_probing.wait(PROBE_SECONDS):
            if self._cluster.superlink is None or self._cluster.is_superlink_healthy():
                self._last_response_time = time.monotonic()

    def _handle_event(self, event: dict[str, Any]) -> None:
        at, told = event.pop("at"), self.progress
        match event.pop("event"):
            case "begun":
                told.pid = event["process"]
                self._callbacks.on_status("building the scenario")
            case "engine":
                self._callbacks.on_engine(event["text"])
            case "warning":
                self._callbacks.on_warning(event["text"])
            case "waiting":
                self._callbacks.on_status(f"waiting for {self._cluster.config.nodes} nodes")
            case "ready":
                told.ready_time = at
                self._callbacks.on_status("round 1")
            case "carried":
                told.messages.append(event)
            case "round":
                told.round_ends.append(at)
                record = event["record"]
                for key in ("cohort", "accepted", "failures"):
                    record[key] = tuple(record[key])
                self._callbacks.on_round(RoundRecord(**record))
            case "error":
                raise self._build_error(event)
            case "done":
                told.is_done = True

    def _check_processes(self) -> None:
        """DeploymentError if somebody died without whom there is no run."""
        made = self._cluster
        made.check_fork_server()
        if made.superlink is not None and made.superlink.poll() is not None:
            raise made.make_process_error("the SuperLink", made.superlink, "superlink")
        now = time.monotonic()
        if made.superlink is not None and now - self._last_response_time > SILENT_SECONDS:
            raise made.make_process_error("the SuperLink", made.superlink, "superlink", SILENT_SECONDS)
        if self.progress.pid and now - self._last_event_time > SILENT_SECONDS:
            silent = f"the ServerApp (process {self.progress.pid}) has said nothing for {SILENT_SECONDS:g} s"
            raise DeploymentError(f"{silent}{self._describe_log('serverapp')}")
        how = processes.describe_exit(self._submission)
        if (
            how is not None
            and not self.progress.pid
            and SUBMITTED_TEXT not in made.get_log_path("submission").read_text(errors="replace")
        ):
            raise DeploymentError(f"the app could not be submitted: `flwr run` {how}{self._describe_log('submission')}")
        if not self.progress.pid and time.monotonic() > self._start_deadline:
            raise DeploymentError(
                f"the ServerApp did not begin within {self._start_seconds:g} s{self._describe_log('superlink')}"
            )
        for partition, node in made.nodes.items():
            if node.poll() is None or self._dead_node_pids.get(partition) == node.pid:
                continue
            if self.progress.ready_time is None and made.restart_after_port_conflict(partition):
                continue
            error = made.make_process_error(f"node {partition}", node, f"node-{partition}")
            self._dead_node_pids[partition] = node.pid
            alone = all(other.poll() is not None for other in made.nodes.values())
            if self.progress.ready_time is None or alone or not self._tolerate_node_loss:
                raise error
            made.addresses.drop(f"node-{partition}")  # its SuperExec ends with it
            self._callbacks.on_trouble(f"{str(error).splitlines()[0]}; the run goes on without its clients")

    def _is_server_app_dead(self) -> bool:
        process = self.progress.pid
        if not process:
            return False
        try:
            return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def _build_error(self, event: Mapping[str, Any]) -> FedsgdError:
        """What the ServerApp raised; where it was about a node, with that node's log."""
        named = _NODE_CAUSE.match(event.get("cause", ""))
        if named is not None:
            return DeploymentError(f"{event['text']}{self._describe_log(f'node-{named[1]}')}")
        kind = getattr(errors, event["kind"], None)
        if kind is None:
            return DeploymentError(f"the ServerApp failed: {event['text']}{self._describe_log('serverapp')}")
        made: FedsgdError
        if issubclass(kind, RunError):
            made = kind(event["round"], event["client"], event["cause"])
        elif issubclass(kind, WireError):
            made = kind(event["offset"], event["cause"], event["where"], event["client"])
        else:
            made = kind(event["text"])
        return made

    def _describe_log(self, name: str) -> str:
        path = self._cluster.get_log_path(name)
        return f"; its log is {path}{processes.read_tail(path)}"


def _read_events(file: Any) -> Iterator[dict[str, Any]]:
    """The lines that are complete."""
    while True:
        begin = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(begin)
            return
        yield json.loads(line)
