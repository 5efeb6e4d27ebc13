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
from fedsgd.deployment import processes
from fedsgd.deployment.federation import Federation
from fedsgd.errors import DeploymentError, FedsgdError, RunError, ScenarioWarning, WireError, warn_once
from fedsgd.record import Round

LOOK_SECONDS = 0.05
PROBE_EVERY, SILENT_SECONDS = 5.0, 60.0
"""How often the SuperLink is asked whether it is well, and after how long without an answer of it, or a word of the ServerApp,
the run is given up: Flower itself would go on trying."""
SUBMITTED = "Successfully started run"
"""What `flwr run` prints if it did; its exit status says nothing of it."""
_NODE = re.compile(r"(?:(?:Connection|Timeout)Error: |\d+ of \d+ nodes are ready after [^:]*: )?nodes? (\d+)\b")
"""How the causes begin that FlowerRuntime gives."""


@dataclass(frozen=True)
class Watched:
    """Callbacks of a running deployment.

    Attributes:
        on_state: called with the state that the deployment is in.
        on_engine: called with the engine that was chosen.
        on_round: called after each round.
        on_trouble: called with a line, and the end of a log, if the deployment goes on without a process.
        on_warning: called with a line about settings that a component is not made for.
        on_up: called with the federation, once it runs.
    """

    on_state: Callable[[str], None] = lambda text: None
    on_engine: Callable[[str], None] = lambda text: None
    on_round: Callable[[Round], None] = lambda record: None
    on_trouble: Callable[[str], None] = lambda text: None
    on_warning: Callable[[str], None] = lambda text: warn_once(text, ScenarioWarning, stacklevel=2)
    on_up: Callable[[Federation], None] = lambda made: None


@dataclass
class Told:
    """Events of the ServerApp so far.

    Attributes:
        process: id of the ServerApp's process, 0 before it began.
        carried: messages that crossed.
        ready: time at which the nodes were ready.
        ends: time at which each round was over.
        done: whether the run is over.
    """

    process: int = 0
    carried: list[dict[str, Any]] = field(default_factory=list)
    ready: float | None = None
    ends: list[float] = field(default_factory=list)
    done: bool = False


class Watch:
    """Listens and looks. events: the file that the ServerApp writes to; submission: the process that submits the app;
    start_seconds: for the ServerApp to begin; goes_on: whether the run can do without a SuperNode."""

    def __init__(
        self,
        made: Federation,
        events: Path,
        submission: subprocess.Popen[bytes],
        watched: Watched,
        start_seconds: float,
        goes_on: bool,
    ) -> None:
        self.told = Told()
        self._made = made
        self._events = events
        self._submission = submission
        self._watched = watched
        self._until = time.monotonic() + start_seconds
        self._start_seconds = start_seconds
        self._goes_on = goes_on
        self._gone: dict[int, int] = {}
        self._heard = self._answered = time.monotonic()
        self._over = threading.Event()

    def until_done(self) -> Told:
        """Returns when the run is over; raises what the ServerApp raised, or DeploymentError for who died."""
        threading.Thread(target=self._probe, name="probe", daemon=True).start()
        try:
            return self._until_done()
        finally:
            self._over.set()

    def _until_done(self) -> Told:
        with self._events.open(encoding="utf-8") as file:
            while True:
                dead = self._server_is_dead()
                for event in _lines(file):
                    self._heard = time.monotonic()
                    self._hear(event)
                if self.told.done:
                    return self.told
                if dead:
                    raise DeploymentError(f"the ServerApp (process {self.told.process}) died{self._logs('serverapp')}")
                self._look()
                time.sleep(LOOK_SECONDS)

    def _probe(self) -> None:
        """Beside the rest, because whoever hangs does not answer at once."""
        while not self._over.wait(PROBE_EVERY):
            if self._made.superlink is None or self._made.link_answers():
                self._answered = time.monotonic()

    def _hear(self, event: dict[str, Any]) -> None:
        at, told = event.pop("at"), self.told
        match event.pop("event"):
            case "begun":
                told.process = event["process"]
                self._watched.on_state("building the scenario")
            case "engine":
                self._watched.on_engine(event["text"])
            case "warning":
                self._watched.on_warning(event["text"])
            case "waiting":
                self._watched.on_state(f"waiting for {self._made.asked.nodes} nodes")
            case "ready":
                told.ready = at
                self._watched.on_state("round 1")
            case "carried":
                told.carried.append(event)
            case "round":
                told.ends.append(at)
                record = event["record"]
                for key in ("cohort", "accepted", "failures"):
                    record[key] = tuple(record[key])
                self._watched.on_round(Round(**record))
            case "error":
                raise self._explained(event)
            case "done":
                told.done = True

    def _look(self) -> None:
        """DeploymentError if somebody died without whom there is no run."""
        made = self._made
        made.look_after_warm()
        if made.superlink is not None and made.superlink.poll() is not None:
            raise made.died("the SuperLink", made.superlink, "superlink")
        now = time.monotonic()
        if made.superlink is not None and now - self._answered > SILENT_SECONDS:
            raise made.died("the SuperLink", made.superlink, "superlink", SILENT_SECONDS)
        if self.told.process and now - self._heard > SILENT_SECONDS:
            silent = f"the ServerApp (process {self.told.process}) has said nothing for {SILENT_SECONDS:g} s"
            raise DeploymentError(f"{silent}{self._logs('serverapp')}")
        how = processes.ended(self._submission)
        if how is not None and not self.told.process and SUBMITTED not in made.log("submission").read_text(errors="replace"):
            raise DeploymentError(f"the app could not be submitted: `flwr run` {how}{self._logs('submission')}")
        if not self.told.process and time.monotonic() > self._until:
            raise DeploymentError(f"the ServerApp did not begin within {self._start_seconds:g} s{self._logs('superlink')}")
        for partition, node in made.nodes.items():
            if node.poll() is None or self._gone.get(partition) == node.pid:
                continue
            if self.told.ready is None and made.restart_where_the_port_was_taken(partition):
                continue
            error = made.died(f"node {partition}", node, f"node-{partition}")
            self._gone[partition] = node.pid
            alone = all(other.poll() is not None for other in made.nodes.values())
            if self.told.ready is None or alone or not self._goes_on:
                raise error
            made.addresses.drop(f"node-{partition}")  # its SuperExec ends with it
            self._watched.on_trouble(f"{str(error).splitlines()[0]}; the run goes on without its clients")

    def _server_is_dead(self) -> bool:
        process = self.told.process
        if not process:
            return False
        try:
            return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def _explained(self, event: Mapping[str, Any]) -> FedsgdError:
        """What the ServerApp raised; where it was about a node, with that node's log."""
        named = _NODE.match(event.get("cause", ""))
        if named is not None:
            return DeploymentError(f"{event['text']}{self._logs(f'node-{named[1]}')}")
        kind = getattr(errors, event["kind"], None)
        if kind is None:
            return DeploymentError(f"the ServerApp failed: {event['text']}{self._logs('serverapp')}")
        made: FedsgdError
        if issubclass(kind, RunError):
            made = kind(event["round"], event["client"], event["cause"])
        elif issubclass(kind, WireError):
            made = kind(event["offset"], event["cause"], event["where"], event["client"])
        else:
            made = kind(event["text"])
        return made

    def _logs(self, name: str) -> str:
        path = self._made.log(name)
        return f"; its log is {path}{processes.tail(path)}"


def _lines(file: Any) -> Iterator[dict[str, Any]]:
    """The lines that are complete."""
    while True:
        begin = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(begin)
            return
        yield json.loads(line)
