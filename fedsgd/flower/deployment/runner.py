"""Run of a scenario as a deployment: a SuperLink and SuperNodes as separate processes, over Flower's transport."""

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

from fedsgd.config.argument_checks import check_flag, resolve_config, resolve_whole_number
from fedsgd.errors import DeploymentError, OutputError, ScenarioError, make_write_error
from fedsgd.flower.deployment import app_bundle, transport_table
from fedsgd.flower.deployment.cluster import ClusterConfig, LocalCluster, local_cluster
from fedsgd.flower.deployment.counting_proxy import SocketTraffic
from fedsgd.flower.deployment.guard import Guard
from fedsgd.flower.deployment.monitor import DeploymentCallbacks, DeploymentMonitor, ServerAppProgress
from fedsgd.flower.deployment.user_modules import import_from_scenario_folder, read_user_modules
from fedsgd.scenario.scenario import PythonObjects, Scenario, open_scenario
from fedsgd.storage.run_directory import CHECKPOINT_FOLDER, NODE_FOLDER, find_files_to_remove, write_atomically
from fedsgd.system.compute_device import CPU, resolve_device
from fedsgd.system.forkserver import MAX_PROCESSES
from fedsgd.system.user_files import check_paths, expand_user_path, find_temporary_folder

EVENT_FILE = "events.jsonl"
_STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


@dataclass(frozen=True)
class DeploymentConfig:
    """Transport, processes, logs and time limits of a deployment.

    Attributes:
        tls: whether nodes and SuperLink communicate over TLS, with certificates that are created for this run.
        measure_socket: whether all bytes on the nodes' sockets are counted.
        use_fork_server: whether Flower's apps are forked from a process that has imported their modules, which is faster.
        logs: folder for the processes' logs. None: the logs are removed at the end, unless a message names them.
        start_seconds: seconds, time limit for the start of the ServerApp, and then for all nodes to be ready.
        round_seconds: seconds, time limit for a node's reply in a round.
    """

    tls: bool = False
    measure_socket: bool = False
    use_fork_server: bool = True
    logs: str | Path | None = None
    start_seconds: float = 120.0
    round_seconds: float = 600.0


@dataclass(frozen=True, eq=False)
class DeploymentResult:
    """Finished run of a deployment.

    Attributes:
        summary: contents of summary.json: a simulation's summary, and the table `flower`.
        out: run folder, which has transport.parquet in addition to the files of a simulation.
    """

    summary: Mapping[str, Any]
    out: Path

    def __repr__(self) -> str:
        accuracy, rounds = self.summary["final_accuracy"], f"{self.summary['rounds']} rounds"
        figures = rounds if accuracy is None else f"{rounds}, accuracy {accuracy:.4f}"
        up, down = self.summary["uplink_bytes"], self.summary["downlink_bytes"]
        return f'DeploymentResult("{self.out}": {figures}, {up:,} bytes up, {down:,} bytes down)'


@import_from_scenario_folder
def deploy(
    scenario: Scenario | str | Path,
    out: str | Path,
    *,
    nodes: int,
    data: str | Path | None = None,
    overwrite: bool = False,
    execution: DeploymentConfig | None = None,
    callbacks: DeploymentCallbacks | None = None,
) -> DeploymentResult:
    """Run a scenario over Flower on this machine's loopback interface, and stop all processes at the end.

    With `[participation] on_failure = "continue"`, the run continues without a SuperNode that died or does not answer in time.
    A module of the user that is next to the scenario file or in the current folder travels in the app (see `user_modules`).

    Args:
        scenario: scenario, or the path of a scenario file.
        out: run folder, as for `fedsgd.run`.
        nodes: number of SuperNodes; client c runs on node c mod `nodes`.
        data: folder of the data files; None for the folder that FEDSGD_DATA names.
        overwrite: whether an earlier run in the run folder is replaced.
        execution: transport, processes, logs and time limits; None for the defaults.
        callbacks: functions that are called during the run, None for none.

    Raises:
        ScenarioError, OutputError, RunError: as in a simulation.
        DeploymentError: a process that the run needs did not start, died, or does not answer. The message names the process.
    """
    execution = resolve_config("execution", execution, DeploymentConfig)
    callbacks = resolve_config("callbacks", callbacks, DeploymentCallbacks)
    source, scenario = open_scenario(scenario)
    check_paths(out=out, data=data, logs=execution.logs)
    folder = expand_user_path(out).absolute()
    check_flag("overwrite", overwrite)
    n_clients = scenario.data.n_clients or MAX_PROCESSES
    reason = f"there are {n_clients} clients" if n_clients < MAX_PROCESSES else ""
    nodes = resolve_whole_number("nodes", nodes, 1, min(n_clients, MAX_PROCESSES), reason)
    _check_settings(scenario, execution, folder)
    find_files_to_remove(folder, overwrite)  # only a check: the files are replaced when the nodes are ready
    with source:
        return launch(scenario, folder, nodes, _locate_data(data), execution, callbacks)


def launch(
    scenario: Scenario,
    folder: Path,
    nodes: int,
    data: str,
    execution: DeploymentConfig,
    callbacks: DeploymentCallbacks,
    rounds_done: int = 0,
) -> DeploymentResult:
    """Start a deployment, run the rounds of its scenario that are left, and stop all processes at the end.

    Args:
        scenario: scenario of the run.
        folder: absolute path of the run folder.
        nodes: number of SuperNodes.
        data: absolute path of the folder of the data files, "" for the default.
        execution: checked settings of the deployment.
        callbacks: functions that are called during the run.
        rounds_done: last round of the checkpoint from which the run continues; 0 for a new run.
    """
    start_seconds = execution.start_seconds
    config = ClusterConfig(nodes, scenario.to_toml(), data, execution.tls, execution.measure_socket, execution.use_fork_server)
    logs = None if execution.logs is None else _resolve_log_folder(execution.logs, folder)
    settings = _build_run_settings(scenario, folder, nodes, execution, rounds_done)
    with _handle_signals() as signals, _temporary_folders(logs) as folders:
        PythonObjects().check(scenario, require_importable=True)
        config = replace(config, user_modules=read_user_modules(scenario))
        callbacks = _keep_logs_on_trouble(callbacks, folders)
        with local_cluster(config, folders.work, folders.logs, signals.ignore, callbacks.on_trouble, folders.guard) as cluster:
            callbacks.on_cluster_start(cluster)
            tolerate_node_loss = scenario.participation.on_failure == "continue"
            app = _write_app(cluster, settings)
            submission = cluster.submit(app)
            callbacks.on_status("submitting the app")
            progress = DeploymentMonitor(
                cluster, app.parent / EVENT_FILE, submission, callbacks, start_seconds, tolerate_node_loss, rounds_done + 1
            ).wait()
            signals.ignore()
            has_fork_server = cluster.fork_server is not None
            byte_counters = cluster.read_flower_byte_counters() if config.measure_socket else None
            traffic = {node: list(proxy.traffic) for node, proxy in cluster.proxies.items()} if config.measure_socket else None
        config = replace(config, use_fork_server=has_fork_server)
        return _write_outputs(folder, config, progress, traffic, byte_counters, rounds_done + 1)


def _check_settings(scenario: Scenario, execution: DeploymentConfig, folder: Path) -> None:
    """Raise a ScenarioError or an OutputError for settings that do not fit."""
    if resolve_device(scenario.engine.device, scenario.engine.deterministic) != CPU:
        problem = f'got "{scenario.engine.device}", expected "cpu": nodes are forked processes, in which CUDA cannot start'
        raise ScenarioError(f"engine.device: {problem}")
    _check_seconds(start_seconds=execution.start_seconds, round_seconds=execution.round_seconds)
    if execution.logs is not None:
        _resolve_log_folder(execution.logs, folder)


def _build_run_settings(
    scenario: Scenario, folder: Path, nodes: int, execution: DeploymentConfig, rounds_done: int
) -> dict[str, app_bundle.AppConfigValue]:
    """Return the settings of the run, and the settings of its launch, which checkpoints store for `resume_deployment`.

    The states of a run with checkpoints are in its folder, because another launch needs them.
    """
    has_checkpoints = scenario.checkpoint.every is not None or rounds_done > 0
    settings = {name: value for name, value in vars(execution).items() if name != "logs"}
    return {
        "out": str(folder),
        "start-seconds": float(execution.start_seconds),
        "round-seconds": float(execution.round_seconds),
        "state": str(folder / CHECKPOINT_FOLDER / NODE_FOLDER) if has_checkpoints else "",
        "launch": json.dumps({"nodes": nodes, "execution": settings}),
        "is-resumed": rounds_done > 0,
    }


def _keep_logs_on_trouble(callbacks: DeploymentCallbacks, folders: _WorkingFolders) -> DeploymentCallbacks:
    """Return callbacks with an `on_trouble` that also keeps the logs, because its message names one of them."""

    def on_trouble(text: str) -> None:
        folders.keep_logs()
        callbacks.on_trouble(text)

    return replace(callbacks, on_trouble=on_trouble)


def _locate_data(data: str | Path | None) -> str:
    """Return the absolute path of the data folder, from FEDSGD_DATA for None; "" if no folder is set."""
    folder = data or os.environ.get("FEDSGD_DATA")
    return str(expand_user_path(folder).absolute()) if folder else ""


def _resolve_log_folder(logs: str | Path, run_folder: Path) -> Path:
    """Return the absolute path of the log folder. OutputError if this folder is in the run folder."""
    folder = expand_user_path(logs).absolute()
    if run_folder.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise OutputError(f"{folder}: logs cannot be in the run folder {run_folder}; choose another folder for the logs")
    return folder


def _check_seconds(**settings: float) -> None:
    for name, seconds in settings.items():
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
            raise ScenarioError(f"{name}: got {seconds!r:.80}, expected a positive number of seconds")


def _write_app(cluster: LocalCluster, settings: Mapping[str, app_bundle.AppConfigValue]) -> Path:
    """Create the empty file of events and the folder of the app next to it, and return the folder."""
    events = cluster.folder / EVENT_FILE
    run_config: dict[str, app_bundle.AppConfigValue] = {
        "scenario": cluster.config.scenario_toml,
        "data": cluster.config.data,
        "nodes": cluster.config.nodes,
        "events": str(events),
    }
    try:
        events.touch()
        return app_bundle.write_app(cluster.folder / "app", {**run_config, **settings}, cluster.config.user_modules)
    except OSError as error:
        raise make_write_error(error.filename or cluster.folder, error) from None


def _write_outputs(
    out: Path,
    config: ClusterConfig,
    progress: ServerAppProgress,
    socket_traffic: Mapping[int, Sequence[SocketTraffic]] | None,
    byte_counters: dict[str, int] | None,
    first_round: int,
) -> DeploymentResult:
    """Add transport.parquet and the table `flower` of summary.json to the run folder.

    `socket_traffic` is by partition, `byte_counters` by direction. Each is None if the bytes were not counted. Both files
    cover the rounds of this launch, from `first_round` on.
    """
    boundaries = [progress.ready_time or 0.0, *progress.round_ends]
    rows = transport_table.transport_rows(progress.messages, boundaries, socket_traffic, first_round)
    transport_table.save(out / transport_table.FILE_NAME, rows)
    round_seconds = [end - start for start, end in itertools.pairwise(boundaries)]
    summary = json.loads((out / "summary.json").read_bytes())
    summary["flower"] = {
        "nodes": config.nodes,
        "tls": config.tls,
        "warm": config.use_fork_server,
        "version": version("flwr"),
        "first_round": first_round,
        "round_seconds_median": statistics.median(round_seconds) if round_seconds else None,
        "transport": transport_table.sum_by_direction(rows),
        "counted_by_flower": byte_counters,
    }
    write_atomically(out / "summary.json", json.dumps(summary, indent=2, allow_nan=False).encode() + b"\n")
    return DeploymentResult(summary, out)


@dataclass
class _WorkingFolders:
    """Folders of a deployment: `work` for the processes' temporary files, and `logs`.

    The guard process removes temporary folders if this process is killed.
    """

    work: Path
    logs: Path
    guard: Guard
    must_keep_logs: bool = False

    def keep_logs(self) -> None:
        """Keep the logs, because a message names one of them."""
        self.must_keep_logs = True
        self.guard.unregister_folder(self.logs)


@contextmanager
def _temporary_folders(logs: Path | None) -> Iterator[_WorkingFolders]:
    """Create temporary folders (for logs, if `logs` is None). Remove them at the end, except logs that a message names."""
    with ExitStack() as stack:
        guard = stack.enter_context(Guard())
        try:
            log_folder = Path(tempfile.mkdtemp(prefix="fedsgd-logs-")) if logs is None else logs
            temporary = tempfile.TemporaryDirectory(prefix="fedsgd-", ignore_cleanup_errors=True)
        except OSError as error:
            parent = find_temporary_folder() or "TMPDIR, /tmp, /var/tmp"
            raise OutputError(
                f"{parent}: no temporary folder can be created ({error.strerror}); set TMPDIR to a folder that can be written"
            ) from None
        guard.register_folder(Path(temporary.name))
        if logs is None:
            guard.register_folder(log_folder)
        folders = _WorkingFolders(Path(stack.enter_context(temporary)) / "run", log_folder, guard)
        try:
            yield folders
        except DeploymentError:
            folders.keep_logs()
            raise
        finally:
            if logs is None and not folders.must_keep_logs:
                shutil.rmtree(log_folder, ignore_errors=True)


class _Signals:
    """Handler of stop signals: the first raises KeyboardInterrupt, as Ctrl-C does; later signals do not stop the cleanup."""

    def __init__(self) -> None:
        self._is_ignoring = False

    def ignore(self) -> None:
        """Ignore all further signals."""
        self._is_ignoring = True

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt at the first signal."""
        if not self._is_ignoring:
            self._is_ignoring = True
            raise KeyboardInterrupt


@contextmanager
def _handle_signals() -> Iterator[_Signals]:
    """Handle stop signals in the context. Signals that the process ignores, for example under nohup, stay ignored."""
    signals = _Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    numbers = [getattr(signal, name) for name in _STOP_SIGNALS if hasattr(signal, name)]
    handlers = {number: signal.getsignal(number) for number in numbers}
    handlers = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    for number in handlers:
        signal.signal(number, signals.handle)
    try:
        yield signals
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
