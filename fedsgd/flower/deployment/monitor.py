"""Monitor of a running deployment: events of the ServerApp, and processes that die."""

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
PROBE_SECONDS = 5.0
"""Interval between two health checks of the SuperLink."""
SILENT_SECONDS = 60.0
"""Maximum time without an answer of the SuperLink, or without an event of the ServerApp. Flower itself would retry forever."""
SUBMITTED_TEXT = "Successfully started run"
"""Text that `flwr run` prints after a successful submission. Its exit status is the same after a failure."""
_NODE_CAUSE = re.compile(r"(?:(?:Connection|Timeout)Error: |\d+ of \d+ nodes are ready after [^:]*: )?nodes? (\d+)\b")
"""Beginning of the cause of a FlowerRuntime error about a node."""


@dataclass(frozen=True)
class DeploymentCallbacks:
    """Callbacks of a running deployment.

    Attributes:
        on_status: called with the deployment's present step, such as "waiting for 2 nodes".
        on_engine: called with the selected engine.
        on_round: called after each round.
        on_trouble: called with a message if the deployment continues without a process or a log.
        on_warning: called with a line about settings that are outside a component's valid use.
        on_cluster_start: called with the deployment's processes after the SuperLink has started.
    """

    on_status: Callable[[str], None] = lambda text: None
    on_engine: Callable[[str], None] = lambda text: None
    on_round: Callable[[RoundRecord], None] = lambda record: None
    on_trouble: Callable[[str], None] = lambda text: None
    on_warning: Callable[[str], None] = lambda text: warn_once(text, ScenarioWarning, stacklevel=2)
    on_cluster_start: Callable[[LocalCluster], None] = lambda cluster: None


@dataclass
class ServerAppProgress:
    """Events of the ServerApp so far.

    Attributes:
        pid: id of the ServerApp's process, 0 before its start.
        messages: messages between server and nodes, with the fields of `MessageEvent`.
        ready_time: time at which all nodes were ready, None before; seconds by the monotonic clock.
        round_ends: [R] times at which rounds ended.
    """

    pid: int = 0
    messages: list[dict[str, Any]] = field(default_factory=list)
    ready_time: float | None = None
    round_ends: list[float] = field(default_factory=list)
    is_done: bool = False


class DeploymentMonitor:
    """Reader of the ServerApp's event file, which also checks the processes of a deployment.

    Args:
        start_seconds: seconds, time limit for the start of the ServerApp.
        tolerate_node_loss: whether the run continues without a SuperNode that ended.
        first_round: first round of this launch; later than 1 in a resumed run.
    """

    def __init__(
        self,
        cluster: LocalCluster,
        events: Path,
        submission: subprocess.Popen[bytes],
        callbacks: DeploymentCallbacks,
        start_seconds: float,
        tolerate_node_loss: bool,
        first_round: int = 1,
    ) -> None:
        self.progress = ServerAppProgress()
        self._cluster = cluster
        self._events = events
        self._submission = submission
        self._callbacks = callbacks
        self._start_deadline = time.monotonic() + start_seconds
        self._start_seconds = start_seconds
        self._tolerate_node_loss = tolerate_node_loss
        self._first_round = first_round
        self._dead_node_pids: dict[int, int] = {}
        self._last_event_time = self._last_response_time = time.monotonic()
        self._stop_probing = threading.Event()

    def wait(self) -> ServerAppProgress:
        """Wait until the run ends. Raise the ServerApp's error, or DeploymentError if a required process dies or hangs."""
        threading.Thread(target=self._probe_superlink, name="probe", daemon=True).start()
        try:
            return self._follow_events()
        finally:
            self._stop_probing.set()

    def _follow_events(self) -> ServerAppProgress:
        with self._events.open(encoding="utf-8") as file:
            while True:
                is_dead = self._is_server_app_dead()  # checked first: all events of a dead process are then in the file
                for event in _read_events(file):
                    self._last_event_time = time.monotonic()
                    self._handle_event(event)
                if self.progress.is_done:
                    return self.progress
                if is_dead:
                    log = self._cluster.describe_log("serverapp")
                    raise DeploymentError(f"the ServerApp (process {self.progress.pid}) died{log}")
                self._check_processes()
                time.sleep(POLL_SECONDS)

    def _probe_superlink(self) -> None:
        """Check the SuperLink's health at intervals, in a thread because a process that hangs does not answer quickly."""
        while not self._stop_probing.wait(PROBE_SECONDS):
            if self._cluster.superlink is None or self._cluster.is_superlink_healthy():
                self._last_response_time = time.monotonic()

    def _handle_event(self, event: dict[str, Any]) -> None:
        time_of_event, progress = event.pop("at"), self.progress
        match event.pop("event"):
            case "begun":
                progress.pid = event["process"]
                self._callbacks.on_status("building the scenario")
            case "engine":
                self._callbacks.on_engine(event["text"])
            case "warning":
                self._callbacks.on_warning(event["text"])
            case "waiting":
                self._callbacks.on_status(f"waiting for {self._cluster.config.nodes} nodes")
            case "ready":
                progress.ready_time = time_of_event
                self._callbacks.on_status(f"round {self._first_round}")
            case "carried":
                progress.messages.append(event)
            case "round":
                progress.round_ends.append(time_of_event)
                record = event["record"]
                for key in ("cohort", "accepted", "failures"):
                    record[key] = tuple(record[key])
                self._callbacks.on_round(RoundRecord(**record))
            case "error":
                error = self._build_error(event)
                for note in event.get("notes", []):
                    error.add_note(note)
                raise error
            case "done":
                progress.is_done = True

    def _check_processes(self) -> None:
        """Raise a DeploymentError if a process that the run needs died, or does not answer."""
        cluster = self._cluster
        cluster.check_fork_server()
        if cluster.superlink is not None and cluster.superlink.poll() is not None:
            raise cluster.make_process_error("the SuperLink", cluster.superlink, "superlink")
        now = time.monotonic()
        if cluster.superlink is not None and now - self._last_response_time > SILENT_SECONDS:
            raise cluster.make_process_error("the SuperLink", cluster.superlink, "superlink", SILENT_SECONDS)
        if self.progress.pid and now - self._last_event_time > SILENT_SECONDS:
            silence = f"the ServerApp (process {self.progress.pid}) has written no event for {SILENT_SECONDS:g} s"
            raise DeploymentError(f"{silence}{cluster.describe_log('serverapp')}")
        status = processes.describe_exit(self._submission)
        if (
            status is not None
            and not self.progress.pid
            and SUBMITTED_TEXT not in cluster.get_log_path("submission").read_text(errors="replace")
        ):
            raise DeploymentError(f"the app could not be submitted: `flwr run` {status}{cluster.describe_log('submission')}")
        if not self.progress.pid and time.monotonic() > self._start_deadline:
            problem = f"the ServerApp did not begin within {self._start_seconds:g} s"
            raise DeploymentError(f"{problem}{cluster.describe_log('superlink')}")
        for partition, node in cluster.nodes.items():
            if node.poll() is None or self._dead_node_pids.get(partition) == node.pid:
                continue
            if self.progress.ready_time is None and cluster.restart_after_port_conflict(partition):
                continue
            error = cluster.make_process_error(f"node {partition}", node, f"node-{partition}")
            self._dead_node_pids[partition] = node.pid
            all_ended = all(process.poll() is not None for process in cluster.nodes.values())
            if self.progress.ready_time is None or all_ended or not self._tolerate_node_loss:
                raise error
            cluster.addresses.drop(f"node-{partition}")  # the node's SuperExec ends with the node
            self._callbacks.on_trouble(f"{str(error).splitlines()[0]}; the run continues without its clients")

    def _is_server_app_dead(self) -> bool:
        pid = self.progress.pid
        if not pid:
            return False
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def _build_error(self, event: Mapping[str, Any]) -> FedsgdError:
        """Return the error that the ServerApp raised. An error about a node, or of a class outside fedsgd, comes with a log."""
        node_match = _NODE_CAUSE.match(event.get("cause", ""))
        if node_match is not None:
            return DeploymentError(f"{event['text']}{self._cluster.describe_log(f'node-{node_match[1]}')}")
        error_class: type[FedsgdError] | None = getattr(errors, event["kind"], None)
        if error_class is None:
            return DeploymentError(f"the ServerApp failed: {event['text']}{self._cluster.describe_log('serverapp')}")
        if issubclass(error_class, RunError):
            return error_class(event["round"], event["client"], event["cause"])
        if issubclass(error_class, WireError):
            return error_class(event["offset"], event["cause"], event["where"], event["client"])
        return error_class(event["text"])


def _read_events(file: Any) -> Iterator[dict[str, Any]]:
    """Yield the events of all complete lines from the present position of the file."""
    while True:
        position = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(position)
            return
        yield json.loads(line)
