"""Tests of the folder of a sweep: cells of earlier calls, and folders that are not a sweep's."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import fedsgd
from fedsgd.analysis import load_methods
from fedsgd.errors import FedsgdError, OutputError
from fedsgd.scenario.scenario import Scenario
from fedsgd.storage.run_directory import OVERWRITE_HINT
from fedsgd.sweeps import Cell, Sweep
from tests.flower.user_source import write_rules
from tests.sweeps.helpers import Make, states, summary_stamps


def test_finished_cells_do_not_run_again_when_the_sweep_grows(
    short_scenario: Scenario, tmp_path: Path, run_folders: list[Path]
) -> None:
    def run_sweep(seeds: int, rates: Sequence[float]) -> Sweep:
        run_folders.clear()
        return fedsgd.sweep(short_scenario, tune={"client.optimizer.lr": rates}, seeds=seeds, out=tmp_path / "o")

    assert states(run_sweep(1, [0.1])) == ["finished"]
    stamps = summary_stamps(tmp_path)
    assert states(run_sweep(1, [0.1])) == ["finished"]
    assert not run_folders
    assert len(run_sweep(2, [0.1, 0.2]).cells) == 4
    assert [folder.relative_to(tmp_path / "o").as_posix() for folder in run_folders] == [
        "quickstart/lr-0.2/seed-0",
        "quickstart/lr-0.1/seed-1",
        "quickstart/lr-0.2/seed-1",
    ]
    assert stamps.items() <= summary_stamps(tmp_path).items()


def test_finished_cell_that_is_no_longer_planned_stays_listed(
    short_scenario: Scenario, tmp_path: Path, run_folders: list[Path]
) -> None:
    def run_sweep(**options: Any) -> Sweep:
        return fedsgd.sweep(short_scenario, out=tmp_path / "o", **options)

    run_sweep(methods={"a": {}, "b": {"client.optimizer.lr": 0.5}}, tune={"client.batch_size": [5]})
    (tmp_path / "o" / "a" / "batch-size-5" / "seed-0" / "summary.json").unlink()
    sweep = run_sweep(methods={"c": {"rounds": 2}}, grid={"client.optimizer.lr": [0.2]})
    assert [(cell.label, cell.state) for cell in sweep.cells] == [("c, lr 0.2", "finished"), ("b", "finished")]
    assert (sweep.grid, sweep.tuned) == (("client.optimizer.lr",), ("client.batch_size",))
    assert Sweep.read(tmp_path / "o") == sweep


def test_other_tuned_settings_of_a_method_are_refused(
    short_scenario: Scenario, tmp_path: Path, run_folders: list[Path]
) -> None:
    def run_sweep(**tune: Any) -> Sweep:
        return fedsgd.sweep(short_scenario, methods={"a": {}}, tune={f"client.{key}": tune[key] for key in tune}, out=tmp_path)

    run_sweep()
    before = (tmp_path / "sweep.json").read_text()
    with pytest.raises(OutputError, match=r"with tuned settings none, .* have tuned settings client\.batch_size, so"):
        run_sweep(batch_size=[5, 10])
    assert (tmp_path / "sweep.json").read_text() == before


def test_cell_tuned_on_test_examples_is_refused_or_continued_without_validation(
    short_scenario: Scenario, tmp_path: Path, run_folders: list[Path]
) -> None:
    """Cells of earlier releases have no validation split."""
    tune: dict[str, list[Any]] = {"client.optimizer.lr": [0.1, 0.2]}
    without = short_scenario.with_settings({"evaluation.validation": 0})
    fedsgd.sweep(without, tune={"client.optimizer.lr": [0.1]}, out=tmp_path)
    run_folders.clear()
    with pytest.raises(OutputError) as caught:
        fedsgd.sweep(short_scenario, tune=tune, out=tmp_path)
    assert str(caught.value).endswith(
        "is finished with another scenario: evaluation.validation is unset there, but 0.1 in this sweep; set "
        f"evaluation.validation = 0 to continue as before, choose another folder with --out, or {OVERWRITE_HINT}"
    )
    assert not run_folders
    assert states(fedsgd.sweep(without, tune=tune, out=tmp_path)) == ["finished", "finished"]
    assert [folder.parent.name for folder in run_folders] == ["lr-0.2"]


def test_unfinished_cell_runs_again(short_scenario: Scenario, tmp_path: Path, run_folders: list[Path]) -> None:
    folder = tmp_path / "o" / "quickstart" / "seed-0"
    sweep = fedsgd.sweep(short_scenario, out=tmp_path / "o")
    (folder / "summary.json").unlink()
    (folder / "ledger.parquet").mkdir()
    (folder / "ledger.parquet" / "segment-000000.parquet").touch()
    assert fedsgd.sweep(short_scenario, out=tmp_path / "o") == sweep
    assert run_folders == [folder, folder]


def test_finished_cell_with_another_scenario_is_an_error_before_any_run(
    short_scenario: Scenario, tmp_path: Path, run_folders: list[Path]
) -> None:
    fedsgd.sweep(short_scenario, out=tmp_path, seeds=2)
    stamps, text = summary_stamps(tmp_path), (tmp_path / "sweep.json").read_text()
    run_folders.clear()
    other_scenario = short_scenario.with_settings({"client.batch_size": 7})
    with pytest.raises(OutputError) as caught:
        fedsgd.sweep(other_scenario, out=tmp_path, seeds=3)
    for words in (
        "seed-0",
        'cell "quickstart, seed 0"',
        "client.batch_size is 10 there, but 7 in this sweep",
        "or pass --overwrite",
    ):
        assert words in str(caught.value)
    assert (run_folders, summary_stamps(tmp_path), (tmp_path / "sweep.json").read_text()) == ([], stamps, text)
    assert (
        states(fedsgd.sweep(other_scenario, out=tmp_path, seeds=3, execution=fedsgd.SweepConfig(overwrite=True)))
        == ["finished"] * 3
    )
    assert len(run_folders) == 3
    run_folders.clear()
    fedsgd.sweep(other_scenario, out=tmp_path, seeds=3, execution=fedsgd.SweepConfig(overwrite=True))
    assert not run_folders, "a cell that is finished with the same scenario does not run again"


@pytest.mark.slow
def test_finished_cell_with_an_edited_class_is_an_error(scenario: Make, tmp_path: Path, user_folder: Path) -> None:
    compressor = write_rules(user_folder, "swept_rules")["uplink.compressor"]
    out, settings = tmp_path / "o", {"rounds": 1, "uplink.compressor": compressor}

    def run_sweep(seeds: int, **options: Any) -> Sweep:
        for name in [name for name in sys.modules if name.startswith("swept_rules")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        return fedsgd.sweep(scenario(settings), seeds=seeds, out=out, execution=fedsgd.SweepConfig(**options))

    sweep = run_sweep(1)
    summary = sweep.read_summary(sweep.cells[0])
    assert summary is not None
    assert [*summary["user_code"]] == [compressor]
    stamps = summary_stamps(out)
    assert states(run_sweep(2)) == ["finished"] * 2
    assert stamps.items() <= summary_stamps(out).items(), "the class is unchanged, so the first seed does not run again"
    assert len(load_methods([out])[0].runs) == 2
    with (user_folder / "swept_rules_helper.py").open("a") as file:
        file.write("FACTOR = 4\n")
    stamps = summary_stamps(out)
    with pytest.raises(OutputError) as caught:
        run_sweep(3)
    digest = summary["user_code"][compressor]
    start = (
        f'seed-0: cell "{sweep.cells[0]}" is finished with another source of {compressor}: its sha256 is {digest} there, but '
    )
    assert start in str(caught.value)
    assert str(caught.value).endswith(f"; choose another folder with --out, or {OVERWRITE_HINT}")
    assert summary_stamps(out) == stamps
    again = run_sweep(2, overwrite=True)
    assert [(cell.state, cell.error) for cell in again.cells] == [("finished", None)] * 2
    assert not stamps.items() & summary_stamps(out).items()
    assert states(run_sweep(2)) == ["finished"] * 2


def test_finished_cell_without_digests_is_kept(
    short_scenario: Scenario, tmp_path: Path, run_folders: list[Path], user_folder: Path
) -> None:
    other_scenario = short_scenario.with_settings(write_rules(user_folder, "earlier_rules"))
    fedsgd.sweep(other_scenario, out=tmp_path / "o")  # the fixture writes the summary of an earlier release
    assert states(fedsgd.sweep(other_scenario, out=tmp_path / "o")) == ["finished"]
    assert len(run_folders) == 1


def test_new_key_is_another_scenario(short_scenario: Scenario, tmp_path: Path, run_folders: list[Path]) -> None:
    fedsgd.sweep(short_scenario, out=tmp_path)
    with pytest.raises(OutputError, match=r"stop\.target_accuracy is unset there, but 0\.5 in this sweep"):
        fedsgd.sweep(short_scenario.with_settings({"stop.target_accuracy": 0.5}), out=tmp_path)


def test_engine_auto_equals_the_engine_that_it_selected(
    short_scenario: Scenario, tmp_path: Path, run_folders: list[Path]
) -> None:
    fedsgd.sweep(short_scenario, out=tmp_path)  # the fixture writes the engine "captured"
    assert states(fedsgd.sweep(short_scenario.with_settings({"engine.name": "captured"}), out=tmp_path)) == ["finished"]
    for settings in ({"engine.name": "sequential"}, {"engine.update": "exact"}):
        with pytest.raises(OutputError, match="engine"):
            fedsgd.sweep(short_scenario.with_settings(settings), out=tmp_path)
    assert len(run_folders) == 1


def test_folder_with_foreign_files_is_an_error(short_scenario: Scenario, tmp_path: Path, run_folders: list[Path]) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OutputError, match=r"not the folder of a sweep: it has no sweep\.json, but thesis\.tex"):
        fedsgd.sweep(short_scenario, out=tmp_path)
    foreign_file = tmp_path / "o" / "quickstart" / "seed-0" / "notes.txt"
    fedsgd.sweep(short_scenario, out=tmp_path / "o")
    (foreign_file.parent / "summary.json").unlink()
    foreign_file.touch()
    with pytest.raises(OutputError, match=r"notes\.txt: no run wrote this"):
        fedsgd.sweep(short_scenario, out=tmp_path / "o")
    (tmp_path / "o" / "sweep.json").write_text("{}")
    with pytest.raises(OutputError, match=r"sweep\.json: not the file of a sweep \(KeyError: 'format'\)"):
        fedsgd.sweep(short_scenario, out=tmp_path / "o")
    (tmp_path / "o" / "sweep.json").write_text('{"format": 2}')
    with pytest.raises(OutputError, match="got format 2, expected 1"):
        Sweep.read(tmp_path / "o")
    assert len(run_folders) == 1


def test_second_sweep_in_a_folder_is_an_error(short_scenario: Scenario, tmp_path: Path, run_folders: list[Path]) -> None:
    def start_second_sweep(sweep: Sweep) -> None:
        with pytest.raises(OutputError, match="another sweep is writing to it"):
            fedsgd.sweep(short_scenario, out=tmp_path)

    fedsgd.sweep(short_scenario, out=tmp_path, callbacks=fedsgd.SweepCallbacks(on_begin=start_second_sweep))
    assert len(run_folders) == 1


def test_file_has_the_states_of_all_cells_after_each_cell(
    short_scenario: Scenario, tmp_path: Path, run_folders: list[Path]
) -> None:
    calls = []

    def on_cell(sweep: Sweep, cell: Cell, seconds: float) -> None:
        assert Sweep.read(tmp_path) == sweep
        calls.append((cell.seed, cell.state, seconds, states(sweep)))

    fedsgd.sweep(short_scenario, out=tmp_path, seeds=2, callbacks=fedsgd.SweepCallbacks(on_cell=on_cell))
    assert calls == [(0, "finished", 1.0, ["finished", "waiting"]), (1, "finished", 1.0, ["finished", "finished"])]
    raw = json.loads((tmp_path / "sweep.json").read_text())
    assert {key: raw[key] for key in raw if key != "cells"} == {"format": 1, "scenario": "quickstart", "tuned": [], "grid": []}
    assert raw["cells"][1] == {
        "folder": "quickstart/seed-1",
        "label": "quickstart",
        "method": "quickstart",
        "grid": {},
        "tuned": {},
        "seed": 1,
        "state": "finished",
        "error": None,
        "cause": None,
    }


def test_folder_that_cannot_be_created_is_an_error_of_fedsgd(short_scenario: Scenario, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FedsgdError, match="choose a folder with --out"):
        fedsgd.sweep(short_scenario, out=tmp_path / "file" / "o")
