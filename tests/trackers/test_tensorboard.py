"""Tests of the event files for TensorBoard."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import fedsgd
from fedsgd.data import Dataset
from fedsgd.errors import RunError
from fedsgd.federation.round_record import RoundRecord
from fedsgd.scenario.scenario import Scenario
from fedsgd.storage.run_directory import RUN_FILES
from fedsgd.trackers import RunFinished, RunStarted, TrackerWarning, create_tracker
from fedsgd.trackers.base import x_axes
from tests.trackers.helpers import SECONDS_BY_NETWORK, Make, send_events

pytestmark = pytest.mark.slow


def read_events(folder: Path) -> Any:
    """Read all events of a folder."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def read_scalars(events: Any, tag: str) -> list[tuple[int, float]]:
    """Return (step, value) of all scalars of a tag."""
    return [(event.step, event.value) for event in events.Scalars(tag)]


def expected_scalars(history: list[RoundRecord], axis: str, metric: str) -> list[tuple[int, float]]:
    """Return (step, value) of a metric over an axis, with the precision of event files."""
    points = [(x_axes(record)[axis], record.metrics[metric]) for record in history if record.metrics is not None]
    return [(step, float(np.float32(value))) for step, value in points]


def read_hparams_data(events: Any, tag: str) -> Any:
    """Return the data of a tag for TensorBoard's page of hyper-parameters."""
    return HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content)


def test_event_file_has_each_metric_over_each_axis(scenario: Make, tmp_path: Path) -> None:
    start = time.time()
    result = fedsgd.run(
        scenario({"rounds": 5, "evaluation.every": 2}), out=tmp_path / "runs" / "one", callbacks=[create_tracker("tensorboard")]
    )
    events = read_events(tmp_path / "runs" / "tensorboard" / "one")
    for metric in ("loss", "accuracy"):
        for axis in ("round", "uplink bytes", "all bytes"):
            assert read_scalars(events, f"{metric}/by {axis}") == expected_scalars(result.history, axis, metric)
    last = result.history[-1]
    assert [step for step, _ in read_scalars(events, "accuracy/by round")] == [2, 4, 5]
    assert read_scalars(events, "accuracy/by uplink bytes")[-1][0] == result.summary["uplink_bytes"]
    assert read_scalars(events, "accuracy/by all bytes")[-1][0] == last.uplink_bytes + last.downlink_bytes
    assert read_scalars(events, "bytes/uplink") == [(r.round, float(np.float32(r.uplink_bytes))) for r in result.history]
    for tag, key in (("uplink", "uplink_ratio"), ("both directions", "bidirectional_ratio")):
        assert read_scalars(events, f"ratio/{tag}")[-1] == (5, float(np.float32(result.summary[key])))
    assert read_scalars(events, "clients/cohort") == [(n, 4.0) for n in range(1, 6)]
    norms = [(r.round, float(np.float32(r.residual_norm))) for r in result.history if r.residual_norm is not None]
    assert len(norms) == 5
    assert read_scalars(events, "clients/residual norm") == norms
    times = [event.wall_time for event in events.Scalars("bytes/uplink")]
    assert start <= times[0] < times[-1] <= time.time()
    assert sorted(p.name for p in (tmp_path / "runs" / "one").iterdir()) == sorted(RUN_FILES), (
        "the tracker adds no file to the run folder"
    )


def test_event_file_has_the_scenario_and_the_status(scenario: Make, tmp_path: Path) -> None:
    result = fedsgd.run(scenario({"rounds": 1}), out=tmp_path / "one", callbacks=[create_tracker("tensorboard")])
    events = read_events(tmp_path / "tensorboard" / "one")
    text = events.Tensors("scenario")[0].tensor_proto.string_val[0].decode()
    assert events.SummaryMetadata("scenario").plugin_data.plugin_name == "text"
    assert text == f"```toml\n{result.scenario.to_toml()}```\n"
    settings = read_hparams_data(events, "_hparams_/session_start_info").session_start_info.hparams
    assert settings["rounds"].number_value == 1
    assert settings["uplink.compressor.name"].string_value == "top-k"
    assert set(settings) == set(RunStarted(result.scenario).settings)
    assert read_hparams_data(events, "_hparams_/session_end_info").session_end_info.status == api_pb2.STATUS_SUCCESS


def test_event_file_has_the_error_of_a_failed_run(blobs: Dataset, tmp_path: Path, failing_metrics: Any) -> None:
    s = Scenario(name="x", rounds=3).with_settings({"data.partition.clients": 5})
    with pytest.raises(RunError):
        fedsgd.run(
            s,
            data=blobs,
            model=fedsgd.CustomModel(metrics=failing_metrics),
            out=tmp_path / "r",
            callbacks=[create_tracker("tensorboard")],
        )
    events = read_events(tmp_path / "tensorboard" / "r")
    assert b"RunError: round 1, server: evaluation" in events.Tensors("error")[0].tensor_proto.string_val[0]
    assert read_hparams_data(events, "_hparams_/session_end_info").session_end_info.status == api_pb2.STATUS_FAILURE


def test_overwritten_run_replaces_only_its_own_event_files(scenario: Make, tmp_path: Path) -> None:
    options: dict[str, Any] = {"out": tmp_path / "r", "callbacks": [create_tracker("tensorboard")]}
    fedsgd.run(scenario({"rounds": 3}), **options)
    user_file = tmp_path / "tensorboard" / "r" / "events.out.tfevents.1.mine"
    user_file.touch()
    fedsgd.run(scenario({"rounds": 2}), overwrite=True, **options)
    assert user_file.exists()
    user_file.unlink()
    assert [step for step, _ in read_scalars(read_events(user_file.parent), "bytes/uplink")] == [1, 2]


def test_event_folders_of_runs_without_a_run_folder_are_numbered(
    scenario: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        fedsgd.run(scenario({"rounds": 1}), callbacks=[create_tracker("tensorboard")])
    assert sorted(p.name for p in (tmp_path / "runs" / "tensorboard").iterdir()) == ["quickstart-1", "quickstart-2"]


def test_event_file_has_metrics_over_the_time_on_networks(scenario: Make, tmp_path: Path) -> None:
    history = fedsgd.run(scenario({"evaluation.every": 2})).history
    send_events(history, scenario(), tmp_path / "r", "tensorboard", RunFinished({}, seconds_by_network=SECONDS_BY_NETWORK))
    events = read_events(tmp_path / "tensorboard" / "r")
    lte = read_scalars(events, "accuracy/by milliseconds on lte")
    assert [step for step, _ in lte] == [2500, 10**12]
    assert [value for _, value in lte] == [value for _, value in expected_scalars(history, "round", "accuracy")]
    assert [step for step, _ in read_scalars(events, "loss/by milliseconds on office")] == [2, 3]
    tags = ("accuracy/by milliseconds on lte", "accuracy/by round")
    wall_times = [[event.wall_time for event in events.Scalars(tag)] for tag in tags]
    assert wall_times[0] == wall_times[1]
    with pytest.warns(TrackerWarning, match="lte: 1 times for 3 rounds"):
        send_events(history, scenario(), tmp_path / "s", "tensorboard", RunFinished({}, seconds_by_network={"lte": [1.0]}))
