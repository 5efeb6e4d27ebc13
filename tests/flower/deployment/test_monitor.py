"""Tests of the monitor: events of the ServerApp, and processes that die."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

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
from fedsgd.flower.deployment import DeploymentCallbacks
from fedsgd.flower.deployment.cluster import ClusterConfig, LocalCluster
from fedsgd.flower.deployment.monitor import DeploymentMonitor
from fedsgd.flower.runtime.server_app import _ERROR_ATTRIBUTES


def create_monitor(
    tmp_path: Path,
    *events: dict[str, Any],
    callbacks: DeploymentCallbacks | None = None,
    submission_log: str = "Successfully started run 1",
) -> DeploymentMonitor:
    """Return the monitor of a deployment without processes whose ServerApp has written these events."""
    cluster = LocalCluster(ClusterConfig(2), tmp_path, tmp_path, {})
    (tmp_path / "events").write_text("".join(json.dumps({"at": 1.0, **event}) + "\n" for event in events))
    submission = subprocess.Popen(["true"])
    submission.wait()
    (tmp_path / "submission.log").write_text(submission_log)
    return DeploymentMonitor(cluster, tmp_path / "events", submission, callbacks or DeploymentCallbacks(), 5.0, False)


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
def test_error_of_fedsgd_in_the_server_app_is_raised_with_equal_attributes(tmp_path: Path, error: FedsgdError) -> None:
    values = {key: getattr(error, name) for key, name in _ERROR_ATTRIBUTES.items() if hasattr(error, name)}
    monitor = create_monitor(tmp_path, {"event": "error", "kind": type(error).__name__, "text": str(error), **values})
    with pytest.raises(type(error)) as caught:
        monitor.wait()
    assert str(caught.value) == str(error)
    assert vars(caught.value) == vars(error)


def test_notes_of_an_error_and_the_first_round_of_a_resumed_run_arrive(tmp_path: Path) -> None:
    statuses: list[str] = []
    error = {"event": "error", "kind": "OutputError", "text": "cannot be resumed", "notes": ["versions.torch was 1, now 2"]}
    monitor = create_monitor(tmp_path, {"event": "ready"}, error, callbacks=DeploymentCallbacks(on_status=statuses.append))
    monitor._first_round = 3
    with pytest.raises(OutputError, match="cannot be resumed") as caught:
        monitor.wait()
    assert caught.value.__notes__ == ["versions.torch was 1, now 2"]
    assert statuses == ["round 3"]


def test_warning_of_the_server_app_is_issued_by_the_launcher(tmp_path: Path) -> None:
    event = {"event": "warning", "text": "uplink.compressor.momentum = 0.9: ..."}
    with pytest.warns(ScenarioWarning, match="^uplink.compressor.momentum = 0.9: ...$"):
        create_monitor(tmp_path, event, {"event": "done"}).wait()


def test_other_error_names_the_log_of_the_server_app_or_of_the_node(tmp_path: Path) -> None:
    (tmp_path / "serverapp.log").write_text("Traceback\n")
    with pytest.raises(DeploymentError, match=r"the ServerApp failed: KeyError: 1; its log is .*serverapp.log\n  \| Traceback"):
        create_monitor(tmp_path, {"event": "error", "kind": "", "text": "KeyError: 1"}).wait()
    error = RunError(3, 5, "TimeoutError: node 1: no answer within 4 s")
    event = {"event": "error", "kind": "RunError", "text": str(error), "round": 3, "client": 5, "cause": error.cause}
    with pytest.raises(DeploymentError, match=r"client 5: TimeoutError: node 1: no answer within 4 s; its log is .*node-1.log"):
        create_monitor(tmp_path, event).wait()


def test_server_app_that_dies_or_does_not_begin_is_a_deployment_error(tmp_path: Path) -> None:
    ended_process = subprocess.Popen(["true"])
    ended_process.wait()
    with pytest.raises(DeploymentError, match=rf"the ServerApp \(process {ended_process.pid}\) died; its log is"):
        create_monitor(tmp_path, {"event": "begun", "process": ended_process.pid}).wait()
    monitor = create_monitor(tmp_path)
    monitor._start_deadline = time.monotonic() + 0.2
    with pytest.raises(DeploymentError, match="the ServerApp did not begin within 5 s; its log is"):
        monitor.wait()
    with pytest.raises(
        DeploymentError,
        match=r"the app could not be submitted: `flwr run` ended with exit status 0; its log is .*\n  \| Connection refused",
    ):
        create_monitor(tmp_path, submission_log="Connection refused\n").wait()


def test_event_is_read_when_its_line_is_complete(tmp_path: Path) -> None:
    statuses: list[str] = []
    event = {"event": "begun", "process": os.getpid()}
    monitor = create_monitor(tmp_path, event, callbacks=DeploymentCallbacks(on_status=statuses.append))
    line = json.dumps({"event": "done", "at": 2.0}) + "\n"

    def write() -> None:
        for text in (line[:5], line[5:]):
            time.sleep(0.2)
            with (tmp_path / "events").open("a") as file:
                file.write(text)

    thread = threading.Thread(target=write)
    thread.start()
    assert monitor.wait().is_done
    thread.join()
    assert statuses == ["building the scenario"]
