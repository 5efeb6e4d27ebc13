"""Tracker for MLflow.

The tracker uses MlflowClient. The fluent interface would change the user's active run, tracking URI and experiment.
"""

from __future__ import annotations

import json
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags

from fedsgd.federation.round_record import RoundRecord
from fedsgd.storage.run_directory import OPTIONAL_FILES, RUN_FILES
from fedsgd.trackers.base import (
    RunFinished,
    RunStarted,
    TrackerWarning,
    convert_to_milliseconds,
    round_metrics,
    x_axes,
)

FLUSH_SECONDS = 2.0
"""Minimum interval between two requests with metrics. A request for each round may be slow with a remote server."""
MAX_PARAM_LENGTH, MAX_TAG_LENGTH = 500, 5000
"""Numbers of characters that all servers accept, also Databricks and old servers. MLflow's server accepts 6000 and 8000."""
DEFAULT_EXPERIMENT = "fedsgd"
ERROR_TAG = "fedsgd.error"


class MLflow:
    """Tracker that creates an MLflow run for each run.

    MLflow's own settings (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ...) select the store and the experiment. If the user
    has an active MLflow run, the new run is its child. Without such settings, the store is `mlflow.db` next to the run folder,
    with files in `mlartifacts`, and the experiment is "fedsgd". MLflow's file store requires an opt-in; SQLite does not, and
    Flower already installs its packages.

    Metrics over bytes ("accuracy_by_uplink_bytes") have bytes as steps, which are 64-bit integers in MLflow.

    A resumed run continues its MLflow run, which receives the points that it does not have yet. MLflow cannot change a
    parameter, so "rounds" stays the number of the first process. If the MLflow run was deleted, a `TrackerWarning` says so,
    and a new MLflow run receives all rounds.
    """

    _client: MlflowClient
    _run_id: str
    _run: RunStarted
    _pending_metrics: list[Metric]
    _last_send_time: float
    _history: list[tuple[int, Mapping[str, float]]]
    _stored_points: Counter[tuple[str, int]]

    def begin(self, run: RunStarted) -> None:
        """Create the MLflow run, with settings as parameters, or continue the MLflow run of a resumed run.

        Files are sent in `end`, so that metrics are stored even if the store accepts no files.
        """
        self._pending_metrics, self._history, self._last_send_time, self._run = [], [], time.monotonic(), run
        self._stored_points = Counter()
        times, stored_params = dict[int, int](), dict[str, str]()
        stored = None if run.position is None else _find_stored_run(run, run.position)
        if stored is None:
            self._create_run(run)
        else:
            self._client, stored_run = stored
            times, stored_params = self._continue_run(stored_run), stored_run.data.params
        params = [Param(key, _truncate(str(value), MAX_PARAM_LENGTH)) for key, value in run.settings.items()]
        params = [param for param in params if param.key not in stored_params]
        self._client.log_batch(self._run_id, params=params)  # the client splits a large batch into several requests
        if run.history:
            now = _get_milliseconds()
            for record in run.history:
                self._add_round(times.get(record.round, now), record)
            self._send()

    def position(self) -> str:
        """Return the id of the MLflow run, and the URI of its store without user name and password, as JSON."""
        return json.dumps({"run_id": self._run_id, "tracking_uri": _remove_credentials(self._client.tracking_uri)})

    def round(self, record: RoundRecord) -> None:
        """Store the figures of a round over rounds, and its metrics over each axis."""
        self._add_round(_get_milliseconds(), record)
        if time.monotonic() - self._last_send_time >= FLUSH_SECONDS:
            self._send()

    def end(self, outcome: RunFinished) -> None:
        """Store metrics over time on networks, tags and files, and set the status: FINISHED, FAILED or KILLED."""
        try:
            for network, steps in convert_to_milliseconds(outcome, len(self._history)):
                suffix = f"_by_milliseconds_on_{network}"
                for (timestamp, metrics), step in zip(self._history, steps, strict=True):
                    self._add_metrics(timestamp, step, {f"{name}{suffix}": value for name, value in metrics.items()})
            self._send()
            self._client.log_batch(
                self._run_id, tags=[RunTag(key, _truncate(text, MAX_TAG_LENGTH)) for key, text in _build_tags(outcome).items()]
            )
            self._client.log_text(self._run_id, self._run.scenario.to_toml(), "scenario.toml")
            for path in _list_files(self._run.folder):
                self._client.log_artifact(self._run_id, str(path))
        finally:
            error_status = "KILLED" if isinstance(outcome.error, KeyboardInterrupt) else "FAILED"
            self._client.set_terminated(self._run_id, "FINISHED" if outcome.error is None else error_status)

    def _create_run(self, run: RunStarted) -> None:
        """Create an MLflow run in the store and the experiment that MLflow's settings name."""
        parent = mlflow.active_run()
        self._client, artifacts = _open_store(run, parent)
        experiment = _get_experiment_id(self._client, parent, artifacts)
        tags = {} if parent is None else {"mlflow.parentRunId": parent.info.run_id}
        self._run_id = self._client.create_run(experiment, tags=resolve_tags(tags), run_name=run.name).info.run_id

    def _continue_run(self, stored_run: Run) -> dict[int, int]:
        """Continue an MLflow run, and return the milliseconds of its rounds by the round's number."""
        self._run_id, times = stored_run.info.run_id, dict[int, int]()
        self._client.update_run(self._run_id, status="RUNNING")
        if ERROR_TAG in stored_run.data.tags:
            self._client.delete_tag(self._run_id, ERROR_TAG)
        for name in stored_run.data.metrics:
            for point in self._client.get_metric_history(self._run_id, name):
                self._stored_points[name, point.step] += 1
                if name == "uplink_bytes":
                    times.setdefault(point.step, point.timestamp)
        return times

    def _add_round(self, timestamp: int, record: RoundRecord) -> None:
        metrics = dict(record.metrics or {})
        self._history.append((timestamp, metrics))
        self._add_metrics(timestamp, record.round, round_metrics(record))
        for axis, step in x_axes(record).items():
            suffix = "" if axis == "round" else f"_by_{axis}"
            self._add_metrics(timestamp, step, {f"{name}{suffix}": value for name, value in metrics.items()})

    def _add_metrics(self, timestamp: int, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each metric, unless the MLflow run of a resumed run has the point already."""
        for name, value in values.items():
            key = _sanitize_name(name)
            if self._stored_points[key, step] > 0:
                self._stored_points[key, step] -= 1
            else:
                self._pending_metrics.append(Metric(key, float(value), timestamp, step))

    def _send(self) -> None:
        self._client.log_batch(self._run_id, metrics=self._pending_metrics)
        self._pending_metrics, self._last_send_time = [], time.monotonic()


def _open_store(run: RunStarted, parent_run: Run | None) -> tuple[MlflowClient, str | None]:
    """Return (client, URI for files). The URI is None if the store decides."""
    if parent_run is not None or mlflow.is_tracking_uri_set() or os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return MlflowClient(), None
    run.shared_folder.mkdir(parents=True, exist_ok=True)
    return MlflowClient(f"sqlite:///{run.shared_folder / 'mlflow.db'}"), (run.shared_folder / "mlartifacts").as_uri()


def _find_stored_run(run: RunStarted, position_text: str) -> tuple[MlflowClient, Run] | None:
    """Return (client, MLflow run of a resumed run); warn and return None if the MLflow run does not exist any more.

    The store may have moved together with the run folder, so the present settings are tried after the stored URI.
    """
    position = json.loads(position_text)
    run_id, uri = position["run_id"], position["tracking_uri"]
    present_uri = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else uri
    stored = None
    if not _is_missing_file(uri):
        stored = _open_run(present_uri if _remove_credentials(present_uri) == uri else uri, run_id)
    stored = stored or _open_run(_open_store(run, mlflow.active_run())[0].tracking_uri, run_id)
    if stored is not None:
        return stored
    text = f"MLflow.begin: the MLflow run {run_id} in {uri} does not exist any more; a new MLflow run receives all rounds"
    warnings.warn(text, TrackerWarning, stacklevel=2)
    return None


def _open_run(uri: str, run_id: str) -> tuple[MlflowClient, Run] | None:
    """Return (client of a store, MLflow run), None if the MLflow run was deleted or cannot be read."""
    try:
        client = MlflowClient(uri)
        run = client.get_run(run_id)
    except MlflowException:
        return None
    return (client, run) if run.info.lifecycle_stage == LifecycleStage.ACTIVE else None


def _is_missing_file(uri: str) -> bool:
    """Return True for the URI of a database file that does not exist, which MLflow would create."""
    path = uri.removeprefix("sqlite:///")
    return path != uri and not Path(path).is_file()


def _remove_credentials(uri: str) -> str:
    """Return a URI without user name and password."""
    return re.sub(r"^([\w+.-]+://)[^/]*@", r"\1", uri)


def _get_experiment_id(client: MlflowClient, parent_run: Run | None, artifacts: str | None) -> str:
    """Return the id of the experiment that MLflow's settings name, and create the experiment if it does not exist."""
    if parent_run is not None:
        return str(parent_run.info.experiment_id)
    if os.environ.get("MLFLOW_EXPERIMENT_ID"):  # mlflow.set_experiment sets this variable too
        return os.environ["MLFLOW_EXPERIMENT_ID"]
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:  # another process may have created the experiment meanwhile
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    return str(experiment.experiment_id)


def _list_files(folder: Path | None) -> list[Path]:
    """Return the paths of a run's existing files."""
    paths = () if folder is None else map(folder.joinpath, (*RUN_FILES, *OPTIONAL_FILES))
    return [path for path in paths if path.is_file()]


def _build_tags(outcome: RunFinished) -> dict[str, str]:
    """Return the tags of an MLflow run: digests, or the error."""
    if outcome.summary is None:
        return {ERROR_TAG: f"{type(outcome.error).__name__}: {outcome.error}"}
    tags = {f"fedsgd.{name}": outcome.summary[name] for name in ("params_sha256", "ledger_sha256", "stopped_by")}
    return {**tags, "fedsgd.version": outcome.summary["versions"]["fedsgd"]}


def _sanitize_name(name: str) -> str:
    """Return the name of a metric with characters that MLflow accepts."""
    return re.sub(r"[^\w\-./:]", "_", name, flags=re.ASCII)


def _truncate(text: str, max_length: int) -> str:
    return text if len(text) <= max_length else f"{text[: max_length - 3]}..."


def _get_milliseconds() -> int:
    return int(1000 * time.time())
