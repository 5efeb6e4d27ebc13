"""Whole runs: results, files, reproducibility and failures."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

import fedsgd
from fedsgd.data import Dataset, Examples
from fedsgd.errors import DataError, ModelError, OutputError, RunError, ScenarioError
from fedsgd.experiment.builder import build_experiment
from fedsgd.experiment.ledger import COLUMNS
from fedsgd.experiment.result import Result
from fedsgd.experiment.runner import run
from fedsgd.scenario.scenario import Scenario, parse_scenario
from fedsgd.storage.run_directory import RUN_FILES
from fedsgd.wire import encode_values, frame_overhead
from tests.effort import nightly_unless

Make = Callable[..., Scenario]


def digests(result: Result) -> tuple[str, str]:
    return result.summary["params_sha256"], result.summary["ledger_sha256"]


# ------------------------------------------------------------------------------------------------------------- what is written


@pytest.mark.slow
def test_run_folder_has_the_documented_files(scenario: Make, tmp_path: Path) -> None:
    out = tmp_path / "new" / "run"
    result = run(scenario(), out=out)
    assert sorted(p.name for p in out.iterdir()) == sorted(RUN_FILES)
    assert result.out == out
    summary = json.loads((out / "summary.json").read_text())
    assert summary == result.summary
    resolved = parse_scenario(tomllib.loads((out / "scenario.toml").read_text()))
    assert resolved == result.scenario == replace(scenario(), engine=resolved.engine)
    assert resolved.engine.name == summary["engine"]["name"] != "auto"

    tensors = load_file(out / "params.safetensors")
    assert {name: t.shape for name, t in tensors.items()} == {
        "1.weight": (64, 64),
        "1.bias": (64,),
        "3.weight": (10, 64),
        "3.bias": (10,),
    }
    flat = np.concatenate([tensors[name].reshape(-1) for name in ("1.weight", "1.bias", "3.weight", "3.bias")])
    assert flat.tobytes() == result.parameters.tobytes()
    assert summary["params_sha256"] == hashlib.sha256(flat.astype("<f4").tobytes()).hexdigest()

    ledger = pd.read_parquet(out / "ledger.parquet")
    assert list(ledger.columns) == list(COLUMNS)
    assert len(ledger) == 3 * 4 * 3
    assert ledger.equals(result.ledger.table().to_pandas())
    rounds = pd.read_parquet(out / "rounds.parquet")
    assert rounds["round"].tolist() == [1, 2, 3]
    assert rounds["accuracy"].tolist() == [r.accuracy for r in result.history]
    for column, direction in (("uplink_bytes", "up"), ("downlink_bytes", "down")):
        assert rounds[column].tolist() == ledger[ledger.direction == direction].groupby("round").n_bytes.sum().cumsum().tolist()
    models = ledger[ledger.kind == "MODEL"].groupby("round").frame_hash
    assert models.nunique().tolist() == [1, 1, 1], "all clients of a round receive one model"
    assert models.first().nunique() == 3, "each round sends another model"


@pytest.mark.slow
def test_summary_bytes_and_ratios_add_up(scenario: Make) -> None:
    result = run(scenario())
    s = result.summary
    for key in (
        *("name", "seed", "rounds", "parameters", "final_accuracy", "best_accuracy", "target_accuracy", "rounds_to_target"),
        *("uplink_bytes", "downlink_bytes", "dense_uplink_bytes", "uplink_ratio", "params_sha256", "ledger_sha256", "seconds"),
        "peak_memory_bytes",
    ):
        assert key in s
    for direction in ("uplink", "downlink"):
        parts = s[direction]
        assert parts["header"] + parts["index"] + parts["value"] + parts["side"] == parts["n_bytes"] == s[f"{direction}_bytes"]
    assert s["dense_uplink_bytes"] == 12 * (4 * 4810 + frame_overhead(0) + 1 + 3)
    assert s["uplink_ratio"] == s["dense_uplink_bytes"] / s["uplink_bytes"]
    assert s["downlink_ratio"] == s["dense_downlink_bytes"] / s["downlink_bytes"]
    dense, compressed = s["dense_uplink_bytes"] + s["dense_downlink_bytes"], s["uplink_bytes"] + s["downlink_bytes"]
    assert s["bidirectional_ratio"] == dense / compressed
    assert s["bidirectional_ratio"] < 2 < s["uplink_ratio"], "the model goes down whole"
    assert s["best_accuracy"] == max(r.accuracy for r in result.history if r.accuracy is not None)


@pytest.mark.slow
def test_dense_run_has_ratio_one(scenario: Make) -> None:
    assert run(scenario({"uplink.compressor.name": "dense"})).summary["uplink_ratio"] == 1


@pytest.mark.slow
def test_training_uses_only_the_selected_rows(scenario: Make, blobs: Dataset) -> None:
    """Examples(x, y, rows) contains only those rows; no client may receive another row."""
    s = Scenario(name="rows", rounds=1).with_settings({"data.partition.clients": 5})
    x, y, rows = blobs.train.x, blobs.train.y, np.arange(30, 90)
    part = Dataset(Examples(x, y, rows), blobs.test, 3)
    copied = Dataset(Examples(x[rows], y[rows]), blobs.test, 3)
    assert digests(run(s, data=part)) == digests(run(s, data=copied)) != digests(run(s, data=blobs))


@pytest.mark.slow
def test_summary_lists_the_objects_passed_in_python(scenario: Make, blobs: Dataset) -> None:
    s = Scenario(name="x", rounds=1).with_settings({"data.partition.clients": 5})
    assert run(s, data=blobs).summary["given_in_python"] == ["dataset"]
    assert run(scenario({"rounds": 1})).summary["given_in_python"] == []


def test_non_finite_metric_is_null_in_json(scenario: Make, blobs: Dataset, tmp_path: Path) -> None:
    s = Scenario(name="x", rounds=1).with_settings({"data.partition.clients": 5})
    run(s, data=blobs, model=fedsgd.CustomModel(metrics={"odd": lambda o, t: o[:, 0] / 0}), out=tmp_path / "r")
    assert json.loads((tmp_path / "r" / "summary.json").read_text(), parse_constant=pytest.fail)["final_metrics"]["odd"] is None


def test_metric_with_the_name_of_a_column_is_refused(blobs: Dataset) -> None:
    s = Scenario(name="x", rounds=1).with_settings({"data.partition.clients": 5})
    with pytest.raises(ModelError, match='cannot be called "uplink_bytes"'):
        run(s, data=blobs, model=fedsgd.CustomModel(metrics={"uplink_bytes": lambda o, t: o[:, 0]}))


def test_failing_metric_ends_the_run_with_the_round(blobs: Dataset, failing_metrics: Any) -> None:
    s = Scenario(name="x", rounds=2).with_settings({"data.partition.clients": 5})
    with pytest.raises(RunError, match="round 1, server: evaluation: ZeroDivisionError"):
        run(s, data=blobs, model=fedsgd.CustomModel(metrics=failing_metrics))


@pytest.mark.slow
def test_overwrite_removes_a_killed_run_and_follows_no_links(scenario: Make, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    (out / "rounds.parquet").mkdir(parents=True)
    (out / "rounds.parquet" / "segment-000000.parquet").touch()
    (out / "rounds.parquet" / ".segment-000001.parquet").touch()
    (out / ".ledger.parquet.segments").mkdir()
    (out / ".summary.json.partial").touch()
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    (out / "ledger.parquet").symlink_to(elsewhere)
    run(scenario({"rounds": 1}), out=out, overwrite=True)
    assert sorted(p.name for p in out.iterdir()) == sorted(RUN_FILES)
    assert (elsewhere / "precious").exists()
    (out / "params.safetensors").unlink()
    (out / "params.safetensors").mkdir()
    with pytest.raises(OutputError, match="no run wrote this"):
        run(scenario({"rounds": 1}), out=out, overwrite=True)


@pytest.mark.slow
def test_run_without_out_writes_nothing(scenario: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(scenario()).out is None
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_folder_that_is_not_empty_is_refused(scenario: Make, tmp_path: Path) -> None:
    run(scenario(), out=tmp_path / "a")
    before = (tmp_path / "a" / "summary.json").read_bytes()
    with pytest.raises(OutputError, match=r"is not empty .* or pass --overwrite \(in Python: overwrite=True\)$"):
        run(scenario({"rounds": 1}), out=tmp_path / "a")
    assert (tmp_path / "a" / "summary.json").read_bytes() == before
    assert run(scenario({"rounds": 1}), out=tmp_path / "a", overwrite=True).summary["rounds"] == 1
    (tmp_path / "a" / "thesis.tex").write_text("precious")
    with pytest.raises(OutputError, match=r"thesis\.tex: no run wrote this"):
        run(scenario(), out=tmp_path / "a", overwrite=True)
    with pytest.raises(OutputError, match=r"is not empty .* choose another folder$"):  # --overwrite would be refused too
        run(scenario(), out=tmp_path / "a")
    assert (tmp_path / "a" / "summary.json").exists()
    with pytest.raises(OutputError, match="cannot be created"):
        run(scenario(), out=tmp_path / "a" / "thesis.tex")


# ------------------------------------------------------------------------------------------------------------------ evaluation


@pytest.mark.slow
def test_evaluation_follows_its_interval_and_the_last_round(scenario: Make) -> None:
    history = run(scenario({"rounds": 5, "evaluation.every": 2})).history
    assert [r.round for r in history if r.metrics is not None] == [2, 4, 5]
    assert run(scenario({"rounds": 3, "evaluation.every": 100})).summary["final_accuracy"] is not None


@pytest.mark.slow
def test_target_accuracy_is_reported_or_ends_the_run(scenario: Make) -> None:
    rounds: list[int] = []
    reported = run(scenario({"rounds": 4, "report.target_accuracy": 0.2}), on_round=lambda r: rounds.append(r.round))
    first = reported.summary["rounds_to_target"]
    assert rounds == [1, 2, 3, 4]
    assert first is not None
    assert first < 4
    stopped = run(scenario({"rounds": 4, "stop.target_accuracy": 0.2, "report.target_accuracy": 0.2}))
    assert stopped.summary["rounds"] == stopped.summary["rounds_to_target"] == first
    stop_only = run(scenario({"rounds": 4, "stop.target_accuracy": 0.2}).with_settings({"report": {}}))
    assert (stop_only.summary["target_accuracy"], stop_only.summary["rounds_to_target"]) == (0.2, first)
    second_accuracy = reported.history[1].accuracy
    assert run(scenario({"report.target_accuracy": second_accuracy})).summary["rounds_to_target"] <= 2
    assert [r.summary["stopped_by"] for r in (reported, stopped)] == ["rounds", "target_accuracy"]
    assert reported.history[int(first) - 1].compression_ratios.items() <= stopped.summary.items(), (
        "ratios cover the executed rounds"
    )
    assert (reported.summary["target"], reported.summary["best"]["value"]) == ("0.2", reported.summary["best_accuracy"])
    unreached = run(scenario({"report.target_accuracy": 1.0}))
    assert unreached.summary["rounds_to_target"] is None


@pytest.mark.slow
def test_target_loss_is_reported_or_ends_the_run(scenario: Make) -> None:
    reported = run(scenario({"rounds": 4}).with_settings({"report.target": "loss<0"}))
    losses = [record.metrics["loss"] for record in reported.history if record.metrics is not None]
    assert (reported.summary["target"], reported.summary["target_accuracy"]) == ("loss<0", None)
    assert reported.summary["rounds_to_target"] is None
    assert reported.summary["best"] == {"metric": "loss", "direction": "below", "value": min(losses)}
    assert losses == sorted(losses, reverse=True)
    threshold = (losses[0] + losses[1]) / 2
    stopped = run(scenario({"rounds": 4, "stop.target": {"metric": "loss", "below": threshold}}).with_settings({"report": {}}))
    assert (stopped.summary["rounds"], stopped.summary["stopped_by"]) == (2, "target")
    assert stopped.summary["rounds_to_target"] == pytest.approx(1.5)
    first, second = (record.uplink_bytes for record in stopped.history)
    assert stopped.summary["uplink_bytes_to_target"] == pytest.approx((first + second) / 2)


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("los<0.3", 'report.target: there is no metric named los, did you mean "loss"?'),
        ("train_loss<0.3", "report.target: there is no metric named train_loss: set evaluation.training = true"),
        ("train_lost<0.3", "report.target: there is no metric named train_lost"),
        ("macro-f1>0.8", 'no metric named macro-f1: set evaluation.metrics = ["macro-f1"], whose column is macro_f1'),
        ("client_accuracy_mean>0.3", "there is no metric named client_accuracy_mean: set evaluation.clients = true"),
    ],
)
def test_target_on_an_unknown_metric_fails_before_the_first_round(scenario: Make, target: str, problem: str) -> None:
    with pytest.raises(ScenarioError, match=re.escape(problem)):
        run(scenario({}).with_settings({"report.target": target}), on_round=lambda record: pytest.fail("a round was run"))


@pytest.mark.slow
def test_quickstart_reaches_its_accuracy(root: Path) -> None:
    """A quarter of the quickstart's rounds is enough; chance is 10 %."""
    result = run(fedsgd.load(root / "scenarios" / "quickstart.toml", {"rounds": 11}))
    assert result.summary["final_accuracy"] > 0.85
    assert result.summary["best_accuracy"] == max(r.accuracy for r in result.history) >= result.summary["final_accuracy"]
    assert result.summary["uplink_ratio"] > 60


# ------------------------------------------------------------------------------------------------- modules, losses, data in Python


@pytest.mark.slow
def test_module_loss_metrics_and_data_from_python_are_trained(blobs: Dataset) -> None:
    s = Scenario(name="own", rounds=40).with_settings({"data.partition.clients": 6, "client.optimizer.lr": 0.1})
    result = run(
        s,
        data=blobs,
        model=fedsgd.CustomModel(
            module=nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 3)),
            loss=lambda output, target: nn.functional.cross_entropy(output, target, label_smoothing=0.1),
            metrics={"top2": lambda output, target: (output.topk(2).indices == target[:, None]).any(1).float()},
        ),
    )
    assert result.summary["final_metrics"].keys() == {"loss", "accuracy", "top2"}
    assert result.summary["final_metrics"]["top2"] >= result.summary["final_accuracy"] > 0.6


@pytest.mark.slow
def test_regression_runs_without_accuracy(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 4)).astype(np.float32)
    y = (x @ np.float32([[1], [2], [-1], [0.5]])).astype(np.float32)
    data = Dataset(Examples(x[:80], y[:80]), Examples(x[80:], y[80:]), classes=None)
    s = Scenario(name="line", rounds=100).with_settings({"data.partition.clients": 4, "client.optimizer.lr": 0.05})
    result = run(
        s, data=data, model=fedsgd.CustomModel(module=nn.Linear(4, 1), loss=nn.functional.mse_loss), out=tmp_path / "r"
    )
    assert result.summary["final_accuracy"] is None
    assert result.summary["final_metrics"]["loss"] < 1e-3
    with pytest.raises(ScenarioError, match="there is no metric named accuracy"):
        run(
            s.with_settings({"report.target_accuracy": 0.9}),
            data=data,
            model=fedsgd.CustomModel(module=nn.Linear(4, 1), loss=nn.functional.mse_loss),
        )


# ----------------------------------------------------------------------------------------------------------------- determinism

CHILD = """
import sys, torch, fedsgd
if sys.argv[2] != "default":
    torch.set_num_threads(int(sys.argv[2]))
result = fedsgd.run(fedsgd.load(sys.argv[1], {"rounds": 3}))
print(result.summary["params_sha256"], result.summary["ledger_sha256"])
"""


def digests_in_a_process(path: Path, threads: str, **environment: str) -> str:
    command = [sys.executable, "-c", CHILD, str(path), threads]
    return subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.slow
def test_digests_repeat_within_one_process(scenario: Make) -> None:
    torch.manual_seed(1)
    first = run(scenario())
    torch.manual_seed(2)
    torch.rand(10)
    assert digests(first) == digests(run(scenario()))
    assert digests(first) != digests(run(scenario({"seed": 1})))


OTHER_PROCESSES = {
    "default": {},
    "4": {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "2", "PYTHONHASHSEED": "7"},
}
"""Environments of processes, by their number of threads."""


@pytest.mark.slow
@pytest.mark.nightly  # by day, tests/runtime compares workers and ranks
@pytest.mark.parametrize("threads", OTHER_PROCESSES)
def test_digests_repeat_in_other_processes_with_any_threads(root: Path, threads: str) -> None:
    path = root / "scenarios" / "quickstart.toml"
    expected = " ".join(digests(run(fedsgd.load(path, {"rounds": 3}))))
    assert digests_in_a_process(path, threads, **OTHER_PROCESSES[threads]) == expected


def test_thread_setting_of_the_user_is_restored(scenario: Make) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(scenario({"rounds": 1}))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


DAILY_CHOICES: list[dict[str, Any]] = [
    {"uplink.compressor.name": "rand-k", "uplink.error_feedback": "none"},
    {"server.optimizer.name": "momentum", "server.weighting": "uniform"},
    {"client.optimizer.name": "nesterov", "client.optimizer.clip_norm": 1.0, "client.optimizer.schedule.name": "step"},
]
OTHER_CHOICES: list[dict[str, Any]] = [
    {"uplink.compressor.values": "ternary"},
    {"uplink.compressor.name": "rand-k", "uplink.compressor.scaled": False},
    {"uplink.error_feedback": "none"},
    {"downlink.compressor.values": "bfloat16"},
    {"data.partition.name": "shards", "data.partition.clients": 8},
    {"client.steps": 1, "client.batch_size": "full"},
    {"model.name": "softmax"},
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    nightly_unless(DAILY_CHOICES.__contains__, DAILY_CHOICES + OTHER_CHOICES),
    ids=lambda s: ",".join(f"{k}={v}" for k, v in s.items()),
)
def test_digests_repeat_for_every_choice(scenario: Make, settings: dict[str, Any]) -> None:
    assert digests(run(scenario(settings))) == digests(run(scenario(settings)))


# ------------------------------------------------------------------------------------------------------------------ bad endings


@pytest.mark.slow
def test_failed_run_leaves_a_finished_ledger(scenario: Make, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"round \d+, client \d+"):
        run(
            scenario({"client.optimizer.lr": 1e8, "client.optimizer.name": "sgd", "rounds": 50, "model.hidden": [8, 8]}),
            out=tmp_path / "r",
        )
    ledger = pd.read_parquet(tmp_path / "r" / "ledger.parquet")
    assert (tmp_path / "r" / "ledger.parquet").is_file()
    assert len(ledger) >= 8
    assert not (tmp_path / "r" / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.nightly
def test_killed_run_leaves_a_readable_ledger(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code = f"import fedsgd; fedsgd.run(fedsgd.load({str(root / 'scenarios' / 'quickstart.toml')!r}, {{'rounds': 3000}}), out={str(out)!r})"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 120
        while len(list((out / "ledger.parquet").glob("segment-*.parquet"))) < 2:
            assert process.poll() is None, "the run ended by itself"
            assert time.monotonic() < deadline, "no second segment in two minutes"
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    ledger = pd.read_parquet(out / "ledger.parquet")
    rounds = pd.read_parquet(out / "rounds.parquet")
    assert (ledger.n_bytes == ledger.header_bytes + ledger.index_bytes + ledger.value_bytes + ledger.side_bytes).all()
    assert ledger["round"].unique().tolist() == list(range(1, ledger["round"].max() + 1))
    assert len(ledger) == 30 * ledger["round"].max()
    assert rounds["round"].tolist() == list(range(1, len(rounds) + 1))
    assert 0 < len(rounds) <= ledger["round"].max(), "the kill may come between the two writes"


@pytest.mark.slow
@pytest.mark.parametrize("over", ["steps", "local-steps"])
def test_learning_rate_that_changes_within_a_round_is_recorded_as_none(scenario: Make, over: str) -> None:
    result = run(scenario({"client.optimizer.schedule": {"name": "cosine"}, "client.optimizer.schedule_over": over}))
    assert [r.lr for r in result.history] == [None] * 3


@pytest.mark.slow
def test_learning_rate_of_each_round_is_recorded(scenario: Make) -> None:
    history = run(
        scenario({"client.optimizer.lr": 0.4, "client.optimizer.schedule": {"name": "exponential", "gamma": 0.5}})
    ).history
    assert [r.lr for r in history] == [0.4, 0.2, 0.1]


@pytest.mark.slow
def test_evaluation_uses_the_decoded_model_and_parameters_are_exact(scenario: Make) -> None:
    result = run(scenario({"downlink.compressor.values": "bfloat16"}))
    experiment = build_experiment(scenario())
    decoded = encode_values(result.parameters, "bfloat16")[1]
    assert decoded.tobytes() != result.parameters.tobytes()
    assert experiment.engine.evaluate(decoded, experiment.dataset.test).means == result.summary["final_metrics"]
    assert experiment.engine.evaluate(result.parameters, experiment.dataset.test).means != result.summary["final_metrics"]


def test_data_folder_comes_from_the_environment(scenario: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSGD_DATA", str(tmp_path))
    with pytest.raises(DataError, match=str(tmp_path / "mnist")):
        run(scenario({"data.name": "mnist"}))
