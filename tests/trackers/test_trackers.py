"""Trackers: what they are told and when, what happens to a run when one breaks, and what arrives in TensorBoard and MLflow."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import fedsgd
from fedsgd.cli import main
from fedsgd.data import Dataset
from fedsgd.errors import OutputError, RunError, ScenarioError
from fedsgd.federation.round_record import RoundRecord
from fedsgd.scenario.overrides import apply_settings
from fedsgd.scenario.scenario import Scenario, parse_scenario
from fedsgd.storage.run_directory import RUN_FILES
from fedsgd.trackers import TRACKERS, RunFinished, RunStarted, TrackerGroup, TrackerWarning, create_tracker
from fedsgd.trackers.base import round_metrics, x_axes

Make = Callable[..., Scenario]


@dataclass
class Noting:
    """Notes what it is told; breaks where it is asked to."""

    breaks: str = ""
    by: BaseException = field(default_factory=lambda: ValueError("no space left"))
    told: list[tuple[str, Any]] = field(default_factory=list)

    def _hear(self, what: str, of: Any) -> None:
        self.told.append((what, of))
        if what == self.breaks:
            raise self.by

    def begin(self, run: RunStarted) -> None:
        self._hear("begin", run)

    def round(self, record: RoundRecord) -> None:
        self._hear("round", record)

    def end(self, ended: RunFinished) -> None:
        self._hear("end", ended)

    @property
    def calls(self) -> list[str]:
        return [what for what, _ in self.told]


def digests(result: fedsgd.Result) -> tuple[str, str]:
    return result.summary["params_sha256"], result.summary["ledger_sha256"]


ALL = ["begin", "round", "round", "round", "end"]


# ------------------------------------------------------------------------------------------------------------------ the protocol


def test_a_tracker_is_told_of_the_whole_run_in_order_and_changes_nothing(scenario: Make, tmp_path: Path) -> None:
    noting, out = Noting(), tmp_path / "run"
    seen: list[tuple[int, list[str]]] = []
    result = fedsgd.run(scenario(), out=out, trackers=[noting], on_round=lambda r: seen.append((r.round, list(noting.calls))))
    assert noting.calls == ALL
    assert seen == [(n, ["begin", "round", "round"][:n]) for n in (1, 2, 3)], "after the run's own callback"
    begun, *rounds, ended = (of for _, of in noting.told)
    assert begun == RunStarted(result.scenario, out)
    assert begun.scenario.engine.name != "auto", "resolved"
    assert rounds == result.history
    assert ended == RunFinished(result.summary)
    assert ended.priced == {}
    assert digests(result) == digests(fedsgd.run(scenario()))


def test_the_run_folder_is_there_at_the_beginning_and_complete_at_the_end(scenario: Make, tmp_path: Path) -> None:
    class Looking(Noting):
        def _hear(self, what: str, of: Any) -> None:
            super()._hear(what, sorted(p.name for p in (tmp_path / "run").iterdir() if p.is_file()))

    looking = Looking()
    fedsgd.run(scenario(), out=tmp_path / "run", trackers=[looking])
    assert looking.told[0] == ("begin", ["scenario.toml"])
    assert looking.told[-1] == ("end", sorted(RUN_FILES))


@pytest.mark.parametrize(("breaks", "calls"), [("begin", ["begin"]), ("round", ["begin", "round"]), ("end", ALL)])
def test_a_tracker_that_breaks_is_reported_once_and_the_run_goes_on(scenario: Make, breaks: str, calls: list[str]) -> None:
    broken, whole = Noting(breaks), Noting()
    with pytest.warns(TrackerWarning, match=f"Noting.{breaks}: ValueError: no space left") as caught:
        result = fedsgd.run(scenario(), trackers=[broken, whole])
    assert len(caught) == 1
    assert broken.calls == calls
    assert whole.calls == ALL
    assert digests(result) == digests(fedsgd.run(scenario()))


def test_two_equal_trackers_are_two(scenario: Make) -> None:
    """Who breaks is left out by who it is, not by what it equals."""

    class Alike(Noting):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, Alike)

    one, other = Alike("begin"), Alike("round")
    with pytest.warns(TrackerWarning) as caught:
        fedsgd.run(scenario({"rounds": 1}), trackers=[other, one])
    assert len(caught) == 2
    assert one.calls == ["begin"]
    assert other.calls == ["begin", "round"]


def test_a_run_that_fails_ends_its_trackers_once_with_the_error(blobs: Dataset, tmp_path: Path, failing_metrics: Any) -> None:
    s = Scenario(name="x", rounds=3).with_settings({"data.partition.clients": 5})
    noting = Noting()
    with pytest.raises(RunError) as raised:
        fedsgd.run(s, dataset=blobs, metrics=failing_metrics, trackers=[noting], out=tmp_path / "r")
    assert noting.calls == ["begin", "end"]
    assert noting.told[-1][1] == RunFinished(error=raised.value)


def test_an_interrupt_ends_all_trackers_whose_run_had_begun(scenario: Make) -> None:
    first, last = Noting(), Noting()
    interrupted = Noting("round", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        fedsgd.run(scenario(), trackers=[first, interrupted, last])
    assert first.calls == ["begin", "round", "end"]
    assert interrupted.calls == ["begin", "round", "end"]
    assert last.calls == ["begin", "end"]
    assert isinstance(first.told[-1][1].error, KeyboardInterrupt)
    early, never = Noting("begin", KeyboardInterrupt()), Noting()
    with pytest.raises(KeyboardInterrupt):
        fedsgd.run(scenario(), trackers=[early, never])
    assert (early.calls, never.calls) == (["begin", "end"], [])


def test_an_interrupt_at_the_end_leaves_no_tracker_open(scenario: Make) -> None:
    impatient, broken, last = Noting("end", KeyboardInterrupt()), Noting("end"), Noting()
    with pytest.raises(KeyboardInterrupt), pytest.warns(TrackerWarning, match="no space left"):
        fedsgd.run(scenario({"rounds": 1}), trackers=[impatient, broken, last])
    assert impatient.calls == broken.calls == last.calls == ["begin", "round", "end"]


def test_where_warnings_are_errors_trackers_are_ended_all_the_same(scenario: Make) -> None:
    other = Noting()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TrackerWarning):
            fedsgd.run(scenario(), trackers=[Noting("round"), other])
    assert other.calls == ["begin", "end"]


def test_what_never_began_is_not_ended(scenario: Make, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    noting = Noting()
    with pytest.raises(OutputError):
        fedsgd.run(scenario(), out=tmp_path, trackers=[noting])
    assert noting.calls == []


def test_flat_settings_are_those_that_set_takes(scenario: Make) -> None:
    s = scenario({"model.hidden": [8, 4], "uplink.compressor.density": 0.25})
    flat = RunStarted(s).settings
    assert flat["uplink.compressor.density"] == 0.25
    assert flat["uplink.compressor.name"] == "top-k"
    assert flat["model.hidden"] == "[8, 4]"
    assert flat["rounds"] == 3
    assert all(isinstance(value, bool | int | float | str) for value in flat.values())
    given = {key: json.loads(value) if str(value).startswith("[") else value for key, value in flat.items()}
    assert parse_scenario(apply_settings(Scenario, {}, given)) == s, "nothing is left out"


def test_flat_settings_number_tables_in_a_list(scenario: Make) -> None:
    rules = [{"pattern": "*.bias", "op": {"name": "dense"}}, {"pattern": "*", "op": {"name": "top-k"}}]
    flat = RunStarted(scenario({"uplink.compressor": {"name": "per-layer", "rules": rules}})).settings
    assert flat["uplink.compressor.rules.0.pattern"] == "*.bias"
    assert flat["uplink.compressor.rules.1.op.name"] == "top-k"


def test_names_of_trackers() -> None:
    with pytest.raises(ScenarioError, match='got "tensorbord", did you mean "tensorboard"'):
        create_tracker("tensorbord")
    for name in TRACKERS:
        assert type(create_tracker(name)).__name__ == TRACKERS[name]


def test_where_a_run_without_a_folder_is_recorded(scenario: Make, tmp_path: Path) -> None:
    assert RunStarted(scenario()).shared_folder == Path("runs").absolute()
    assert RunStarted(scenario()).name == "quickstart"
    assert RunStarted(scenario(), tmp_path / "a").shared_folder == tmp_path
    assert RunStarted(scenario(), tmp_path / "a").name == "a"


# ------------------------------------------------------------------------------------------------------------- the command line


def invoked(*arguments: str) -> Any:
    return CliRunner().invoke(main, [*arguments])


@pytest.mark.parametrize("name", list(TRACKERS))
def test_a_missing_extra_is_one_line_before_anything_begins(
    name: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"fedsgd.trackers.{name}", raising=False)
    monkeypatch.setattr("fedsgd.experiment.builder.build_experiment", pytest.fail)
    monkeypatch.chdir(tmp_path)
    for loaded in [m for m in sys.modules if m.startswith(f"{name}.")]:
        monkeypatch.setitem(sys.modules, loaded, None)
    result = invoked("run", str(root / "scenarios" / "quickstart.toml"), "--track", name)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"fedsgd: --track {name} needs pip install 'fedsgd[{name}]'")
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_unknown_tracker_is_refused_with_those_there_are(root: Path) -> None:
    result = invoked("run", str(root / "scenarios" / "quickstart.toml"), "--track", "tensorbord")
    assert result.exit_code == 2
    assert "'tensorboard'" in result.stderr


def test_a_tracker_that_breaks_is_a_line_on_standard_error(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tensorboard").write_text("in the way")
    quick = [str(root / "scenarios" / "quickstart.toml"), "--set", "rounds=1", "--quiet", "--json"]
    result = invoked("run", *quick, "--track", "tensorboard")
    assert result.exit_code == 0
    (line,) = [line for line in result.stderr.splitlines() if "TensorBoard" in line]
    assert line.startswith("fedsgd: TensorBoard.begin: ")
    assert "Warning" not in result.stderr
    assert (tmp_path / "runs" / "quickstart-1" / "summary.json").is_file()


def test_a_deployment_is_followed_from_when_it_is_built(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: Make
) -> None:
    history = fedsgd.run(scenario()).history
    noting = Noting()

    def deploy(s: Scenario, out: Path, *, watched: Any, **options: Any) -> Any:
        assert (options["nodes"], options["warm"], options["overwrite"], options["start_seconds"]) == (3, False, False, 120.0)
        watched.on_state("starting")
        assert noting.calls == []
        watched.on_engine("sequential")
        for record in history:
            watched.on_round(record)
        if s.rounds == 1:
            raise RunError(1, None, "no more")
        return fedsgd.DeploymentResult({"name": "x"}, out)

    monkeypatch.setattr("fedsgd.flower.deployment.deploy", deploy)
    monkeypatch.setattr("fedsgd.cli.tracking.tracker", lambda name: noting)
    monkeypatch.chdir(tmp_path)
    asked = ["flower", str(root / "scenarios" / "quickstart.toml"), "--nodes", "3", "--cold", "--track", "mlflow", "--json"]
    assert invoked(*asked).exit_code == 0
    assert noting.calls == ALL
    assert noting.told[0][1] == RunStarted(fedsgd.load(root / "scenarios" / "quickstart.toml"), Path("runs/quickstart-1"))
    assert [of for _, of in noting.told[1:-1]] == history
    assert noting.told[-1][1] == RunFinished({"name": "x"})
    noting.told.clear()
    assert invoked(*asked, "--set", "rounds=1").exit_code == 1
    assert noting.calls == ALL
    assert str(noting.told[-1][1].error) == "round 1, server: no more"


def test_neither_tracker_is_imported_unless_asked_for(root: Path) -> None:
    code = f"""
import sys, fedsgd, fedsgd.cli
fedsgd.Tracker, fedsgd.run
try:
    fedsgd.cli.main(["run", "--help"])
except SystemExit:
    pass
fedsgd.run(fedsgd.load({str(root / "scenarios" / "quickstart.toml")!r}, {{"rounds": 1}}))
assert not {{"tensorboard", "mlflow"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# ------------------------------------------------------------------------------------------------------------------- TensorBoard


def read_back(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def scalars(events: Any, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def expected(history: list[RoundRecord], axis: str, metric: str) -> list[tuple[int, float]]:
    measured = [(x_axes(r)[axis], r.metrics[metric]) for r in history if r.metrics is not None]
    return [(step, float(np.float32(value))) for step, value in measured]


def session(events: Any, tag: str) -> Any:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    return HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content)


def test_tensorboard_has_every_metric_over_every_axis(scenario: Make, tmp_path: Path) -> None:
    begun = time.time()
    result = fedsgd.run(
        scenario({"rounds": 5, "evaluation.every": 2}), out=tmp_path / "runs" / "one", trackers=[create_tracker("tensorboard")]
    )
    events = read_back(tmp_path / "runs" / "tensorboard" / "one")
    for metric in ("loss", "accuracy"):
        for axis in ("round", "uplink bytes", "all bytes"):
            assert scalars(events, f"{metric}/by {axis}") == expected(result.history, axis, metric)
    last = result.history[-1]
    assert [step for step, _ in scalars(events, "accuracy/by round")] == [2, 4, 5]
    assert scalars(events, "accuracy/by uplink bytes")[-1][0] == result.summary["uplink_bytes"]
    assert scalars(events, "accuracy/by all bytes")[-1][0] == last.uplink_bytes + last.downlink_bytes
    assert scalars(events, "bytes/uplink") == [(r.round, float(np.float32(r.uplink_bytes))) for r in result.history]
    for tag, key in (("uplink", "uplink_ratio"), ("both directions", "bidirectional_ratio")):
        assert scalars(events, f"ratio/{tag}")[-1] == (5, float(np.float32(result.summary[key])))
    assert scalars(events, "clients/cohort") == [(n, 4.0) for n in range(1, 6)]
    norms = [(r.round, float(np.float32(r.residual_norm))) for r in result.history if r.residual_norm is not None]
    assert len(norms) == 5
    assert scalars(events, "clients/residual norm") == norms
    times = [event.wall_time for event in events.Scalars("bytes/uplink")]
    assert begun <= times[0] < times[-1] <= time.time()
    assert sorted(p.name for p in (tmp_path / "runs" / "one").iterdir()) == sorted(RUN_FILES), "the run folder is as ever"


def test_tensorboard_has_the_scenario_and_how_it_ended(scenario: Make, tmp_path: Path) -> None:
    from tensorboard.plugins.hparams import api_pb2

    result = fedsgd.run(scenario({"rounds": 1}), out=tmp_path / "one", trackers=[create_tracker("tensorboard")])
    events = read_back(tmp_path / "tensorboard" / "one")
    text = events.Tensors("scenario")[0].tensor_proto.string_val[0].decode()
    assert events.SummaryMetadata("scenario").plugin_data.plugin_name == "text"
    assert text == f"```toml\n{result.scenario.to_toml()}```\n"
    settings = session(events, "_hparams_/session_start_info").session_start_info.hparams
    assert settings["rounds"].number_value == 1
    assert settings["uplink.compressor.name"].string_value == "top-k"
    assert set(settings) == set(RunStarted(result.scenario).settings)
    assert session(events, "_hparams_/session_end_info").session_end_info.status == api_pb2.STATUS_SUCCESS


def test_tensorboard_has_the_error_of_a_run_that_failed(blobs: Dataset, tmp_path: Path, failing_metrics: Any) -> None:
    from tensorboard.plugins.hparams import api_pb2

    s = Scenario(name="x", rounds=3).with_settings({"data.partition.clients": 5})
    with pytest.raises(RunError):
        fedsgd.run(s, dataset=blobs, metrics=failing_metrics, out=tmp_path / "r", trackers=[create_tracker("tensorboard")])
    events = read_back(tmp_path / "tensorboard" / "r")
    assert b"RunError: round 1, server: evaluation" in events.Tensors("error")[0].tensor_proto.string_val[0]
    assert session(events, "_hparams_/session_end_info").session_end_info.status == api_pb2.STATUS_FAILURE


def test_overwriting_a_run_replaces_its_events_and_nothing_else(scenario: Make, tmp_path: Path) -> None:
    run = {"out": tmp_path / "r", "trackers": [create_tracker("tensorboard")]}
    fedsgd.run(scenario({"rounds": 3}), **run)
    own = tmp_path / "tensorboard" / "r" / "events.out.tfevents.1.mine"
    own.touch()
    fedsgd.run(scenario({"rounds": 2}), overwrite=True, **run)
    assert own.exists()
    own.unlink()
    assert [step for step, _ in scalars(read_back(own.parent), "bytes/uplink")] == [1, 2]


def test_runs_without_a_folder_are_numbered(scenario: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        fedsgd.run(scenario({"rounds": 1}), trackers=[create_tracker("tensorboard")])
    assert sorted(p.name for p in (tmp_path / "runs" / "tensorboard").iterdir()) == ["quickstart-1", "quickstart-2"]


PRICED = {"lte": [1.0015, 2.5, 1e9], "office": [0.001, 0.002, 0.003]}


def followed(history: list[RoundRecord], scenario: Scenario, folder: Path, name: str, ended: RunFinished) -> None:
    """The tracker of this name, told of a run that is known already."""
    with TrackerGroup([create_tracker(name)]) as all_of_them:
        all_of_them.begin(RunStarted(scenario, folder))
        for record in history:
            all_of_them.round(record)
        all_of_them.end(ended)


def test_tensorboard_has_the_time_on_networks(scenario: Make, tmp_path: Path) -> None:
    history = fedsgd.run(scenario({"evaluation.every": 2})).history
    followed(history, scenario(), tmp_path / "r", "tensorboard", RunFinished({}, seconds_by_network=PRICED))
    events = read_back(tmp_path / "tensorboard" / "r")
    lte = scalars(events, "accuracy/by milliseconds on lte")
    assert [step for step, _ in lte] == [2500, 10**12]
    assert [value for _, value in lte] == [value for _, value in expected(history, "round", "accuracy")]
    assert [step for step, _ in scalars(events, "loss/by milliseconds on office")] == [2, 3]
    then, now = events.Scalars("accuracy/by milliseconds on lte"), events.Scalars("accuracy/by round")
    assert [event.wall_time for event in then] == [event.wall_time for event in now]
    with pytest.warns(TrackerWarning, match="lte: 1 times for 3 rounds"):
        followed(history, scenario(), tmp_path / "s", "tensorboard", RunFinished({}, seconds_by_network={"lte": [1.0]}))


# ------------------------------------------------------------------------------------------------------------------------ MLflow

# SQLAlchemy, of how MLflow declares its tables; and SQLite's connections, which MLflow keeps in a pool to the end.
of_mlflow = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore:unclosed database in <sqlite3:ResourceWarning"),
]


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """As MLflow is when nobody has set anything, telemetry apart."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def history_of(client: Any, run: Any, metric: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, metric))


@pytest.fixture
def store(unset: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of a store that the environment names; files go to a folder of the test's."""
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'theirs.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "thesis")
    client = MlflowClient()
    client.create_experiment("thesis", artifact_location=(tmp_path / "files").as_uri())
    return client


def runs_of(client: Any, experiment: str) -> list[Any]:
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


class TestMLflow:
    """All that needs a store."""

    pytestmark = of_mlflow

    def test_by_default_runs_are_beside_the_run_folder(self, unset: None, scenario: Make, tmp_path: Path) -> None:
        from mlflow import MlflowClient

        runs, settings = tmp_path / "my runs", {"rounds": 5, "evaluation.every": 2}
        result = fedsgd.run(scenario(settings), out=runs / "one", trackers=[create_tracker("mlflow")])
        client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
        (run,) = runs_of(client, "fedsgd")
        assert (run.info.run_name, run.info.status) == ("one", "FINISHED")
        for metric in ("loss", "accuracy"):
            for axis, end in (("round", ""), ("uplink bytes", "_by_uplink_bytes"), ("all bytes", "_by_all_bytes")):
                values = [(x_axes(r)[axis], r.metrics[metric]) for r in result.history if r.metrics is not None]
                assert history_of(client, run, f"{metric}{end}") == values
        for name in round_metrics(result.history[-1]):
            values = [(r.round, float(round_metrics(r)[name])) for r in result.history if name in round_metrics(r)]
            assert history_of(client, run, name) == values
        for key in ("uplink_ratio", "downlink_ratio", "bidirectional_ratio"):
            assert run.data.metrics[key] == result.summary[key]
        assert run.data.params == {key: str(value) for key, value in RunStarted(result.scenario).settings.items()}
        assert run.data.tags["fedsgd.params_sha256"] == result.summary["params_sha256"]
        assert run.data.tags["fedsgd.ledger_sha256"] == result.summary["ledger_sha256"]
        assert sorted(f.path for f in client.list_artifacts(run.info.run_id)) == sorted(RUN_FILES)
        (summary,) = runs.glob("mlartifacts/**/summary.json")
        assert summary.read_bytes() == (runs / "one" / "summary.json").read_bytes()

    def test_an_active_run_of_the_users_is_the_parent_and_stays_active(
        self, store: Any, scenario: Make, tmp_path: Path
    ) -> None:
        import mlflow

        with mlflow.start_run() as own:
            fedsgd.run(scenario({"rounds": 1}), trackers=[create_tracker("mlflow")])
            assert mlflow.active_run().info.run_id == own.info.run_id
        nested, parent = sorted(runs_of(store, "thesis"), key=lambda run: run.info.run_id == own.info.run_id)
        assert nested.data.tags["mlflow.parentRunId"] == own.info.run_id
        assert not parent.data.metrics
        assert not parent.data.params
        assert nested.data.metrics["clients"] == 4

    def test_a_run_under_one_in_mlflows_own_default_store_goes_there_too(
        self, unset: None, scenario: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import mlflow

        monkeypatch.chdir(tmp_path)
        with mlflow.start_run() as own:
            fedsgd.run(scenario({"rounds": 1}), out=tmp_path / "runs" / "one", trackers=[create_tracker("mlflow")])
        (nested,) = mlflow.MlflowClient().search_runs(
            [own.info.experiment_id], filter_string=f"tags.mlflow.parentRunId = '{own.info.run_id}'"
        )
        assert nested.info.run_name == "one"
        assert not (tmp_path / "runs" / "mlflow.db").exists()

    def test_failed_and_killed(self, store: Any, scenario: Make, blobs: Dataset, tmp_path: Path, failing_metrics: Any) -> None:
        def interrupt(record: RoundRecord) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fedsgd.run(scenario(), out=tmp_path / "k", trackers=[create_tracker("mlflow")], on_round=interrupt)
        s = Scenario(name="x", rounds=3).with_settings({"data.partition.clients": 5})
        with pytest.raises(RunError):
            fedsgd.run(s, dataset=blobs, metrics=failing_metrics, out=tmp_path / "f", trackers=[create_tracker("mlflow")])
        ended = {run.info.run_name: run for run in runs_of(store, "thesis")}
        assert {name: run.info.status for name, run in ended.items()} == {"k": "KILLED", "f": "FAILED"}
        assert ended["f"].data.tags["fedsgd.error"].startswith("RunError: round 1, server: evaluation")
        files = sorted(f.path for f in store.list_artifacts(ended["f"].info.run_id))
        assert files == ["ledger.parquet", "rounds.parquet", "scenario.toml"]

    def test_time_on_networks_long_settings_and_odd_names(self, store: Any, scenario: Make, tmp_path: Path) -> None:
        from dataclasses import replace

        history = [replace(r, metrics={"f1@5": 0.5, "loss": float("nan")}) for r in fedsgd.run(scenario()).history]
        long = scenario({"name": "x" * 700})
        followed(
            history, long, tmp_path / "r", "mlflow", RunFinished(error=RunError(1, None, "y" * 9000), seconds_by_network=PRICED)
        )
        (run,) = runs_of(store, "thesis")
        assert history_of(store, run, "f1_5_by_milliseconds_on_lte") == [(1002, 0.5), (2500, 0.5), (10**12, 0.5)]
        assert len(run.data.params["name"]) == 500
        assert len(run.data.tags["fedsgd.error"]) == 5000
        file = Path(store.download_artifacts(run.info.run_id, "scenario.toml"))
        assert tomllib.loads(file.read_text())["name"] == "x" * 700

    def test_what_fits_into_no_one_batch(self, store: Any, scenario: Make, tmp_path: Path) -> None:
        rules = [{"pattern": f"{n}.*", "op": {"name": "top-k"}} for n in range(60)]
        long = scenario({"uplink.compressor": {"name": "per-layer", "rules": rules}})
        assert len(RunStarted(long).settings) > 200
        (record,) = fedsgd.run(scenario({"rounds": 1})).history
        followed([record] * 200, long, tmp_path / "r", "mlflow", RunFinished(error=RunError(1, None, "y")))
        (run,) = runs_of(store, "thesis")
        assert len(run.data.params) == len(RunStarted(long).settings)

    def test_metrics_arrive_while_a_run_goes(self, store: Any, scenario: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        class Reading(Noting):
            def round(self, record: RoundRecord) -> None:
                (run,) = runs_of(store, "thesis")
                self._hear(run.info.status, [step for step, _ in history_of(store, run, "accuracy")])

        reading = Reading()
        monkeypatch.setattr("fedsgd.trackers.mlflow.FLUSH_SECONDS", 0.0)
        fedsgd.run(scenario(), trackers=[create_tracker("mlflow"), reading])
        assert reading.told[1:-1] == [("RUNNING", [1]), ("RUNNING", [1, 2]), ("RUNNING", [1, 2, 3])]

    def test_from_the_command_line_both_at_once(
        self, store: Any, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        quick = [str(root / "scenarios" / "quickstart.toml"), "--set", "rounds=1", "--quiet"]
        result = invoked("run", *quick, "--track", "mlflow", "--track", "tensorboard", "--track", "mlflow")
        assert result.exit_code == 0, result.output
        (run,) = runs_of(store, "thesis")
        assert run.info.run_name == "quickstart-1"
        assert (tmp_path / "runs" / "tensorboard" / "quickstart-1").is_dir()
        assert not (tmp_path / "runs" / "mlflow.db").exists()
        assert not (tmp_path / "mlruns").exists()
