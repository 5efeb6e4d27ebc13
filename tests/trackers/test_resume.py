"""Tests of trackers of a resumed run, whose records must be those of a run that was never interrupted."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fedsgd
from fedsgd.experiment.run_checkpoints import find_resume_point, read_trackers
from fedsgd.trackers import RunFinished, TrackerRecord, TrackerWarning, create_tracker
from fedsgd.trackers.tensorboard import TensorBoard
from tests.trackers.helpers import RESUME_SETTINGS, Make, RecordingTracker, interrupt_run, run_command

pytestmark = pytest.mark.slow

Points = dict[str, list[tuple[int, float]]]


def read_points(folder: Path) -> Points:
    """Return (step, value) of all scalars of a folder of event files by tag, without the rounds' wall-clock times."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag != "seconds/round"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


class PositionTracker(RecordingTracker):
    """Tracker with a position."""

    def position(self) -> str:
        """Return the number of rounds that the tracker has received."""
        self._record("position", None)
        return f"{self.methods.count('round')} rounds"


# ------------------------------------------------------------------------------------------------------------------ the protocol


def test_tracker_without_position_receives_the_history_of_a_resumed_run(scenario: Make, tmp_path: Path) -> None:
    first, second = RecordingTracker(), RecordingTracker()
    interrupt_run(scenario, tmp_path / "run", first)
    assert first.methods == ["begin", *["round"] * 5, "end"]
    assert first.calls[0][1].history == ()
    result = fedsgd.resume(tmp_path / "run", callbacks=[second])
    started, *rounds, finished = (argument for _, argument in second.calls)
    assert [record.round for record in started.history] == [1, 2, 3, 4]
    assert [*started.history, *rounds] == result.history
    assert started.position is None
    assert finished == RunFinished(result.summary)


def test_position_of_a_tracker_is_stored_and_given_back_by_class(scenario: Make, tmp_path: Path) -> None:
    path = f"{__name__}:PositionTracker"
    first, second, third = PositionTracker(), PositionTracker(), PositionTracker()
    interrupt_run(scenario, tmp_path / "run", first, RecordingTracker())
    assert first.methods == ["begin", "round", "position", "round", "round", "position", "round", "round", "end"]
    assert read_trackers(tmp_path / "run") == [
        TrackerRecord(path, "3 rounds"),  # the checkpoint precedes the event of its last round
        TrackerRecord("tests.trackers.helpers:RecordingTracker"),
    ]
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    fedsgd.resume(tmp_path / "copy", callbacks=[third])
    assert third.calls[0][1].position is None, "the record of the original run must stay"
    shutil.move(tmp_path / "run", tmp_path / "moved")
    fedsgd.resume(tmp_path / "moved", callbacks=[RecordingTracker(), second])
    assert second.calls[0][1].position == "3 rounds"


def test_trackers_stay_in_the_checkpoints_of_a_resumed_run_without_them(scenario: Make, tmp_path: Path) -> None:
    interrupt_run(scenario, tmp_path / "run", PositionTracker())
    records = read_trackers(tmp_path / "run")
    fedsgd.resume(tmp_path / "run")
    assert find_resume_point(tmp_path / "run").manifest.round == 6
    assert read_trackers(tmp_path / "run") == records


@pytest.mark.parametrize("result", [ValueError("no space left"), 7])
def test_failing_position_is_reported_once_and_the_run_continues(scenario: Make, tmp_path: Path, result: Any) -> None:
    class FailingTracker(RecordingTracker):
        def position(self) -> Any:
            if isinstance(result, Exception):
                raise result
            return result

    tracker = FailingTracker()
    with pytest.warns(TrackerWarning, match="FailingTracker.position: ") as caught:
        fedsgd.run(scenario(RESUME_SETTINGS), out=tmp_path / "run", callbacks=[tracker])
    assert len(caught) == 1
    assert tracker.methods == ["begin", "round"]
    assert [record.position for record in read_trackers(tmp_path / "run")] == [None]


# ------------------------------------------------------------------------------------------------------------------- TensorBoard


@pytest.fixture
def whole_run(scenario: Make, tmp_path: Path) -> Points:
    """Points of a run that was never interrupted."""
    fedsgd.run(scenario(RESUME_SETTINGS), out=tmp_path / "whole" / "run", callbacks=[create_tracker("tensorboard")])
    points = read_points(tmp_path / "whole" / "tensorboard" / "run")
    assert [step for step, _ in points["accuracy/by round"]] == [3, 6]
    return points


@pytest.mark.parametrize("is_killed", [pytest.param(False, marks=pytest.mark.nightly), True])
def test_resumed_run_has_the_points_of_an_uninterrupted_run_in_tensorboard(
    scenario: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_run: Points, is_killed: bool
) -> None:
    runs = tmp_path / "runs"
    folder = runs / "tensorboard" / "run"
    with monkeypatch.context() as patch:
        if is_killed:
            patch.setattr(TensorBoard, "end", lambda tracker, outcome: tracker._writer.flush())
        interrupt_run(scenario, runs / "run", create_tracker("tensorboard"))
    (file,) = folder.iterdir()
    assert [step for step, _ in read_points(folder)["bytes/uplink"]] == [1, 2, 3, 4, 5]
    if is_killed:
        file.write_bytes(file.read_bytes()[:-5])
    (folder / "events.out.tfevents.1.mine").touch()
    times = read_times(folder)
    fedsgd.resume(runs / "run", callbacks=[create_tracker("tensorboard")])
    assert read_points(folder) == whole_run
    assert read_times(folder)[:4] == times[:4], "rounds before the checkpoint keep their wall times"
    assert read_times(folder)[4] > times[-1]
    assert file.stat().st_size == 0
    assert len([*folder.iterdir()]) == 3, "the file of the user stays"
    fedsgd.resume(runs / "run", rounds=7, callbacks=[create_tracker("tensorboard")])
    assert not file.exists()
    assert [step for step, _ in read_points(folder)["bytes/uplink"]] == [1, 2, 3, 4, 5, 6, 7]
    assert [path.name for path in folder.parent.iterdir()] == ["run"]


def read_times(folder: Path) -> list[float]:
    """Return the wall times of all rounds."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.wall_time for event in events.Scalars("bytes/uplink")]


def test_resumed_run_continues_in_the_folder_of_the_user(scenario: Make, tmp_path: Path, whole_run: Points) -> None:
    interrupt_run(scenario, tmp_path / "run", TensorBoard(tmp_path / "a"), TensorBoard(tmp_path / "b"))
    fedsgd.resume(tmp_path / "run", callbacks=[create_tracker("tensorboard"), TensorBoard(tmp_path / "c")])
    assert read_points(tmp_path / "a" / "run") == read_points(tmp_path / "c" / "run") == whole_run
    assert [step for step, _ in read_points(tmp_path / "b" / "run")["bytes/uplink"]] == [1, 2, 3, 4, 5]


@pytest.mark.nightly
def test_resumed_run_continues_in_a_moved_folder(scenario: Make, tmp_path: Path, whole_run: Points) -> None:
    runs, moved = tmp_path / "runs", tmp_path / "moved"
    interrupt_run(scenario, runs / "run", create_tracker("tensorboard"))
    runs.rename(moved)
    fedsgd.resume(moved / "run", callbacks=[create_tracker("tensorboard")])
    assert read_points(moved / "tensorboard" / "run") == whole_run
    assert not runs.exists()


def test_running_tensorboard_discards_points_that_it_has_read_before(scenario: Make, tmp_path: Path, whole_run: Points) -> None:
    interrupt_run(scenario, tmp_path / "run", create_tracker("tensorboard"))
    events = EventAccumulator(str(tmp_path / "tensorboard" / "run"), size_guidance={"scalars": 0})
    events.Reload()
    time.sleep(1.1)  # TensorBoard reads files in the order of their names, which begin with the second
    fedsgd.resume(tmp_path / "run", callbacks=[create_tracker("tensorboard")])
    events.Reload()
    for tag, points in whole_run.items():
        assert [(event.step, event.value) for event in events.Scalars(tag)] == points


# ------------------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def quickstart(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a short run in a temporary folder."""
    monkeypatch.chdir(tmp_path)
    return ["run", str(root / "scenarios" / "quickstart.toml"), "--quiet", "--checkpoint-every", "2"]


def test_command_resumes_a_run_with_its_trackers_and_networks(quickstart: list[str], tmp_path: Path) -> None:
    tracking = ["--track", "tensorboard", "--network", "4g,wifi"]
    for rounds, out in ((6, "whole/a"), (4, "runs/a")):
        result = run_command(*quickstart, *tracking, "--set", f"rounds={rounds}", "--out", out)
        assert result.exit_code == 0, result.output
    result = run_command("resume", "runs/a", "--rounds", "6", "--quiet")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    points = read_points(tmp_path / "runs" / "tensorboard" / "a")
    assert len(points["accuracy/by milliseconds on 4g"]) == 6
    assert points == read_points(tmp_path / "whole" / "tensorboard" / "a")


@pytest.mark.nightly
def test_command_adds_trackers_and_replaces_networks(quickstart: list[str], tmp_path: Path) -> None:
    assert run_command(*quickstart, "--set", "rounds=2", "--out", "runs/a").exit_code == 0
    result = run_command("resume", "runs/a", "--rounds", "3", "--network", "4g", "--quiet")
    assert result.exit_code == 2
    assert "--network needs --track" in result.stderr
    for rounds, options in (("3", ["--track", "tensorboard", "--network", "4g"]), ("4", ["--network", "wifi"])):
        result = run_command("resume", "runs/a", "--rounds", rounds, "--quiet", *options)
        assert result.exit_code == 0, result.output
    points = read_points(tmp_path / "runs" / "tensorboard" / "a")
    assert [step for step, _ in points["bytes/uplink"]] == [1, 2, 3, 4]
    assert {tag.partition("/by ")[2] for tag in points if "milliseconds" in tag} == {"milliseconds on wifi"}


def test_tracker_that_cannot_be_created_is_a_warning(scenario: Make, tmp_path: Path) -> None:
    class LocalTracker(RecordingTracker):
        pass

    fedsgd.run(scenario({**RESUME_SETTINGS, "rounds": 2}), out=tmp_path / "run", callbacks=[LocalTracker(), RecordingTracker()])
    (tmp_path / "run" / "summary.json").rename(tmp_path / "summary.json")
    result = run_command("resume", str(tmp_path / "run"), "--rounds", "3", "--quiet")
    assert result.exit_code == 0, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("fedsgd: warning: the run continues without its tracker tests.trackers.test_resume:test_tracker")
    assert any(record.path == "tests.trackers.helpers:RecordingTracker" for record in read_trackers(tmp_path / "run"))
