"""Plan of a run before it begins: its bytes, memory, disk space and time, estimated from a calibration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedsgd import errors
from fedsgd.config.argument_checks import resolve_config
from fedsgd.config.quantities import format_bytes, format_seconds
from fedsgd.config.registry import are_plugins_refused
from fedsgd.errors import FedsgdError
from fedsgd.experiment.options import ExecutionConfig
from fedsgd.scenario.scenario import Scenario, open_scenario
from fedsgd.system.forkserver import check_worker_count
from fedsgd.system.user_files import check_paths, expand_user_path, search_scenario_folder

CHILD_COMMAND = "from fedsgd.experiment.planning.child import main; main()"
REQUEST_FILE, REPLY_FILE, RUN_FOLDER = "request.json", "reply.json", "run"
"""Files of the child process in its folder, and the run directory of the calibration."""


@dataclass(frozen=True)
class TrafficPlan:
    """Bytes of all frames of one direction.

    Attributes:
        first_round: bytes of the first round.
        last_round: bytes of the last round.
        total: bytes of all rounds.
    """

    first_round: int
    last_round: int
    total: int


@dataclass(frozen=True)
class MemoryPlan:
    """Peak memory in bytes. Pages that processes share count for each of them.

    Attributes:
        main: memory of the main process; None if the system does not report it.
        worker: memory of each worker process; 0 without workers, None if the system does not report it.
        shared: memory for client states and models that worker processes share; 0 without workers.
        total: memory of all processes, and `shared`; None if the system does not report it.
        client_states: memory for client states, part of `main` or `shared`.
        models: memory for the models that clients have stored, part of `main` or `shared`.
        evaluation: memory for the outputs of a whole evaluation set, at most.
        aggregation: memory that the aggregator needs in addition, at most.
    """

    main: int | None
    worker: int | None
    shared: int
    total: int | None
    client_states: int
    models: int
    evaluation: int
    aggregation: int


@dataclass(frozen=True)
class DiskPlan:
    """Disk space in bytes after the last round.

    Attributes:
        ledger: ledger.parquet. While the tables are completed, they are on disk twice.
        files: all other files of the run directory.
        checkpoints: checkpoints.
        client_states: client states of `[state] store = "disk"`, in `state_folder` while the run lasts.
        total: all of these.
        state_folder: folder of the client states; None if they are in memory.
    """

    ledger: int
    files: int
    checkpoints: int
    client_states: int
    total: int
    state_folder: str | None


@dataclass(frozen=True)
class TimePlan:
    """Wall-clock time in seconds.

    Attributes:
        start: time until the first round begins, imports included.
        round: mean time of a round after the calibration, evaluations and checkpoints included.
        evaluation: time of one evaluation.
        total: time of the whole run.
    """

    start: float
    round: float
    evaluation: float
    total: float


@dataclass(frozen=True, repr=False)
class RunPlan:
    """Estimated cost of a run.

    Attributes:
        name: name of the scenario.
        rounds: maximum number of rounds.
        clients: N, registered clients.
        cohort: C, clients whose updates are averaged.
        parameters: P, number of parameters.
        workers: number of processes that train clients.
        engine: selected engine and the reason.
        calibrated_rounds: rounds that were run. Their bytes are those of the run; all others are estimates.
        calibration_seconds: wall-clock seconds of these rounds.
        uplink, downlink: bytes by direction.
        memory, disk, time: memory, disk space and time.
        stops_at: target of `[stop]`, with which the run may end earlier; None without.
        warnings: lines about settings that a component is not made for.
    """

    name: str
    rounds: int
    clients: int
    cohort: int
    parameters: int
    workers: int
    engine: str
    calibrated_rounds: int
    calibration_seconds: float
    uplink: TrafficPlan
    downlink: TrafficPlan
    memory: MemoryPlan
    disk: DiskPlan
    time: TimePlan
    stops_at: str | None
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON has it."""
        return {**asdict(self), "warnings": [*self.warnings]}

    def __repr__(self) -> str:
        memory = "" if self.memory.total is None else f", memory {format_bytes(self.memory.total)}"
        traffic = f"up {format_bytes(self.uplink.total)}, down {format_bytes(self.downlink.total)}"
        figures = f"{traffic}{memory}, disk {format_bytes(self.disk.total)}, {format_seconds(self.time.total)}"
        return f"RunPlan({self.name}, {self.rounds} rounds: {figures})"


def plan(
    scenario: Scenario | str | Path, *, data: str | Path | None = None, execution: ExecutionConfig | None = None
) -> RunPlan:
    """Estimate bytes, memory, disk space and time of a run before it begins.

    The first rounds are run in a process of their own: ten, or as many as begin within five seconds, at least two. A scenario
    with fewer rounds is run to its end. Nothing remains on disk.

    >>> import fedsgd
    >>> from fedsgd.scenario.scenario import parse_scenario
    >>> scenario = parse_scenario({"name": "digits", "rounds": 2, "data": {"partition": {"name": "iid", "clients": 4}}})
    >>> plan = fedsgd.plan(scenario)
    >>> plan.calibrated_rounds, plan.uplink.total == fedsgd.run(scenario).summary["uplink_bytes"]
    (2, True)

    Args:
        scenario: scenario, or the path of its TOML file. Its components must be importable.
        data: folder of the data files, None for the folder that FEDSGD_DATA names.
        execution: worker processes, as for `fedsgd.run`; nothing is profiled.

    Raises:
        ScenarioError: a setting or an argument is wrong, or does not fit the data or the model.
        DataError: the data cannot be read or partitioned.
        ModelError: the model, its loss or a metric cannot be used.
        RunError: the server or a client failed in a round of the calibration.
        FedsgdError: the process of the calibration was killed.
    """
    workers = resolve_config("execution", execution, ExecutionConfig).workers
    check_worker_count(workers)
    check_paths(data=data)
    with search_scenario_folder(scenario):
        return _plan(scenario, data, workers)


def _plan(scenario: Scenario | str | Path, data: str | Path | None, workers: int) -> RunPlan:
    located_errors, scenario = open_scenario(scenario)
    request = {
        "scenario": scenario.to_toml(),
        "data": None if data is None else str(expand_user_path(data).absolute()),
        "workers": workers,
        "refuse_plugins": are_plugins_refused(),
        "time": time.time(),
    }
    with located_errors:
        return _parse_plan(_run_child(request))


def _run_child(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Run the calibration in a process of its own, whose peak memory is that of the run, and return the plan as JSON has it."""
    path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    with TemporaryDirectory(prefix="fedsgd-plan-", ignore_cleanup_errors=True) as folder:
        Path(folder, REQUEST_FILE).write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-P", "-c", CHILD_COMMAND, folder]
        pipe, null = subprocess.PIPE, subprocess.DEVNULL  # the child ends when its end of the pipe is closed
        with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdin=pipe, stdout=null) as process:
            try:
                status = process.wait()
            except BaseException:
                process.kill()
                raise
        reply_file = Path(folder, REPLY_FILE)
        if status or not reply_file.is_file():
            reason = "was killed; it may have run out of memory" if status == -9 else f"ended with exit status {status}"
            raise FedsgdError(f"the process of the calibration {reason}")
        reply: Mapping[str, Any] = json.loads(reply_file.read_text(encoding="utf-8"))
    if "error" in reply:
        raise restore_error(reply)
    return reply


def describe_error(error: FedsgdError) -> dict[str, Any]:
    """Return an error as JSON has it: the class of `fedsgd.errors`, the message and the notes."""
    name = next(cls.__name__ for cls in type(error).__mro__ if cls.__module__ == errors.__name__)
    return {"error": name, "message": str(error), "notes": [*getattr(error, "__notes__", ())]}


def restore_error(reply: Mapping[str, Any]) -> FedsgdError:
    """Return the error that `describe_error` described."""
    cls = getattr(errors, reply["error"])
    error: FedsgdError = cls.__new__(cls)
    error.args = (reply["message"],)
    for note in reply["notes"]:
        error.add_note(note)
    return error


def _parse_plan(reply: Mapping[str, Any]) -> RunPlan:
    parts = {"uplink": TrafficPlan, "downlink": TrafficPlan, "memory": MemoryPlan, "disk": DiskPlan, "time": TimePlan}
    groups = {name: cls(**reply[name]) for name, cls in parts.items()}
    return RunPlan(**{**reply, **groups, "warnings": tuple(reply["warnings"])})
