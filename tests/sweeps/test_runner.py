"""Tests of `sweep`: its arguments, cells that fail, and callbacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner

import fedsgd
from fedsgd.cli import main
from fedsgd.compression.operators.topk import TopK
from fedsgd.errors import ScenarioError
from fedsgd.scenario.scenario import Scenario
from fedsgd.sweeps import Sweep, executor
from tests.sweeps.helpers import SHORT_RUN, replace_outcomes, run_command, states, summary_stamps


@pytest.mark.parametrize(
    "options",
    [{"seeds": 0}, {"execution": fedsgd.SweepConfig(jobs=0)}, {"execution": fedsgd.SweepConfig(jobs=True)}],
    ids=["seeds", "jobs", "boolean"],
)
def test_wrong_number_of_seeds_or_jobs_is_an_error(short_scenario: Scenario, options: dict[str, Any]) -> None:
    with pytest.raises(ScenarioError, match="expected a whole number from 1 to "):
        fedsgd.sweep(short_scenario, out="never", **options)


@pytest.mark.parametrize("time", ["6h", True, -1.0, float("nan")])
def test_wrong_time_of_a_sweep_is_an_error(short_scenario: Scenario, time: Any) -> None:
    with pytest.raises(ScenarioError, match=r"^stop_after: got .*, expected seconds, 0 or more$"):
        fedsgd.sweep(short_scenario, out="never", execution=fedsgd.SweepConfig(stop_after=time))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"callbacks": fedsgd.SweepCallbacks(on_round=cast("Any", 5))}, "callbacks.on_round: got 5, expected a function"),
        ({"execution": fedsgd.SweepConfig(overwrite=cast("Any", 1))}, "execution.overwrite: got 1, expected True or False"),
        ({"execution": fedsgd.SweepConfig(launcher=cast("Any", 5))}, 'launcher: got 5, expected one of: "local", "slurm"'),
    ],
    ids=["callback", "flag", "launcher"],
)
def test_option_of_another_type_is_an_error(short_scenario: Scenario, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError) as error:
        fedsgd.sweep(short_scenario, out="never", **options)
    assert str(error.value) == message


def test_components_are_values_as_their_tables_are(
    short_scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {"name": "top-k", "density": 0.5, "values": "float32"}
    sweeps = []
    for value in (TopK(0.5), table):
        replace_outcomes(monkeypatch, [executor.CellOutcome(1.0, "RunError", "stopped")])
        sweeps.append(fedsgd.sweep(short_scenario, grid={"uplink.compressor": [value]}, out=tmp_path / str(len(sweeps))))
    assert sweeps[0].cells == sweeps[1].cells
    assert sweeps[0].cells[0].grid == {"uplink.compressor": table}


@pytest.mark.slow
def test_diverging_cell_is_a_result_and_runs_again_on_request(quickstart: Path) -> None:
    arguments = (quickstart, *SHORT_RUN, "--tune", "client.optimizer.lr=1e30,0.05", "--out", "o", "--json")
    first = run_command(*arguments)
    assert first.exit_code == 0, first.output
    cells = json.loads(first.stdout)["cells"]
    assert [(cell["state"], cell["cause"]) for cell in cells] == [("failed", "NonFiniteError"), ("finished", None)]
    assert cells[0]["error"].startswith("round 1, client ")
    assert "1 of 2: quickstart, lr 1e30, seed 0: diverged: round 1" in first.stderr
    comparison = CliRunner().invoke(main, ["compare", "o", "--target", "0.9", "--json"])
    assert json.loads(first.stdout)["comparison"] == json.loads(comparison.stdout)
    assert json.loads(comparison.stdout)["methods"][0]["tuned"] == {"client.optimizer.lr": 0.05}
    stamps = summary_stamps(Path("o"))
    second = run_command(*arguments)
    assert (second.exit_code, json.loads(second.stdout)["cells"]) == (0, cells)
    assert second.stderr.splitlines() == ["2 cells, 2 of them finished before"]
    third = run_command(*arguments, "--retry-failed")
    assert json.loads(third.stdout)["cells"] == cells
    assert [line.partition(": round")[0] for line in third.stderr.splitlines()] == [
        "2 cells, 1 of them finished before",
        "2 of 2: quickstart, lr 1e30, seed 0: diverged",
    ]
    assert summary_stamps(Path("o")) == stamps


def test_failed_cell_with_another_scenario_runs_again(
    short_scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = [executor.CellOutcome(1.0, "NonFiniteError", "nan"), executor.CellOutcome(1.0, "RunError", "other")]
    replace_outcomes(monkeypatch, outcomes)
    assert fedsgd.sweep(short_scenario, out=tmp_path).cells[0].error == "nan"
    assert fedsgd.sweep(short_scenario, out=tmp_path).cells[0].error == "nan"
    assert fedsgd.sweep(short_scenario.with_settings({"client.batch_size": 7}), out=tmp_path).cells[0].error == "other"


def test_missing_data_in_the_first_cell_ends_the_sweep(quickstart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDSGD_DATA", raising=False)
    result = run_command(quickstart, "--set", "data.name=mnist", "--seeds", "2", "--out", "o")
    assert result.exit_code == 1
    assert "fedsgd: mnist: no data folder is set" in result.stderr
    assert "stored in o" not in result.stderr
    assert not Path("o").exists()
    Path("o").mkdir()
    assert run_command(quickstart, "--set", "data.name=mnist", "--seeds", "2", "--out", "o").exit_code == 1
    assert states(Sweep.read("o")) == ["waiting", "waiting"], "a folder of the user is not removed"


def test_missing_data_in_a_later_cell_is_a_failure_that_runs_again(quickstart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = [
        executor.CellOutcome(1.0, "NonFiniteError", "nan"),
        executor.CellOutcome(1.0, "DataError", "gone"),
        executor.CellOutcome(1.0, "RunError", "x"),
    ]
    replace_outcomes(monkeypatch, outcomes)
    first = run_command(quickstart, "--seeds", "2", "--out", "o")
    assert first.exit_code == 1
    assert "quickstart, seed 1: failed: gone" in first.stdout
    assert "quickstart, seed 0: diverged: nan" in first.stdout
    second = run_command(quickstart, "--seeds", "2", "--out", "o")
    assert "quickstart, seed 1: failed: x" in second.stdout
    assert second.exit_code == 1
    assert run_command(quickstart, "--seeds", "2", "--out", "o").exit_code == 1, "a RunError is stored, and does not run again"


@pytest.mark.slow
def test_round_callback_is_called_with_each_cell(short_scenario: Scenario, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    fedsgd.sweep(
        short_scenario.with_settings({"rounds": 2}),
        out=tmp_path,
        seeds=2,
        callbacks=fedsgd.SweepCallbacks(on_round=lambda cell, record: calls.append((cell.seed, record.round))),
    )
    assert calls == [(0, 1), (0, 2), (1, 1), (1, 2)]
