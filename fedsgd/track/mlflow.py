"""MLflow: a run there for each run here. Its client is used, not its fluent interface, so that an active run of the user's, the
tracking URI and the experiment stay what they are."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags

from fedsgd.run_folder import OPTIONAL_FILES, RUN_FILES
from fedsgd.track.base import Begun, Ended, axes, figures, milliseconds

if TYPE_CHECKING:
    from fedsgd.record import Round

FLUSH_SECONDS = 2.0
"""A server may be far away: it is not asked once a round."""
LONGEST_PARAM, LONGEST_TAG = 500, 5000
"""What any server takes, Databricks' and old ones too; today's own takes 6000 and 8000 characters."""
EXPERIMENT = "fedsgd"


class MLflow:
    """A run in the tracking store and the experiment that MLflow's own settings name (MLFLOW_TRACKING_URI,
    MLFLOW_EXPERIMENT_NAME, ...), under the user's active run if there is one.

    Where nothing names a store it is `mlflow.db` beside the run folder, with files in `mlartifacts`; and the experiment
    "fedsgd". It is SQLite, MLflow's own default: its file store refuses to work unless told to, and what SQLite needs of
    Python's packages comes with Flower anyway.
    Metrics over bytes ("accuracy_by_uplink_bytes") have bytes as their steps, which are 64-bit numbers.
    """

    _client: MlflowClient
    _id: str
    _run: Begun
    _waiting: list[Metric]
    _sent: float
    _past: list[tuple[int, Mapping[str, float]]]

    def begin(self, run: Begun) -> None:
        """Settings as parameters. Files wait for the end: a store that takes none is not to cost the metrics."""
        self._waiting, self._past, self._sent, self._run = [], [], time.monotonic(), run
        parent = mlflow.active_run()
        self._client, artifacts = _store(run, parent)
        experiment = _experiment(self._client, parent, artifacts)
        tags = {} if parent is None else {"mlflow.parentRunId": parent.info.run_id}
        self._id = self._client.create_run(experiment, tags=resolve_tags(tags), run_name=run.name).info.run_id
        params = [Param(key, _cut(str(value), LONGEST_PARAM)) for key, value in run.settings.items()]
        self._client.log_batch(self._id, params=params)  # in as many requests as it takes

    def round(self, record: Round) -> None:
        """A round's figures over rounds, and its metrics over every axis."""
        now, metrics = _now(), dict(record.metrics or {})
        self._past.append((now, metrics))
        self._add(now, record.round, figures(record))
        for axis, step in axes(record).items():
            end = "" if axis == "round" else f"_by_{axis}"
            self._add(now, step, {f"{name}{end}": value for name, value in metrics.items()})
        if time.monotonic() - self._sent >= FLUSH_SECONDS:
            self._send()

    def end(self, ended: Ended) -> None:
        """Metrics over time on networks, digests as tags, files; and the status: FINISHED, FAILED or KILLED."""
        try:
            for network, steps in milliseconds(ended, len(self._past)):
                for (then, metrics), step in zip(self._past, steps, strict=True):
                    self._add(then, step, {f"{name}_by_milliseconds_on_{network}": value for name, value in metrics.items()})
            self._send()
            self._client.log_batch(self._id, tags=[RunTag(key, _cut(text, LONGEST_TAG)) for key, text in _said(ended).items()])
            self._client.log_text(self._id, self._run.scenario.to_toml(), "scenario.toml")
            for path in _files(self._run.folder):
                self._client.log_artifact(self._id, str(path))
        finally:
            failed = "KILLED" if isinstance(ended.error, KeyboardInterrupt) else "FAILED"
            self._client.set_terminated(self._id, "FINISHED" if ended.error is None else failed)

    def _add(self, when: int, step: int, values: Mapping[str, float]) -> None:
        self._waiting += [Metric(_key(name), float(value), when, step) for name, value in values.items()]

    def _send(self) -> None:
        self._client.log_batch(self._id, metrics=self._waiting)
        self._waiting, self._sent = [], time.monotonic()


def _store(run: Begun, parent: Run | None) -> tuple[MlflowClient, str | None]:
    """(the client, where files go, None: where the store says)."""
    if parent is not None or mlflow.is_tracking_uri_set() or os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return MlflowClient(), None
    run.beside.mkdir(parents=True, exist_ok=True)
    return MlflowClient(f"sqlite:///{run.beside / 'mlflow.db'}"), (run.beside / "mlartifacts").as_uri()


def _experiment(client: MlflowClient, parent: Run | None, artifacts: str | None) -> str:
    """The id of the experiment that is asked for; a name is created if it is new."""
    if parent is not None:
        return str(parent.info.experiment_id)
    if os.environ.get("MLFLOW_EXPERIMENT_ID"):  # mlflow.set_experiment sets it too
        return os.environ["MLFLOW_EXPERIMENT_ID"]
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    known = client.get_experiment_by_name(name)
    if known is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:  # somebody else was faster
            known = client.get_experiment_by_name(name)
            if known is None:
                raise
    return str(known.experiment_id)


def _files(folder: Path | None) -> list[Path]:
    """A run's files that are there and whole."""
    known = () if folder is None else map(folder.joinpath, (*RUN_FILES, *OPTIONAL_FILES))
    return [path for path in known if path.is_file()]


def _said(ended: Ended) -> dict[str, str]:
    """Tags: digests, or the error."""
    if ended.summary is None:
        return {"fedsgd.error": f"{type(ended.error).__name__}: {ended.error}"}
    said = {f"fedsgd.{name}": ended.summary[name] for name in ("params_sha256", "ledger_sha256", "stopped_by")}
    return {**said, "fedsgd.version": ended.summary["versions"]["fedsgd"]}


def _key(name: str) -> str:
    """A metric's name in the letters that MLflow takes."""
    return re.sub(r"[^\w\-./:]", "_", name, flags=re.ASCII)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _now() -> int:
    return int(1000 * time.time())
