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

from fedsgd.errors import DeploymentError, OutputError, ScenarioError, make_write_error
from fedsgd.flower.deployment import app_bundle, transport_table
from fedsgd.flower.deployment.cluster import ClusterConfig, LocalCluster, local_cluster
from fedsgd.flower.deployment.counting_proxy import SocketTraffic
from fedsgd.flower.deployment.guard import Guard
from fedsgd.flower.deployment.monitor import DeploymentCallbacks, DeploymentMonitor, ServerAppProgress
from fedsgd.scenario.scenario import PythonObjects, Scenario, open_scenario
from fedsgd.storage.run_directory import find_files_to_remove, write_atomically
from fedsgd.system.forkserver import MAX_PROCESSES
from fedsgd.system.user_files import check_paths, expand_user_path, find_temporary_folder

START_SECONDS = 120.0
ROUND_SECONDS = 600.0
_STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


@dataclass(frozen=True, eq=False)
class DeploymentResult:
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
    use_fork_server: bool = True,
    overwrite: bool = False,
    data: str | Path | None = None,
    logs: str | Path | None = None,
    start_seconds: float = START_SECONDS,
    round_seconds: float = ROUND_SECONDS,
    callbacks: DeploymentCallbacks | None = None,
) -> DeploymentResult:
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
    if not 1 <= nodes <= MAX_PROCESSES or (clients is not None and nodes > clients):
        most = f"or more, at most {MAX_PROCESSES}" if clients is None else f"to {clients}, the clients that there are"
        raise ScenarioError(f"nodes: got {nodes}, expected 1 {most}")
    _check_seconds(start_seconds=start_seconds, round_seconds=round_seconds)
    where = data or os.environ.get("FEDSGD_DATA")
    asked = ClusterConfig(
        nodes,
        scenario.to_toml(),
        str(expand_user_path(where).absolute()) if where else "",
        tls,
        measure_socket,
        use_fork_server,
    )
    folder = expand_user_path(out).absolute()
    logs = None if logs is None else expand_user_path(logs).absolute()
    if logs is not None and folder.resolve() in (logs.resolve(), *logs.resolve().parents):
        raise OutputError(f"{logs}: logs cannot be in the run folder {out}; choose another place for them")
    find_files_to_remove(folder, overwrite)  # what is there is replaced when the nodes are ready, and not before
    settings: dict[str, app_bundle.AppConfigValue] = {
        "out": str(folder),
        "start-seconds": float(start_seconds),
        "round-seconds": float(round_seconds),
    }
    with source, _handle_signals() as signals, _temporary_folders(logs) as place:
        PythonObjects().check(scenario, require_importable=True)
        callbacks = _keep_logs_on_trouble(DeploymentCallbacks() if callbacks is None else callbacks, place)
        with local_cluster(asked, place.work, place.logs, signals.ignore, callbacks.on_trouble, place.guard) as made:
            callbacks.on_cluster_start(made)
            told = _run_app(made, settings, callbacks, scenario.participation.on_failure == "continue", start_seconds)
            signals.ignore()
            is_warm = made.fork_server is not None
            counted = made.read_flower_byte_counters() if measure_socket else None
            seen = {node: list(proxy.traffic) for node, proxy in made.proxies.items()} if measure_socket else None
        return _write_outputs(folder, replace(asked, use_fork_server=is_warm), told, seen, counted)


def _keep_logs_on_trouble(callbacks: DeploymentCallbacks, folders: _WorkingFolders) -> DeploymentCallbacks:
    """Return the same callbacks; the logs, which messages name, are kept after trouble."""

    def on_trouble(text: str) -> None:
        folders.keep_logs()
        callbacks.on_trouble(text)

    return replace(callbacks, on_trouble=on_trouble)


def _check_seconds(**settings: float) -> None:
    for name, seconds in settings.items():
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
            raise ScenarioError(f"{name}: got {seconds!r:.80}, expected a positive number of seconds")


def _run_app(
    cluster: LocalCluster,
    settings: Mapping[str, app_bundle.AppConfigValue],
    callbacks: DeploymentCallbacks,
    tolerate_node_loss: bool,
    start_seconds: float,
) -> ServerAppProgress:
    events = cluster.folder / "events.jsonl"
    asked: dict[str, app_bundle.AppConfigValue] = {
        "scenario": cluster.config.scenario_toml,
        "data": cluster.config.data,
        "nodes": cluster.config.nodes,
        "events": str(events),
    }
    try:
        events.touch()
        app = app_bundle.write_app(cluster.folder / "app", {**asked, **settings})
    except OSError as error:
        raise make_write_error(error.filename or cluster.folder, error) from None
    submission = cluster.submit(app)
    callbacks.on_status("submitting the app")
    return DeploymentMonitor(cluster, events, submission, callbacks, start_seconds, tolerate_node_loss).wait()


def _write_outputs(
    out: Path,
    config: ClusterConfig,
    progress: ServerAppProgress,
    socket_traffic: Mapping[int, Sequence[SocketTraffic]] | None,
    byte_counters: dict[str, int] | None,
) -> DeploymentResult:
    """Add the figures that only a deployment has to the run folder. asked: the deployment as it was at the end."""
    ends = [progress.ready_time or 0.0, *progress.round_ends]
    rows = transport_table.transport_rows(progress.messages, ends, socket_traffic)
    transport_table.save(out / transport_table.FILE_NAME, rows)
    rounds = [after - before for before, after in itertools.pairwise(ends)]
    summary = json.loads((out / "summary.json").read_bytes())
    summary["flower"] = {
        "nodes": config.nodes,
        "tls": config.tls,
        "warm": config.use_fork_server,
        "version": version("flwr"),
        "round_seconds_median": statistics.median(rounds) if rounds else None,
        "transport": transport_table.sum_by_direction(rows),
        "counted_by_flower": byte_counters,
    }
    write_atomically(out / "summary.json", json.dumps(summary, indent=2, allow_nan=False).encode() + b"\n")
    return DeploymentResult(summary, out)


@dataclass
class _WorkingFolders:
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
    must_keep_logs: bool = False

    def keep_logs(self) -> None:
        """Keep the logs, since a message names them."""
        self.must_keep_logs = True
        self.guard.unregister_folder(self.logs)


@contextmanager
def _temporary_folders(logs: Path | None) -> Iterator[_WorkingFolders]:
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
            where = find_temporary_folder() or "TMPDIR, /tmp, /var/tmp"
            raise OutputError(
                f"{where}: no temporary folder can be made ({error.strerror}); set TMPDIR to one that can be"
            ) from None
        guard.register_folder(Path(temporary.name))
        if logs is None:
            guard.register_folder(log_folder)
        place = _WorkingFolders(Path(stack.enter_context(temporary)) / "run", log_folder, guard)
        try:
            yield place
        except DeploymentError:
            place.keep_logs()
            raise
        finally:
            if logs is None and not place.must_keep_logs:
                shutil.rmtree(log_folder, ignore_errors=True)


class _Signals:
    """Whatever asks us to end does so as Ctrl-C does, once: what is being stopped then is stopped to the end."""

    def __init__(self) -> None:
        self._is_ignoring = False

    def ignore(self) -> None:
        """From now on nothing is broken off."""
        self._is_ignoring = True

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if not self._is_ignoring:
            self._is_ignoring = True
            raise KeyboardInterrupt


@contextmanager
def _handle_signals() -> Iterator[_Signals]:
    """What is ignored (under nohup, or in the background of a script) stays ignored."""
    signals = _Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    known = [getattr(signal, name) for name in _STOP_SIGNALS if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in known}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, signals.handle)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
