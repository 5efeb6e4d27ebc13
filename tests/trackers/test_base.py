"""Tests of the protocol of trackers, of trackers that fail, and of `--track`."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import fedsgd
from fedsgd.data import Dataset
from fedsgd.errors import OutputError, RunError, ScenarioError
from fedsgd.scenario.overrides import apply_settings
from fedsgd.scenario.scenario import Scenario, parse_scenario
from fedsgd.storage.run_directory import RUN_FILES
from fedsgd.trackers import TRACKERS, RunFinished, RunStarted, TrackerWarning, create_tracker
from tests.trackers.helpers import Make, RecordingTracker, run_command

COMPLETE_RUN = ["begin", "round", "round", "round", "end"]


def digests(result: fedsgd.Result) -> tuple[str, str]:
    """Return the digests of the parameters and the ledger."""
    return result.summary["params_sha256"], result.summary["ledger_sha256"]


# ------------------------------------------------------------------------------------------------------------------ the protocol


@pytest.mark.slow
def test_tracker_receives_all_events_in_order_and_does_not_change_the_run(scenario: Make, tmp_path: Path) -> None:
    tracker, out = RecordingTracker(), tmp_path / "run"
    earlier_methods: list[tuple[int, list[str]]] = []
    result = fedsgd.run(
        scenario(), out=out, callbacks=[tracker], on_round=lambda r: earlier_methods.append((r.round, tracker.methods))
    )
    assert tracker.methods == COMPLETE_RUN
    assert earlier_methods == [(n, ["begin", "round", "round"][:n]) for n in (1, 2, 3)], "`on_round` is called first"
    started, *rounds, finished = (argument for _, argument in tracker.calls)
    assert started == RunStarted(result.scenario, out)
    assert started.scenario.engine.name != "auto", "the scenario is resolved"
    assert rounds == result.history
    assert finished == RunFinished(result.summary)
    assert finished.seconds_by_network == {}
    assert digests(result) == digests(fedsgd.run(scenario()))


@pytest.mark.slow
def test_run_folder_exists_at_the_begin_event_and_is_complete_at_the_end_event(scenario: Make, tmp_path: Path) -> None:
    class FileRecorder(RecordingTracker):
        def _record(self, method: str, argument: Any) -> None:
            super()._record(method, sorted(p.name for p in (tmp_path / "run").iterdir() if p.is_file()))

    tracker = FileRecorder()
    fedsgd.run(scenario(), out=tmp_path / "run", callbacks=[tracker])
    assert tracker.calls[0] == ("begin", ["scenario.toml"])
    assert tracker.calls[-1] == ("end", sorted(RUN_FILES))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failing_method", "methods"), [("begin", ["begin"]), ("round", ["begin", "round"]), ("end", COMPLETE_RUN)]
)
def test_failing_tracker_is_reported_once_and_the_run_continues(
    scenario: Make, failing_method: str, methods: list[str]
) -> None:
    failing, intact = RecordingTracker(failing_method), RecordingTracker()
    with pytest.warns(TrackerWarning, match=f"RecordingTracker.{failing_method}: ValueError: no space left") as caught:
        result = fedsgd.run(scenario(), callbacks=[failing, intact])
    assert len(caught) == 1
    assert failing.methods == methods
    assert intact.methods == COMPLETE_RUN
    assert digests(result) == digests(fedsgd.run(scenario()))


def test_failing_tracker_is_removed_by_identity(scenario: Make) -> None:
    class EqualTracker(RecordingTracker):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, EqualTracker)

    first, second = EqualTracker("round"), EqualTracker("begin")
    with pytest.warns(TrackerWarning) as caught:
        fedsgd.run(scenario({"rounds": 1}), callbacks=[first, second])
    assert len(caught) == 2
    assert second.methods == ["begin"]
    assert first.methods == ["begin", "round"]


def test_failed_run_ends_its_trackers_once_with_the_error(blobs: Dataset, tmp_path: Path, failing_metrics: Any) -> None:
    s = Scenario(name="x", rounds=3).with_settings({"data.partition.clients": 5})
    tracker = RecordingTracker()
    with pytest.raises(RunError) as caught:
        fedsgd.run(s, data=blobs, model=fedsgd.CustomModel(metrics=failing_metrics), callbacks=[tracker], out=tmp_path / "r")
    assert tracker.methods == ["begin", "end"]
    assert tracker.calls[-1][1] == RunFinished(error=caught.value)


@pytest.mark.slow
def test_interrupt_ends_all_trackers_that_received_begin(scenario: Make) -> None:
    first, last = RecordingTracker(), RecordingTracker()
    interrupted = RecordingTracker("round", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        fedsgd.run(scenario(), callbacks=[first, interrupted, last])
    assert first.methods == ["begin", "round", "end"]
    assert interrupted.methods == ["begin", "round", "end"]
    assert last.methods == ["begin", "end"]
    assert isinstance(first.calls[-1][1].error, KeyboardInterrupt)
    interrupted, not_begun = RecordingTracker("begin", KeyboardInterrupt()), RecordingTracker()
    with pytest.raises(KeyboardInterrupt):
        fedsgd.run(scenario(), callbacks=[interrupted, not_begun])
    assert (interrupted.methods, not_begun.methods) == (["begin", "end"], [])


def test_interrupt_in_the_end_event_ends_all_other_trackers(scenario: Make) -> None:
    interrupted, failing, last = RecordingTracker("end", KeyboardInterrupt()), RecordingTracker("end"), RecordingTracker()
    with pytest.raises(KeyboardInterrupt), pytest.warns(TrackerWarning, match="no space left"):
        fedsgd.run(scenario({"rounds": 1}), callbacks=[interrupted, failing, last])
    assert interrupted.methods == failing.methods == last.methods == ["begin", "round", "end"]


def test_warning_that_is_raised_as_an_error_ends_all_trackers(scenario: Make) -> None:
    tracker = RecordingTracker()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TrackerWarning):
            fedsgd.run(scenario(), callbacks=[RecordingTracker("round"), tracker])
    assert tracker.methods == ["begin", "end"]


def test_run_that_does_not_begin_sends_no_event(scenario: Make, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    tracker = RecordingTracker()
    with pytest.raises(OutputError):
        fedsgd.run(scenario(), out=tmp_path, callbacks=[tracker])
    assert tracker.calls == []


def test_settings_of_a_run_are_valid_overrides(scenario: Make) -> None:
    s = scenario({"model.hidden": [8, 4], "uplink.compressor.density": 0.25})
    settings = RunStarted(s).settings
    assert settings["uplink.compressor.density"] == 0.25
    assert settings["uplink.compressor.name"] == "top-k"
    assert settings["model.hidden"] == "[8, 4]"
    assert settings["rounds"] == 3
    assert all(isinstance(value, bool | int | float | str) for value in settings.values())
    overrides = {key: json.loads(value) if str(value).startswith("[") else value for key, value in settings.items()}
    assert parse_scenario(apply_settings(Scenario, {}, overrides)) == s, "no setting is missing"


def test_settings_of_a_run_number_the_tables_in_a_list(scenario: Make) -> None:
    rules = [{"pattern": "*.bias", "op": {"name": "dense"}}, {"pattern": "*", "op": {"name": "top-k"}}]
    settings = RunStarted(scenario({"uplink.compressor": {"name": "per-layer", "rules": rules}})).settings
    assert settings["uplink.compressor.rules.0.pattern"] == "*.bias"
    assert settings["uplink.compressor.rules.1.op.name"] == "top-k"


@pytest.mark.slow
def test_tracker_is_created_by_name() -> None:
    with pytest.raises(ScenarioError, match='got "tensorbord", did you mean "tensorboard"'):
        create_tracker("tensorbord")
    for name in TRACKERS:
        assert type(create_tracker(name)) is TRACKERS[name]


def test_run_without_a_folder_is_recorded_in_runs(scenario: Make, tmp_path: Path) -> None:
    assert RunStarted(scenario()).shared_folder == Path("runs").absolute()
    assert RunStarted(scenario()).name == "quickstart"
    assert RunStarted(scenario(), tmp_path / "a").shared_folder == tmp_path
    assert RunStarted(scenario(), tmp_path / "a").name == "a"


# ------------------------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize("name", list(TRACKERS))
def test_missing_extra_is_an_error_of_one_line_before_the_run(
    name: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"fedsgd.trackers.{name}", raising=False)
    monkeypatch.setattr("fedsgd.experiment.builder.build_experiment", pytest.fail)
    monkeypatch.chdir(tmp_path)
    for module in [module for module in sys.modules if module.startswith(f"{name}.")]:
        monkeypatch.setitem(sys.modules, module, None)
    result = run_command("run", str(root / "scenarios" / "quickstart.toml"), "--track", name)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"fedsgd: --track {name} needs, in the checkout of fedsgd, pip install '.[{name}]'")
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_unknown_tracker_is_an_error_with_the_valid_names(root: Path) -> None:
    result = run_command("run", str(root / "scenarios" / "quickstart.toml"), "--track", "tensorbord")
    assert result.exit_code == 2
    assert result.stderr == 'fedsgd: --track: got "tensorbord", did you mean "tensorboard"?\n'


@pytest.mark.slow
def test_failing_tracker_is_a_line_on_standard_error(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tensorboard").write_text("a file in place of the folder")
    arguments = [str(root / "scenarios" / "quickstart.toml"), "--set", "rounds=1", "--quiet", "--json"]
    result = run_command("run", *arguments, "--track", "tensorboard")
    assert result.exit_code == 0
    (line,) = [line for line in result.stderr.splitlines() if "TensorBoard" in line]
    assert line.startswith("fedsgd: TensorBoard.begin: ")
    assert "Warning" not in result.stderr
    assert (tmp_path / "runs" / "quickstart-1" / "summary.json").is_file()


@pytest.mark.slow
def test_tracker_receives_the_events_of_a_deployment(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: Make
) -> None:
    history = fedsgd.run(scenario()).history
    tracker = RecordingTracker()

    def deploy(s: Scenario, out: Path, *, callbacks: Any, **options: Any) -> Any:
        assert (options["nodes"], options["overwrite"]) == (3, False)
        assert options["execution"] == fedsgd.DeploymentConfig(use_fork_server=False)
        callbacks.on_status("starting")
        assert tracker.calls == []
        callbacks.on_engine("sequential")
        for record in history:
            callbacks.on_round(record)
        if s.rounds == 1:
            raise RunError(1, None, "no more")
        return fedsgd.DeploymentResult({"name": "x"}, out)

    monkeypatch.setattr("fedsgd.flower.deployment.deploy", deploy)
    monkeypatch.setattr("fedsgd.trackers.create_tracker", lambda name: tracker)
    monkeypatch.chdir(tmp_path)
    file = root / "scenarios" / "quickstart.toml"
    arguments = ["flower", str(file), "--nodes", "3", "--cold", "--track", "mlflow", "--json"]
    assert run_command(*arguments).exit_code == 0
    assert tracker.methods == COMPLETE_RUN
    assert tracker.calls[0][1] == RunStarted(fedsgd.load(file), Path("runs/quickstart-1"))
    assert [argument for _, argument in tracker.calls[1:-1]] == history
    assert tracker.calls[-1][1] == RunFinished({"name": "x"})
    tracker.calls.clear()
    assert run_command(*arguments, "--set", "rounds=1").exit_code == 1
    assert tracker.methods == COMPLETE_RUN
    assert str(tracker.calls[-1][1].error) == "round 1, server: no more"


@pytest.mark.nightly
@pytest.mark.slow
def test_run_without_a_tracker_imports_no_tracker(root: Path) -> None:
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
