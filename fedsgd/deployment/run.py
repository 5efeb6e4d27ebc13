"""Scenario as a real deployment: a SuperLink and SuperNodes as processes of their own, over Flower's own transport."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
import statistics
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from fedsgd.deployment import bundle, transport
from fedsgd.deployment.federation import Asked, Federation, federation
from fedsgd.deployment.guard import Guard
from fedsgd.deployment.proxy import Seen
from fedsgd.deployment.watch import Told, Watch, Watched
from fedsgd.errors import DeploymentError, OutputError, ScenarioError, cannot_write
from fedsgd.forking import MOST_PROCESSES
from fedsgd.run_folder import check, write
from fedsgd.scenario import PythonObjects, Scenario, open_scenario
from fedsgd.user_files import check_paths, temporary_folder, user_path

START_SECONDS = 120.0
ROUND_SECONDS = 600.0
_STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")


@dataclass(frozen=True, eq=False)
class Deployed:
    """Finished run of a deployment.

    Attributes:
        summary: contents of summary.json, which are those of a simulation and `flower`.
        out: run folder, which has transport.parquet in addition to the files of a simulation.
    """

    summary: Mapping[str, Any]
    out: Path


def deploy(
    scenario: Scenario | str | Path,
    out: str | Path,
    *,
    nodes: int,
    tls: bool = False,
    measure_socket: bool = False,
    warm: bool = True,
    overwrite: bool = False,
    data: str | Path | None = None,
    logs: str | Path | None = None,
    start_seconds: float = START_SECONDS,
    round_seconds: float = ROUND_SECONDS,
    watched: Watched | None = None,
) -> Deployed:
    """Run a scenario over Flower, on this machine's loopback, and stop everything.

    With `[participation] on_failure = "continue"` the run goes on without a SuperNode that died, or does not answer in time.

    Args:
        scenario: the scenario, or the file that holds one.
        out: run folder, as for `fedsgd.run`.
        nodes: number of SuperNodes, over which the clients are spread.
        tls: whether nodes and SuperLink use TLS, with certificates made for the purpose.
        measure_socket: whether all bytes on the nodes' sockets are counted.
        warm: whether Flower's apps are forked from a process that has imported everything.
        overwrite: whether an earlier run in the run folder is replaced.
        data: folder of the data files.
        logs: folder for the processes' logs. None: they are removed at the end, unless a message named them.
        start_seconds: seconds for the ServerApp to begin, and then for all nodes to be ready.
        round_seconds: seconds for a node's answer.
        watched: callbacks.

    Raises:
        ScenarioError, OutputError, RunError: as in a simulation.
        DeploymentError: a process that the run needs did not start, or died. The message names it and its log.
    """
    source, scenario = open_scenario(scenario)
    check_paths(out=out, data=data, logs=logs)
    clients = scenario.data.n_clients
    if not 1 <= nodes <= MOST_PROCESSES or (clients is not None and nodes > clients):
        most = f"or more, at most {MOST_PROCESSES}" if clients is None else f"to {clients}, the clients that there are"
        raise ScenarioError(f"nodes: got {nodes}, expected 1 {most}")
    _check_seconds(start_seconds=start_seconds, round_seconds=round_seconds)
    where = data or os.environ.get("FEDSGD_DATA")
    asked = Asked(nodes, scenario.to_toml(), str(user_path(where).absolute()) if where else "", tls, measure_socket, warm)
    folder = user_path(out).absolute()
    logs = None if logs is None else user_path(logs).absolute()
    if logs is not None and folder.resolve() in (logs.resolve(), *logs.resolve().parents):
        raise OutputError(f"{logs}: logs cannot be in the run folder {out}; choose another place for them")
    check(folder, overwrite)  # what is there is replaced when the nodes are ready, and not before
    settings: dict[str, bundle.Setting] = {
        "out": str(folder),
        "start-seconds": float(start_seconds),
        "round-seconds": float(round_seconds),
    }
    with source, _on_signals() as signals, _temporary(logs) as place:
        PythonObjects().check(scenario, elsewhere=True)
        watched = _keeping_logs(Watched() if watched is None else watched, place)
        with federation(asked, place.work, place.logs, signals.hold, watched.on_trouble, place.guard) as made:
            watched.on_up(made)
            told = _run(made, settings, watched, scenario.participation.on_failure == "continue", start_seconds)
            signals.hold()
            is_warm = made.warm is not None
            counted = made.counted() if measure_socket else None
            seen = {node: list(proxy.seen) for node, proxy in made.proxies.items()} if measure_socket else None
        return _finished(folder, replace(asked, warm=is_warm), told, seen, counted)


def _keeping_logs(watched: Watched, place: _Place) -> Watched:
    """Return the same callbacks; the logs, which messages name, are kept after trouble."""

    def on_trouble(text: str) -> None:
        place.keep_logs()
        watched.on_trouble(text)

    return replace(watched, on_trouble=on_trouble)


def _check_seconds(**settings: float) -> None:
    for name, seconds in settings.items():
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
            raise ScenarioError(f"{name}: got {seconds!r:.80}, expected a positive number of seconds")


def _run(
    made: Federation, settings: Mapping[str, bundle.Setting], watched: Watched, goes_on: bool, start_seconds: float
) -> Told:
    events = made.folder / "events.jsonl"
    asked: dict[str, bundle.Setting] = {
        "scenario": made.asked.scenario,
        "data": made.asked.data,
        "nodes": made.asked.nodes,
        "events": str(events),
    }
    try:
        events.touch()
        app = bundle.write(made.folder / "app", {**asked, **settings})
    except OSError as error:
        raise cannot_write(error.filename or made.folder, error) from None
    submission = made.submit(app)
    watched.on_state("submitting the app")
    return Watch(made, events, submission, watched, start_seconds, goes_on).until_done()


def _finished(
    out: Path, asked: Asked, told: Told, seen: Mapping[int, Sequence[Seen]] | None, counted: dict[str, int] | None
) -> Deployed:
    """Add the figures that only a deployment has to the run folder. asked: the deployment as it was at the end."""
    ends = [told.ready or 0.0, *told.ends]
    rows = transport.rows(told.carried, ends, seen)
    transport.save(out / transport.FILE, rows)
    rounds = [after - before for before, after in itertools.pairwise(ends)]
    summary = json.loads((out / "summary.json").read_bytes())
    summary["flower"] = {
        "nodes": asked.nodes,
        "tls": asked.tls,
        "warm": asked.warm,
        "version": version("flwr"),
        "round_seconds_median": statistics.median(rounds) if rounds else None,
        "transport": transport.totals(rows),
        "counted_by_flower": counted,
    }
    write(out / "summary.json", json.dumps(summary, indent=2, allow_nan=False).encode() + b"\n")
    return Deployed(summary, out)


@dataclass
class _Place:
    """Folders of a deployment.

    Attributes:
        work: folder for the time being.
        logs: folder of the logs.
        guard: process that removes temporary folders if this one is killed.
        keep: whether logs are kept that the user did not ask for.
    """

    work: Path
    logs: Path
    guard: Guard
    keep: bool = False

    def keep_logs(self) -> None:
        """Keep the logs, since a message names them."""
        self.keep = True
        self.guard.keep(self.logs)


@contextmanager
def _temporary(logs: Path | None) -> Iterator[_Place]:
    """Make temporary folders, also for logs that the user did not ask for. These are kept if a message named them.

    Raises:
        OutputError: no temporary folder can be made.
        DeploymentError: the guard process cannot be started.
    """
    with ExitStack() as stack:
        guard = stack.enter_context(Guard())
        try:
            log_folder = Path(tempfile.mkdtemp(prefix="fedsgd-logs-")) if logs is None else logs
            temporary = tempfile.TemporaryDirectory(prefix="fedsgd-", ignore_cleanup_errors=True)
        except OSError as error:
            where = temporary_folder() or "TMPDIR, /tmp, /var/tmp"
            raise OutputError(
                f"{where}: no temporary folder can be made ({error.strerror}); set TMPDIR to one that can be"
            ) from None
        guard.remove(Path(temporary.name))
        if logs is None:
            guard.remove(log_folder)
        place = _Place(Path(stack.enter_context(temporary)) / "run", log_folder, guard)
        try:
            yield place
        except DeploymentError:
            place.keep_logs()
            raise
        finally:
            if logs is None and not place.keep:
                shutil.rmtree(log_folder, ignore_errors=True)


class _Signals:
    """Whatever asks us to end does so as Ctrl-C does, once: what is being stopped then is stopped to the end."""

    def __init__(self) -> None:
        self._held = False

    def hold(self) -> None:
        """From now on nothing is broken off."""
        self._held = True

    def end(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if not self._held:
            self._held = True
            raise KeyboardInterrupt


@contextmanager
def _on_signals() -> Iterator[_Signals]:
    """What is ignored (under nohup, or in the background of a script) stays ignored."""
    signals = _Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    known = [getattr(signal, name) for name in _STOPPING if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in known}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, signals.end)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
