"""Tests of the tracker for MLflow."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fedsgd
from fedsgd.data import Dataset
from fedsgd.errors import RunError
from fedsgd.experiment.run_checkpoints import read_trackers
from fedsgd.federation.round_record import RoundRecord
from fedsgd.scenario.scenario import Scenario
from fedsgd.storage.run_directory import RUN_FILES
from fedsgd.trackers import RunFinished, RunStarted, TrackerWarning, create_tracker
from fedsgd.trackers.base import round_metrics, x_axes
from tests.trackers.helpers import (
    RESUME_SETTINGS,
    SECONDS_BY_NETWORK,
    Make,
    RecordingTracker,
    interrupt_run,
    run_command,
    send_events,
)

# SQLAlchemy warns of MLflow's declaration of tables; SQLite of connections that MLflow does not close.
MLFLOW_WARNINGS = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:unclosed database in <sqlite3:ResourceWarning"),
]


@pytest.fixture
def default_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove MLflow's settings from the environment, and disable its telemetry."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def read_metric(client: Any, run: Any, name: str) -> list[tuple[int, float]]:
    """Return (step, value) of all values of a metric."""
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name))


@pytest.fixture
def store(default_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Client of a store that the environment names, with a temporary folder for files."""
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'user.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "thesis")
    client = MlflowClient()
    client.create_experiment("thesis", artifact_location=(tmp_path / "files").as_uri())
    return client


def find_runs(client: Any, experiment: str) -> list[Any]:
    """Return the MLflow runs of an experiment."""
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


@pytest.mark.slow
class TestMLflow:
    """Tests that need a store."""

    pytestmark = MLFLOW_WARNINGS

    @pytest.mark.nightly
    def test_default_store_is_next_to_the_run_folder(self, default_settings: None, scenario: Make, tmp_path: Path) -> None:
        from mlflow import MlflowClient

        runs, settings = tmp_path / "my runs", {"rounds": 5, "evaluation.every": 2}
        result = fedsgd.run(scenario(settings), out=runs / "one", callbacks=[create_tracker("mlflow")])
        client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
        (run,) = find_runs(client, "fedsgd")
        assert (run.info.run_name, run.info.status) == ("one", "FINISHED")
        for metric in ("loss", "accuracy"):
            for axis, suffix in (("round", ""), ("uplink bytes", "_by_uplink_bytes"), ("all bytes", "_by_all_bytes")):
                values = [(x_axes(r)[axis], r.metrics[metric]) for r in result.history if r.metrics is not None]
                assert read_metric(client, run, f"{metric}{suffix}") == values
        for name in round_metrics(result.history[-1]):
            values = [(r.round, float(round_metrics(r)[name])) for r in result.history if name in round_metrics(r)]
            assert read_metric(client, run, name) == values
        for key in ("uplink_ratio", "downlink_ratio", "bidirectional_ratio"):
            assert run.data.metrics[key] == result.summary[key]
        assert run.data.params == {key: str(value) for key, value in RunStarted(result.scenario).settings.items()}
        assert run.data.tags["fedsgd.params_sha256"] == result.summary["params_sha256"]
        assert run.data.tags["fedsgd.ledger_sha256"] == result.summary["ledger_sha256"]
        assert sorted(file.path for file in client.list_artifacts(run.info.run_id)) == sorted(RUN_FILES)
        (summary,) = runs.glob("mlartifacts/**/summary.json")
        assert summary.read_bytes() == (runs / "one" / "summary.json").read_bytes()

    @pytest.mark.nightly
    def test_active_run_of_the_user_is_the_parent_and_stays_active(self, store: Any, scenario: Make, tmp_path: Path) -> None:
        import mlflow

        with mlflow.start_run() as user_run:
            fedsgd.run(scenario({"rounds": 1}), callbacks=[create_tracker("mlflow")])
            assert mlflow.active_run().info.run_id == user_run.info.run_id
        nested, parent = sorted(find_runs(store, "thesis"), key=lambda run: run.info.run_id == user_run.info.run_id)
        assert nested.data.tags["mlflow.parentRunId"] == user_run.info.run_id
        assert not parent.data.metrics
        assert not parent.data.params
        assert nested.data.metrics["clients"] == 4

    @pytest.mark.nightly
    def test_run_below_an_active_run_uses_the_store_of_the_active_run(
        self, default_settings: None, scenario: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import mlflow

        monkeypatch.chdir(tmp_path)
        with mlflow.start_run() as user_run:
            fedsgd.run(scenario({"rounds": 1}), out=tmp_path / "runs" / "one", callbacks=[create_tracker("mlflow")])
        (nested,) = mlflow.MlflowClient().search_runs(
            [user_run.info.experiment_id], filter_string=f"tags.mlflow.parentRunId = '{user_run.info.run_id}'"
        )
        assert nested.info.run_name == "one"
        assert not (tmp_path / "runs" / "mlflow.db").exists()

    @pytest.mark.nightly
    def test_status_of_a_run_is_failed_after_an_error_and_killed_after_an_interrupt(
        self, store: Any, scenario: Make, blobs: Dataset, tmp_path: Path, failing_metrics: Any
    ) -> None:
        def interrupt(record: RoundRecord) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fedsgd.run(scenario(), out=tmp_path / "k", callbacks=[create_tracker("mlflow")], on_round=interrupt)
        s = Scenario(name="x", rounds=3).with_settings({"data.partition.clients": 5})
        with pytest.raises(RunError):
            fedsgd.run(
                s,
                data=blobs,
                model=fedsgd.CustomModel(metrics=failing_metrics),
                out=tmp_path / "f",
                callbacks=[create_tracker("mlflow")],
            )
        run_by_name = {run.info.run_name: run for run in find_runs(store, "thesis")}
        assert {name: run.info.status for name, run in run_by_name.items()} == {"k": "KILLED", "f": "FAILED"}
        assert run_by_name["f"].data.tags["fedsgd.error"].startswith("RunError: round 1, server: evaluation")
        files = sorted(file.path for file in store.list_artifacts(run_by_name["f"].info.run_id))
        assert files == ["ledger.parquet", "rounds.parquet", "scenario.toml"]

    @pytest.mark.nightly
    def test_time_on_networks_is_stored_and_long_texts_and_names_are_adapted(
        self, store: Any, scenario: Make, tmp_path: Path
    ) -> None:
        history = [replace(r, metrics={"f1@5": 0.5, "loss": float("nan")}) for r in fedsgd.run(scenario()).history]
        outcome = RunFinished(error=RunError(1, None, "y" * 9000), seconds_by_network=SECONDS_BY_NETWORK)
        send_events(history, scenario({"name": "x" * 700}), tmp_path / "r", "mlflow", outcome)
        (run,) = find_runs(store, "thesis")
        assert read_metric(store, run, "f1_5_by_milliseconds_on_lte") == [(1002, 0.5), (2500, 0.5), (10**12, 0.5)]
        assert len(run.data.params["name"]) == 500
        assert len(run.data.tags["fedsgd.error"]) == 5000
        file = Path(store.download_artifacts(run.info.run_id, "scenario.toml"))
        assert tomllib.loads(file.read_text())["name"] == "x" * 700

    @pytest.mark.nightly
    def test_settings_and_metrics_beyond_one_batch_are_stored(self, store: Any, scenario: Make, tmp_path: Path) -> None:
        rules = [{"pattern": f"{n}.*", "op": {"name": "top-k"}} for n in range(60)]
        s = scenario({"uplink.compressor": {"name": "per-layer", "rules": rules}})
        assert len(RunStarted(s).settings) > 200
        (record,) = fedsgd.run(scenario({"rounds": 1})).history
        send_events([record] * 200, s, tmp_path / "r", "mlflow", RunFinished(error=RunError(1, None, "y")))
        (run,) = find_runs(store, "thesis")
        assert len(run.data.params) == len(RunStarted(s).settings)

    def test_metrics_are_stored_during_the_run(self, store: Any, scenario: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        class StoreReader(RecordingTracker):
            def round(self, record: RoundRecord) -> None:
                (run,) = find_runs(store, "thesis")
                self._record(run.info.status, [step for step, _ in read_metric(store, run, "accuracy")])

        reader = StoreReader()
        monkeypatch.setattr("fedsgd.trackers.mlflow.FLUSH_SECONDS", 0.0)
        fedsgd.run(scenario(), callbacks=[create_tracker("mlflow"), reader])
        assert reader.calls[1:-1] == [("RUNNING", [1]), ("RUNNING", [1, 2]), ("RUNNING", [1, 2, 3])]

    @pytest.mark.nightly
    def test_command_with_both_trackers_uses_each_once(
        self, store: Any, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        arguments = [str(root / "scenarios" / "quickstart.toml"), "--set", "rounds=1", "--quiet"]
        result = run_command("run", *arguments, "--track", "mlflow", "--track", "tensorboard", "--track", "mlflow")
        assert result.exit_code == 0, result.output
        (run,) = find_runs(store, "thesis")
        assert run.info.run_name == "quickstart-1"
        assert (tmp_path / "runs" / "tensorboard" / "quickstart-1").is_dir()
        assert not (tmp_path / "runs" / "mlflow.db").exists()
        assert not (tmp_path / "mlruns").exists()

    # ----------------------------------------------------------------------------------------------------------- resumed runs

    @pytest.mark.nightly
    @pytest.mark.parametrize("is_killed", [False, True])
    def test_resumed_run_has_the_points_of_an_uninterrupted_run(
        self, store: Any, scenario: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_killed: bool
    ) -> None:
        fedsgd.run(scenario(RESUME_SETTINGS), out=tmp_path / "whole", callbacks=[create_tracker("mlflow")])
        with monkeypatch.context() as patch:
            if is_killed:
                patch.setattr("fedsgd.trackers.mlflow.MLflow.end", lambda tracker, outcome: None)
                patch.setattr("fedsgd.trackers.mlflow.FLUSH_SECONDS", 0.0)
                patch.setattr("fedsgd.trackers.mlflow.MLflow._send", send_rounds_but_the_third)
            interrupt_run(scenario, tmp_path / "run", create_tracker("mlflow"))
        (stopped,) = [run for run in find_runs(store, "thesis") if run.info.run_name == "run"]
        assert stopped.info.status == ("RUNNING" if is_killed else "FAILED")
        assert ("fedsgd.error" in stopped.data.tags) is not is_killed
        stored_rounds = [1, 2, 4, 5] if is_killed else [1, 2, 3, 4, 5]
        assert [step for step, _ in read_metric(store, stopped, "clients")] == stored_rounds
        fedsgd.resume(tmp_path / "run", callbacks=[create_tracker("mlflow")])
        run_by_name = {run.info.run_name: run for run in find_runs(store, "thesis")}
        assert len(run_by_name) == len(find_runs(store, "thesis")) == 2
        whole, resumed = run_by_name["whole"], run_by_name["run"]
        assert (resumed.info.run_id, resumed.info.status) == (stopped.info.run_id, "FINISHED")
        assert read_points(store, resumed) == read_points(store, whole)
        assert resumed.data.params == whole.data.params
        own_tags = [{key: run.data.tags[key] for key in run.data.tags if key[:6] == "fedsgd"} for run in (whole, resumed)]
        assert own_tags[0] == own_tags[1]
        files = {file.path for file in store.list_artifacts(resumed.info.run_id)}
        assert files == {*RUN_FILES}

    @pytest.mark.nightly
    def test_continued_run_keeps_its_parameters(self, store: Any, scenario: Make, tmp_path: Path) -> None:
        settings = {**RESUME_SETTINGS, "rounds": 2}
        fedsgd.run(scenario(settings), out=tmp_path / "run", callbacks=[create_tracker("mlflow")])
        fedsgd.resume(tmp_path / "run", rounds=3, callbacks=[create_tracker("mlflow")])
        (run,) = find_runs(store, "thesis")
        assert run.info.status == "FINISHED"
        assert run.data.params["rounds"] == "2"
        assert [step for step, _ in read_metric(store, run, "uplink_bytes")] == [1, 2, 3]

    @pytest.mark.nightly
    def test_run_of_a_deleted_mlflow_run_gets_a_new_one_with_all_rounds(
        self, store: Any, scenario: Make, tmp_path: Path
    ) -> None:
        interrupt_run(scenario, tmp_path / "run", create_tracker("mlflow"))
        (stopped,) = find_runs(store, "thesis")
        store.delete_run(stopped.info.run_id)
        with pytest.warns(TrackerWarning, match=f"MLflow run {stopped.info.run_id} in .* does not exist any more"):
            fedsgd.resume(tmp_path / "run", callbacks=[create_tracker("mlflow")])
        (run,) = find_runs(store, "thesis")
        assert run.info.run_id != stopped.info.run_id
        assert [step for step, _ in read_metric(store, run, "uplink_bytes")] == [1, 2, 3, 4, 5, 6]
        assert [step for step, _ in read_metric(store, run, "accuracy")] == [3, 6]

    @pytest.mark.nightly
    def test_resumed_run_uses_its_store_also_after_a_move(
        self, default_settings: None, scenario: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mlflow import MlflowClient

        runs, moved = tmp_path / "runs", tmp_path / "moved"
        interrupt_run(scenario, runs / "run", create_tracker("mlflow"))
        runs.rename(moved)
        fedsgd.resume(moved / "run", callbacks=[create_tracker("mlflow")])
        (run,) = find_runs(MlflowClient(f"sqlite:///{moved / 'mlflow.db'}"), "fedsgd")
        assert run.info.status == "FINISHED"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
        fedsgd.resume(moved / "run", rounds=7, callbacks=[create_tracker("mlflow")])
        (run,) = find_runs(MlflowClient(f"sqlite:///{moved / 'mlflow.db'}"), "fedsgd")
        assert [step for step, _ in read_metric(MlflowClient(f"sqlite:///{moved / 'mlflow.db'}"), run, "clients")][-1] == 7
        assert not (tmp_path / "other.db").exists()

    @pytest.mark.nightly
    def test_position_has_no_credentials(self, store: Any, scenario: Make, tmp_path: Path) -> None:
        from fedsgd.trackers.mlflow import _remove_credentials

        interrupt_run(scenario, tmp_path / "run", create_tracker("mlflow"))
        (record,) = read_trackers(tmp_path / "run")
        assert json.loads(record.position or "")["tracking_uri"] == f"sqlite:///{tmp_path / 'user.db'}"
        assert _remove_credentials("https://me:p@ss@host:5000/a@b") == "https://host:5000/a@b"
        assert _remove_credentials("sqlite:////me@home/mlflow.db") == "sqlite:////me@home/mlflow.db"


def read_points(client: Any, run: Any) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) of all values of all metrics, without the rounds' wall-clock times."""
    return {name: read_metric(client, run, name) for name in run.data.metrics if name != "seconds"}


def send_rounds_but_the_third(tracker: Any) -> None:
    """Send the metrics of a round, unless it is the third, as if the process had died before it sent them."""
    if len(tracker._history) != 3:
        tracker._client.log_batch(tracker._run_id, metrics=tracker._pending_metrics)
    tracker._pending_metrics = []
