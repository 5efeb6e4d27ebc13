"""MLflow: a run there for each run here. Its client is used, not its fluent interface, so that an active run of the user's, the
tracking URI and the experiment stay what they are."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags

from fedsgd.federation.round_record import RoundRecord
from fedsgd.storage.run_directory import OPTIONAL_FILES, RUN_FILES
from fedsgd.trackers.base import RunFinished, RunStarted, convert_to_milliseconds, round_metrics, x_axes

FLUSH_SECONDS = 2.0
"""A server may be far away: it is not asked once a round."""
MAX_PARAM_LENGTH, MAX_TAG_LENGTH = 500, 5000
"""What any server takes, Databricks' and old ones too; today's own takes 6000 and 8000 characters."""
DEFAULT_EXPERIMENT = "fedsgd"


class MLflow:
    """A run in the tracking store and the experiment that MLflow's own settings name (MLFLOW_TRACKING_URI,
    MLFLOW_EXPERIMENT_NAME, ...), under the user's active run if there is one.

    Where nothing names a store it is `mlflow.db` beside the run folder, with files in `mlartifacts`; and the experiment
    "fedsgd". It is SQLite, MLflow's own default: its file store refuses to work unless told to, and what SQLite needs of
    Python's packages comes with Flower anyway.
    Metrics over bytes ("accuracy_by_uplink_bytes") have bytes as their steps, which are 64-bit numbers.
    """

    _client: MlflowClient
    _run_id: str
    _run: RunStarted
    _pending_metrics: list[Metric]
    _last_send_time: float
    _history: list[tuple[int, Mapping[str, float]]]

    def begin(self, run: RunStarted) -> None:
        """Settings as parameters. Files wait for the end: a store that takes none is not to cost the metrics."""
        self._pending_metrics, self._history, self._last_send_time, self._run = [], [], time.monotonic(), run
        parent = mlflow.active_run()
        self._client, artifacts = _open_store(run, parent)
        experiment = _get_experiment_id(self._client, parent, artifacts)
        tags = {} if parent is None else {"mlflow.parentRunId": parent.info.run_id}
        self._run_id = self._client.create_run(experiment, tags=resolve_tags(tags), run_name=run.name).info.run_id
        params = [Param(key, _truncate(str(value), MAX_PARAM_LENGTH)) for key, value in run.settings.items()]
        self._client.log_batch(self._run_id, params=params)  # in as many requests as it takes

    def round(self, record: RoundRecord) -> None:
        """A round's figures over rounds, and its metrics over every axis."""
        now, metrics = _get_milliseconds(), dict(record.metrics or {})
        self._history.append((now, metrics))
        self._add_metrics(now, record.round, round_metrics(record))
        for axis, step in x_axes(record).items():
            end = "" if axis == "round" else f"_by_{axis}"
            self._add_metrics(now, step, {f"{name}{end}": value for name, value in metrics.items()})
        if time.monotonic() - self._last_send_time >= FLUSH_SECONDS:
            self._send()

    def end(self, outcome: RunFinished) -> None:
        """Metrics over time on networks, digests as tags, files; and the status: FINISHED, FAILED or KILLED."""
        try:
            for network, steps in convert_to_milliseconds(outcome, len(self._history)):
                for (then, metrics), step in zip(self._history, steps, strict=True):
                    self._add_metrics(
                        then, step, {f"{name}_by_milliseconds_on_{network}": value for name, value in metrics.items()}
                    )
            self._send()
            self._client.log_batch(
                self._run_id, tags=[RunTag(key, _truncate(text, MAX_TAG_LENGTH)) for key, text in _build_tags(outcome).items()]
            )
            self._client.log_text(self._run_id, self._run.scenario.to_toml(), "scenario.toml")
            for path in _list_files(self._run.folder):
                self._client.log_artifact(self._run_id, str(path))
        finally:
            failed = "KILLED" if isinstance(outcome.error, KeyboardInterrupt) else "FAILED"
            self._client.set_terminated(self._run_id, "FINISHED" if outcome.error is None else failed)

    def _add_metrics(self, timestamp: int, step: int, values: Mapping[str, float]) -> None:
        self._pending_metrics += [Metric(_sanitize_name(name), float(value), timestamp, step) for name, value in values.items()]

    def _send(self) -> None:
        self._client.log_batch(self._run_id, metrics=self._pending_metrics)
        self._pending_metrics, self._last_send_time = [], time.monotonic()


def _open_store(run: RunStarted, parent_run: Run | None) -> tuple[MlflowClient, str | None]:
    """(the client, where files go, None: where the store says)."""
    if parent_run is not None or mlflow.is_tracking_uri_set() or os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return MlflowClient(), None
    run.shared_folder.mkdir(parents=True, exist_ok=True)
    return MlflowClient(f"sqlite:///{run.shared_folder / 'mlflow.db'}"), (run.shared_folder / "mlartifacts").as_uri()


def _get_experiment_id(client: MlflowClient, parent_run: Run | None, artifacts: str | None) -> str:
    """The id of the experiment that is asked for; a name is created if it is new."""
    if parent_run is not None:
        return str(parent_run.info.experiment_id)
    if os.environ.get("MLFLOW_EXPERIMENT_ID"):  # mlflow.set_experiment sets it too
        return os.environ["MLFLOW_EXPERIMENT_ID"]
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
    known = client.get_experiment_by_name(name)
    if known is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:  # somebody else was faster
            known = client.get_experiment_by_name(name)
            if known is None:
                raise
    return str(known.experiment_id)


def _list_files(folder: Path | None) -> list[Path]:
    """A run's files that are there and whole."""
    known = () if folder is None else map(folder.joinpath, (*RUN_FILES, *OPTIONAL_FILES))
    return [path for path in known if path.is_file()]


def _build_tags(outcome: RunFinished) -> dict[str, str]:
    """Tags: digests, or the error."""
    if outcome.summary is None:
        return {"fedsgd.error": f"{type(outcome.error).__name__}: {outcome.error}"}
    said = {f"fedsgd.{name}": outcome.summary[name] for name in ("params_sha256", "ledger_sha256", "stopped_by")}
    return {**said, "fedsgd.version": outcome.summary["versions"]["fedsgd"]}


def _sanitize_name(name: str) -> str:
    """A metric's name in the letters that MLflow takes."""
    return re.sub(r"[^\w\-./:]", "_", name, flags=re.ASCII)


def _truncate(text: str, max_length: int) -> str:
    return text if len(text) <= max_length else f"{text[: max_length - 3]}..."


def _get_milliseconds() -> int:
    return int(1000 * time.time())
