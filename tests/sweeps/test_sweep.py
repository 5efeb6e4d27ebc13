"""Sweeps: what is asked, what is run, what is kept, and how they end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result

import fedsgd
from fedsgd.cli import main, terminal
from fedsgd.errors import FedsgdError, OutputError, RunError, ScenarioError
from fedsgd.scenario.scenario import Scenario, load
from fedsgd.sweeps import Cell, Sweep, executor, parse_grids, plan_cells, read_methods
from fedsgd.sweeps.labels import assign_unique_slugs, format_value, shorten_keys, slugify
from fedsgd.sweeps.runner import sweep
from fedsgd.sweeps.settings import check_grids, flatten_table, normalize_methods

TINY = ("--set", "rounds=2", "--set", "client.epochs=1")
METHODS = """
[dense]
uplink = { compressor = "dense", error_feedback = "none" }
["top-k 1 %"]
uplink.compressor = { name = "top-k", density = 0.01 }
uplink.error_feedback = "persist"
"""

Make = Callable[..., Scenario]
Script = Callable[[str, str], subprocess.Popen[str]]


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["sweep", *(str(a) for a in arguments)])


@pytest.fixture
def quickstart(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("m.toml").write_text(METHODS)
    return root / "scenarios" / "quickstart.toml"


@pytest.fixture
def tiny(scenario: Make) -> Scenario:
    return scenario({"rounds": 1})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Cells that take no time: each writes its scenario and a summary. Gives the folders in the order in which they were run."""
    ran: list[Path] = []

    def run_cell(scenario: Scenario, folder: Path, data: object, on_round: object) -> executor.CellOutcome:
        ran.append(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scenario.toml").write_text(scenario.with_settings({"engine.name": "captured"}).to_toml())
        summary = {"best_accuracy": 0.5, "final_accuracy": 0.4, "uplink_bytes": 1200, "downlink_bytes": 34_000}
        (folder / "summary.json").write_text(json.dumps(summary))
        return executor.CellOutcome(1.0)

    monkeypatch.setattr(executor, "run_cell", run_cell)
    return ran


def failing(monkeypatch: pytest.MonkeyPatch, outcomes: Sequence[executor.CellOutcome]) -> None:
    """Cells that end so, one after the other; they leave what a run leaves that broke off."""
    left = iter(outcomes)

    def run_cell(scenario: Scenario, folder: Path, data: object, on_round: object) -> executor.CellOutcome:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scenario.toml").write_text(scenario.to_toml())
        return next(left)

    monkeypatch.setattr(executor, "run_cell", run_cell)


def states(made: Sweep) -> list[str]:
    return [cell.state for cell in made.cells]


def stamps(out: Path) -> dict[str, tuple[int, int]]:
    """Which file each summary is: another one has another inode or time."""
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted(out.rglob("summary.json"))}


# ------------------------------------------------------------------------------------------------------------------------ grids


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a.b=1,2.5", [1, 2.5]),
        ("a.b= x , true,1e-3", ["x", True, 1e-3]),
        ('a.b=["x, y", "z"]', ["x, y", "z"]),
        ("a.b=[[64], [32, 32]]", [[64], [32, 32]]),
        ('a.b=[{ name = "top-k", density = 0.1 }, "dense"]', [{"name": "top-k", "density": 0.1}, "dense"]),
        ('a.b="x","y"', ["x", "y"]),
    ],
)
def test_grids_are_lists_of_values(text: str, values: list[Any]) -> None:
    (parsed,) = parse_grids([text], "--grid").values()
    assert parsed == values
    assert [type(v) for v in parsed] == [type(v) for v in values]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a.b"], "--grid a.b: expected KEY=V1,V2,..., for example"),
        (["=1"], "expected KEY=V1"),
        (["a..b=1"], "expected KEY=V1"),
        (["a=1", "a=2"], "--grid a: given twice"),
        (["a=[1"], "--grid a: not a TOML array"),
        (["a=[64],[32, 32]"], "where values are arrays: [[64], [32, 32]]"),
        (['a={ name = "x", density = 1 }'], "--grid a: got '{ name = \"x\"', expected a=[...], a TOML array"),
    ],
)
def test_bad_grids(texts: list[str], message: str) -> None:
    with pytest.raises(ScenarioError, match=re.escape(message)):
        parse_grids(texts, "--grid")


@pytest.mark.parametrize(
    ("grid", "tune", "message"),
    [
        ({"rounds": []}, {}, "grid rounds: no values"),
        ({"rounds": [1, 2, 1.0]}, {}, "grid rounds: got 1.0 twice"),
        ({}, {"a": ["x", ""]}, "tune a: value 2 is empty"),
        ({"rounds": "12"}, {}, "grid rounds: got '12', expected a list"),
        ({"rounds": [1]}, {"rounds": [2]}, "rounds: is in the grid and tuned too"),
        ({"seed": [1]}, {}, "grid seed: a sweep goes over seeds by itself"),
    ],
)
def test_contradictory_grids(grid: Mapping[str, Any], tune: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=re.escape(message)):
        check_grids(grid, tune)


def test_one_and_true_are_two_values() -> None:
    check_grids({"a": [1, True]}, {})


# ---------------------------------------------------------------------------------------------------------------------- methods


def test_sections_are_gone_into_and_components_replaced() -> None:
    component = {"name": "top-k", "density": 0.1}
    assert flatten_table({"uplink": {"compressor": component, "error_feedback": "persist"}, "rounds": 3}) == {
        "uplink.compressor": component,
        "uplink.error_feedback": "persist",
        "rounds": 3,
    }
    assert flatten_table({"uplink.compressor": component}) == {"uplink.compressor": component}
    assert flatten_table({"client": {"optimizer": {"lr": 0.1}}}) == {"client.optimizer.lr": 0.1}
    assert flatten_table({"model": {"module": "m:f", "arguments": {"width": 3}}}) == {
        "model": {"module": "m:f", "arguments": {"width": 3}}
    }
    partition = {"name": "iid", "clients": 5}
    assert flatten_table({"data": {"name": "digits", "partition": partition}}) == {
        "data.name": "digits",
        "data.partition": partition,
    }


def test_a_method_sets_what_load_would_set(root: Path, quickstart: Path) -> None:
    methods = normalize_methods(read_methods(Path("m.toml")), "")
    base = load(quickstart)
    for cell in plan_cells(base, methods, {}, {}, 1, ""):
        assert cell.scenario == load(quickstart, methods[cell.cell.label])
    dense = plan_cells(
        base, {"dense": {"uplink.compressor": {"name": "dense"}, "uplink.error_feedback": "none"}}, {}, {}, 1, ""
    )
    assert not hasattr(dense[0].scenario.uplink.compressor, "density"), "a component is replaced, not merged into"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "bad.toml: holds no methods"),
        ("rounds = 3", "bad.toml: rounds: expected a table of settings, one for each method, got 3"),
        ("[top-k 1 %]", "bad.toml: not valid TOML"),
        ('[" "]', "bad.toml: [' ']: expected a name"),
        ("[a]\nseed = 3", "bad.toml: [a]: seed: a sweep goes over seeds by itself"),
        ("[a]\nuplnk.error_feedback = 'none'", 'bad.toml: [a]: uplnk: unknown key, did you mean "uplink"?'),
        (
            '[a]\n["b c"]\nuplink.compressor = { name = "top-k", densty = 0.1 }',
            'bad.toml: [b c]: uplink.compressor.densty: unknown key, did you mean "density"?',
        ),
    ],
)
def test_what_is_wrong_with_a_file_of_methods(quickstart: Path, fake: list[Path], text: str, message: str) -> None:
    Path("bad.toml").write_text(text)
    result = command(quickstart, "--methods", "bad.toml", "--out", "o")
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not fake
    assert not Path("o").exists()


def test_a_file_of_methods_that_is_not_there(quickstart: Path) -> None:
    assert (
        'mm.toml: cannot be read (No such file or directory), did you mean "m.toml"?'
        in command(quickstart, "--methods", "mm.toml").stderr
    )


# ------------------------------------------------------------------------------------------------------------------------ cells


def test_values_in_labels() -> None:
    values = (0.001, 1e30, 1e-5, 0.1 + 0.2, True, "x", [64, 32], [], {"name": "top-k", "density": 0.5}, {"a": 1})
    assert [format_value(v) for v in values] == [
        "0.001",
        "1e30",
        "1e-05",
        "0.30000000000000004",
        "true",
        "x",
        "64 32",
        "none",
        "top-k density 0.5",
        "a 1",
    ]


def test_short_names_are_whole_keys_where_they_would_be_the_same() -> None:
    keys = ["uplink.compressor.density", "downlink.compressor.density", "client.optimizer.lr", "x.seed"]
    assert shorten_keys(keys) == {
        "uplink.compressor.density": "uplink.compressor.density",
        "downlink.compressor.density": "downlink.compressor.density",
        "client.optimizer.lr": "lr",
        "x.seed": "x.seed",
    }


def test_slugs() -> None:
    assert slugify("Top-K 1 %, density 0.001") == "top-k-1-density-0.001"
    assert slugify("Ünïcode/..\\x") == "unicode-..-x"
    assert slugify("..") == slugify("β") == "cell"
    assert len(slugify("x" * 300)) < 100
    assert assign_unique_slugs(["A", "a", "a 2", "sweep.json"], ["sweep.json"]) == {
        "A": "a",
        "a": "a-2",
        "a 2": "a-2-2",
        "sweep.json": "sweep.json-2",
    }


def test_cells_are_all_combinations_and_the_first_seed_comes_first(tiny: Scenario) -> None:
    methods = {"top-k": {}, "TOP-K": {"uplink.compressor.density": 0.5}}
    plan = plan_cells(
        tiny.with_settings({"seed": 7}), methods, {"client.batch_size": [5, 10]}, {"client.optimizer.lr": [0.1, 0.2]}, 2, ""
    )
    assert len(plan) == 16
    assert len({one.cell.folder for one in plan}) == 16
    assert [one.cell.seed for one in plan] == [7] * 8 + [8] * 8
    assert {one.cell.label for one in plan[:4]} == {one.cell.label for one in plan}, "all methods before the next value"
    first, last = plan[0], plan[-1]
    assert first.cell.folder == "top-k-batch-size-5/lr-0.1/seed-7"
    assert str(last.cell) == "TOP-K, batch_size 10, lr 0.2, seed 8"
    assert last.cell.folder == "top-k-batch-size-10-2/lr-0.2/seed-8"
    assert (last.cell.method, last.cell.grid, last.cell.tuned) == (
        "TOP-K",
        {"client.batch_size": 10},
        {"client.optimizer.lr": 0.2},
    )
    expected = tiny.with_settings(
        {"uplink.compressor.density": 0.5, "client.batch_size": 10, "client.optimizer.lr": 0.2, "seed": 8}
    )
    assert last.scenario == expected


def test_a_grid_may_make_a_method_whole(tiny: Scenario) -> None:
    """Which alone would lack a key."""
    (one,) = plan_cells(tiny, {"mine": {"data.name": "npz"}}, {"data.path": ["a.npz"]}, {}, 1, "")
    assert one.cell.label == "mine, path a.npz"


def test_two_ways_to_the_same_label_are_refused(tiny: Scenario) -> None:
    methods: dict[str, dict[str, Any]] = {"a": {}, "a, name y": {}}
    with pytest.raises(ScenarioError, match=r'm\.toml: two methods .* "a, name y, name x"'):
        plan_cells(tiny, methods, {"name": ["x", "y, name x"]}, {}, 1, "m.toml: ")


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (
            "uplink.compressor.densty=0.1",
            'cell "quickstart, densty 0.1, seed 0": uplink.compressor.densty: unknown key, did you',
        ),
        ("uplnk.x=1", 'cell "quickstart, x 1, seed 0": uplnk: unknown key, did you mean "uplink"?'),
        ("rounds=2,0", 'cell "quickstart, rounds 0, seed 0": rounds: '),
        ("rounds=2,", "grid rounds: value 2 is empty"),
        ("rounds=2,3,2", "grid rounds: got 2 twice"),
        ("uplink.compressor.name=top-k,sgn", 'compressor.name: got "sgn", did you mean "sign"?'),
    ],
)
def test_a_bad_cell_is_found_before_anything_runs(quickstart: Path, fake: list[Path], grid: str, message: str) -> None:
    result = command(quickstart, "--grid", grid, "--out", "o")
    assert (result.exit_code, fake) == (2, [])
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not Path("o").exists()


@pytest.mark.parametrize("asked", [{"seeds": 0}, {"jobs": 0}, {"jobs": True}])
def test_how_many(tiny: Scenario, asked: dict[str, Any]) -> None:
    with pytest.raises(ScenarioError, match="expected 1 or more"):
        fedsgd.sweep(tiny, out="never", **asked)


# --------------------------------------------------------------------------------------------------------------------- resuming


def test_nothing_is_run_twice_and_more_may_be_asked_for(tiny: Scenario, tmp_path: Path, fake: list[Path]) -> None:
    def again(seeds: int, rates: Sequence[float]) -> Sweep:
        fake.clear()
        return fedsgd.sweep(tiny, tune={"client.optimizer.lr": rates}, seeds=seeds, out=tmp_path / "o")

    assert states(again(1, [0.1])) == ["finished"]
    before = stamps(tmp_path)
    assert states(again(1, [0.1])) == ["finished"]
    assert not fake
    assert len(again(2, [0.1, 0.2]).cells) == 4
    assert [p.relative_to(tmp_path / "o").as_posix() for p in fake] == [
        "quickstart/lr-0.2/seed-0",
        "quickstart/lr-0.1/seed-1",
        "quickstart/lr-0.2/seed-1",
    ]
    assert before.items() <= stamps(tmp_path).items()


def test_cells_no_longer_asked_for_stay_listed_if_they_are_finished(tiny: Scenario, tmp_path: Path, fake: list[Path]) -> None:
    def again(**asked: Any) -> Sweep:
        return fedsgd.sweep(tiny, out=tmp_path / "o", **asked)

    again(methods={"a": {}, "b": {"client.optimizer.lr": 0.5}}, tune={"client.batch_size": [5]})
    (tmp_path / "o" / "a" / "batch-size-5" / "seed-0" / "summary.json").unlink()
    made = again(methods={"c": {"rounds": 2}}, grid={"client.optimizer.lr": [0.2]})
    assert [(cell.label, cell.state) for cell in made.cells] == [("c, lr 0.2", "finished"), ("b", "finished")]
    assert (made.grid, made.tuned) == (("client.optimizer.lr",), ("client.batch_size",))
    assert Sweep.read(tmp_path / "o") == made


def test_a_killed_cell_is_run_anew(tiny: Scenario, tmp_path: Path, fake: list[Path]) -> None:
    folder = tmp_path / "o" / "quickstart" / "seed-0"
    made = fedsgd.sweep(tiny, out=tmp_path / "o")
    (folder / "summary.json").unlink()
    (folder / "ledger.parquet").mkdir()
    (folder / "ledger.parquet" / "segment-000000.parquet").touch()
    assert fedsgd.sweep(tiny, out=tmp_path / "o") == made
    assert fake == [folder, folder]


def test_another_scenario_is_refused_and_nothing_is_run(tiny: Scenario, tmp_path: Path, fake: list[Path]) -> None:
    fedsgd.sweep(tiny, out=tmp_path, seeds=2)
    before, text = stamps(tmp_path), (tmp_path / "sweep.json").read_text()
    fake.clear()
    other = tiny.with_settings({"client.batch_size": 7})
    with pytest.raises(OutputError) as refused:
        fedsgd.sweep(other, out=tmp_path, seeds=3)
    for words in (
        "seed-0",
        'cell "quickstart, seed 0"',
        "client.batch_size is 10 there, and 7 was asked for",
        "or pass --overwrite",
    ):
        assert words in str(refused.value)
    assert (fake, stamps(tmp_path), (tmp_path / "sweep.json").read_text()) == ([], before, text)
    assert states(fedsgd.sweep(other, out=tmp_path, seeds=3, overwrite=True)) == ["finished"] * 3
    assert len(fake) == 3
    fake.clear()
    fedsgd.sweep(other, out=tmp_path, seeds=3, overwrite=True)
    assert not fake, "what is finished as asked is not run anew"


def test_a_key_that_is_gone_or_new_is_another_scenario_too(tiny: Scenario, tmp_path: Path, fake: list[Path]) -> None:
    fedsgd.sweep(tiny, out=tmp_path)
    with pytest.raises(OutputError, match=r"stop\.target_accuracy is unset there, and 0\.5 was asked for"):
        fedsgd.sweep(tiny.with_settings({"stop.target_accuracy": 0.5}), out=tmp_path)


def test_of_the_engine_only_what_auto_resolves_may_differ(tiny: Scenario, tmp_path: Path, fake: list[Path]) -> None:
    fedsgd.sweep(tiny, out=tmp_path)  # captured, as the fake has it
    assert states(fedsgd.sweep(tiny.with_settings({"engine.name": "captured"}), out=tmp_path)) == ["finished"]
    for settings in ({"engine.name": "sequential"}, {"engine.update": "exact"}):
        with pytest.raises(OutputError, match="engine"):
            fedsgd.sweep(tiny.with_settings(settings), out=tmp_path)
    assert len(fake) == 1


def test_a_folder_that_is_no_sweeps_is_left_alone(tiny: Scenario, tmp_path: Path, fake: list[Path]) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OutputError, match=r"holds no sweep\.json \(but thesis\.tex\)"):
        fedsgd.sweep(tiny, out=tmp_path)
    foreign = tmp_path / "o" / "quickstart" / "seed-0" / "notes.txt"
    fedsgd.sweep(tiny, out=tmp_path / "o")
    (foreign.parent / "summary.json").unlink()
    foreign.touch()
    with pytest.raises(OutputError, match=r"notes\.txt: no run wrote this"):
        fedsgd.sweep(tiny, out=tmp_path / "o")
    (tmp_path / "o" / "sweep.json").write_text("{}")
    with pytest.raises(OutputError, match=r"sweep\.json: is not a sweep's \(KeyError: 'format'\)"):
        fedsgd.sweep(tiny, out=tmp_path / "o")
    (tmp_path / "o" / "sweep.json").write_text('{"format": 2}')
    with pytest.raises(OutputError, match="got format 2, expected 1"):
        Sweep.read(tmp_path / "o")
    assert len(fake) == 1


def test_one_sweep_at_a_time(tiny: Scenario, tmp_path: Path, fake: list[Path]) -> None:
    def meanwhile(made: Sweep) -> None:
        with pytest.raises(OutputError, match="another sweep is writing to it"):
            fedsgd.sweep(tiny, out=tmp_path)

    fedsgd.sweep(tiny, out=tmp_path, on_begin=meanwhile)
    assert len(fake) == 1


def test_the_file_says_after_every_cell_what_is_done(tiny: Scenario, tmp_path: Path, fake: list[Path]) -> None:
    seen = []

    def look(made: Sweep, cell: Cell, seconds: float) -> None:
        assert Sweep.read(tmp_path) == made
        seen.append((cell.seed, cell.state, seconds, states(made)))

    fedsgd.sweep(tiny, out=tmp_path, seeds=2, on_cell=look)
    assert seen == [(0, "finished", 1.0, ["finished", "waiting"]), (1, "finished", 1.0, ["finished", "finished"])]
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


# ---------------------------------------------------------------------------------------------------------------------- failing


def test_a_cell_that_diverges_is_a_result(quickstart: Path) -> None:
    arguments = (quickstart, *TINY, "--tune", "client.optimizer.lr=1e30,0.05", "--out", "o", "--json")
    first = command(*arguments)
    assert first.exit_code == 0, first.output
    cells = json.loads(first.stdout)["cells"]
    assert [(c["state"], c["cause"]) for c in cells] == [("failed", "NonFiniteError"), ("finished", None)]
    assert cells[0]["error"].startswith("round 1, client ")
    assert "1 of 2: quickstart, lr 1e30, seed 0: diverged: round 1" in first.stderr
    before = stamps(Path("o"))
    again = command(*arguments)
    assert (again.exit_code, json.loads(again.stdout)["cells"]) == (0, cells)
    assert again.stderr.splitlines() == ["2 cells, 2 of them finished before"]
    retried = command(*arguments, "--retry-failed")
    assert json.loads(retried.stdout)["cells"] == cells
    assert [line.partition(": round")[0] for line in retried.stderr.splitlines()] == [
        "2 cells, 1 of them finished before",
        "2 of 2: quickstart, lr 1e30, seed 0: diverged",
    ]
    assert stamps(Path("o")) == before


def test_a_failed_cell_is_run_again_if_it_is_another_one(
    tiny: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, [executor.CellOutcome(1.0, "NonFiniteError", "nan"), executor.CellOutcome(1.0, "RunError", "other")])
    assert fedsgd.sweep(tiny, out=tmp_path).cells[0].error == "nan"
    assert fedsgd.sweep(tiny, out=tmp_path).cells[0].error == "nan"
    assert fedsgd.sweep(tiny.with_settings({"client.batch_size": 7}), out=tmp_path).cells[0].error == "other"


def test_what_is_not_there_ends_the_sweep_before_anything_is_learnt(quickstart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDSGD_DATA", raising=False)
    result = command(quickstart, "--set", "data.name=mnist", "--seeds", "2", "--out", "o")
    assert result.exit_code == 1
    assert "fedsgd: mnist: no folder given" in result.stderr
    assert "0 of 2 cells are finished and stored in o" in result.stderr
    assert states(Sweep.read("o")) == ["waiting", "waiting"]


def test_and_afterwards_is_a_failure_of_that_cell_which_is_tried_again(
    quickstart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = executor.CellOutcome(1.0, "DataError", "gone")
    failing(monkeypatch, [executor.CellOutcome(1.0, "NonFiniteError", "nan"), bad, executor.CellOutcome(1.0, "RunError", "x")])
    result = command(quickstart, "--seeds", "2", "--out", "o")
    assert result.exit_code == 1
    assert "quickstart, seed 1: failed: gone" in result.stdout
    assert "quickstart, seed 0: diverged: nan" in result.stdout
    again = command(quickstart, "--seeds", "2", "--out", "o")
    assert "quickstart, seed 1: failed: x" in again.stdout
    assert again.exit_code == 1
    assert command(quickstart, "--seeds", "2", "--out", "o").exit_code == 1, "which is not forgotten, and not run again"


def test_which_errors_are_outcomes(tiny: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OwnError(RunError):
        """Somebody's."""

    def raising(error: Exception) -> executor.CellOutcome:
        def run(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr("fedsgd.experiment.runner.run", run)
        return executor.run_cell(tiny, tmp_path, None)

    assert raising(OwnError(3, 4, "x")).cause == "RunError"
    assert raising(fedsgd.WireError(3, "x")).to_error().args == ("byte 3: x",)
    assert type(raising(fedsgd.DataError("x")).to_error()) is fedsgd.DataError
    with pytest.raises(OutputError):
        raising(OutputError("full"))
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())


# ------------------------------------------------------------------------------------------------------------------ in processes


def test_jobs_change_nothing(tiny: Scenario, tmp_path: Path) -> None:
    methods = {"top-k": {}, "nothing left out": {"uplink": {"compressor": "dense", "error_feedback": "none"}}}
    one, two = (fedsgd.sweep(tiny, methods=methods, seeds=2, jobs=n, out=tmp_path / str(n)) for n in (1, 2))
    assert one.cells == two.cells
    for cell in one.cells:
        assert cell.state == "finished"
        first, second = one.read_summary(cell), two.read_summary(cell)
        assert first is not None
        assert second is not None
        for digest in ("params_sha256", "ledger_sha256"):
            assert first[digest] == second[digest]
        alone = fedsgd.run(tmp_path / "2" / cell.folder / "scenario.toml").summary if cell is one.cells[-1] else first
        assert alone["params_sha256"] == second["params_sha256"]


def test_errors_come_back_from_processes(tiny: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDSGD_DATA", raising=False)
    with pytest.raises(fedsgd.DataError, match="no folder given"):
        fedsgd.sweep(tiny.with_settings({"data.name": "mnist"}), seeds=2, jobs=2, out=tmp_path)
    made = fedsgd.sweep(tiny.with_settings({"client.optimizer.lr": 1e30}), jobs=2, out=tmp_path / "o")
    assert made.cells[0].diverged


SCRIPT = """
    import sys, time
    from pathlib import Path

    import numpy as np
    from torch import nn
    import fedsgd

    def make():
        (Path.cwd() / f"began-{{__import__('os').getpid()}}").touch()
        {body}
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def begin():
        base = fedsgd.load({scenario!r}, {{"rounds": 1, "model": {{"module": "slow:make"}}}})
        fedsgd.sweep(base, seeds=4, jobs=2, out="o")
"""


@pytest.fixture
def script(quickstart: Path) -> Iterator[Script]:
    """script(body, end): a script that sweeps, in a session of its own, whose model is made by `body`. Nothing is left of it."""
    begun = []

    def begin(body: str, end: str) -> subprocess.Popen[str]:
        text = textwrap.dedent(SCRIPT).format(body=body, scenario=str(quickstart))
        Path("slow.py").write_text(text + textwrap.dedent(end))
        pipes: Any = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        begun.append(subprocess.Popen([sys.executable, "slow.py"], start_new_session=True, **pipes))
        return begun[-1]

    yield begin
    for process in begun:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)


SLEEP = """
    try:
        time.sleep(600)
    except BaseException:
        Path("heard").touch()
        raise
"""
GUARDED = """
    if __name__ == "__main__":
        begin()
"""


def began(n: int) -> list[psutil.Process]:
    """The processes of cells, once there are so many."""
    for _ in range(1200):
        found = [int(path.name.removeprefix("began-")) for path in Path.cwd().glob("began-*")]
        if len(found) >= n:
            return [psutil.Process(pid) for pid in found]
        time.sleep(0.05)
    raise AssertionError("no cell ever began")


def gone(them: Sequence[psutil.Process]) -> bool:
    return not psutil.wait_procs(them, timeout=20)[1]


def test_ctrl_c_in_a_terminal_leaves_no_process(script: Script) -> None:
    sweep = script(SLEEP, GUARDED)
    workers = began(2)
    os.killpg(sweep.pid, signal.SIGINT)  # all of them get it, as from a terminal
    _, errors = sweep.communicate(timeout=30)
    assert gone(workers)
    assert "KeyboardInterrupt" in errors
    assert not Path("heard").exists(), "processes of cells are deaf to it"
    assert sweep.returncode in (130, -signal.SIGINT)
    assert states(Sweep.read("o")) == ["waiting"] * 4


def test_processes_of_a_sweep_that_is_killed_end(script: Script) -> None:
    sweep = script(SLEEP, GUARDED)
    workers = began(2)
    sweep.kill()
    sweep.communicate(timeout=30)
    assert gone(workers)


def test_a_process_that_is_killed_is_one_clean_error(script: Script) -> None:
    body = "__import__('os').kill(__import__('os').getpid(), 9)"
    sweep = script(
        body,
        """
        if __name__ == "__main__":
            try:
                begin()
            except fedsgd.FedsgdError as error:
                print(type(error).__name__, error)
        """,
    )
    said, errors = sweep.communicate(timeout=60)
    assert said == "FedsgdError a process of the sweep was killed, perhaps for want of memory: try fewer --jobs\n", errors


def test_a_script_without_its_guard_is_told_so(script: Script) -> None:
    sweep = script("pass", "begin()\n")
    _, errors = sweep.communicate(timeout=60)
    assert errors.splitlines()[-1].startswith("fedsgd.errors.ScenarioError: jobs: each process imports the script")
    assert errors.count("Traceback") == 1


# -------------------------------------------------------------------------------------------------------------- the command line


def test_the_command_shows_a_table_and_a_line_a_cell(quickstart: Path, fake: list[Path]) -> None:
    arguments = (quickstart, *TINY, "--methods", "m.toml", "--grid", "rounds=1,2", "--tune", "client.optimizer.lr=0.1,0.2")
    result = command(*arguments, "--seeds", "3", "--seed", "5")
    assert result.exit_code == 0, result.output
    assert len(fake) == 24
    lines = result.stderr.splitlines()
    assert lines[0] == "24 cells"
    assert lines[2] == "2 of 24: dense, rounds 2, lr 0.1, seed 5: accuracy 0.4000, up 1.2 kB, down 34 kB, 1.0 s"
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "top-k 1 %, rounds 2, lr 0.2 3 0.5000 1.2 kB 34 kB" in rows
    assert rows[-2:] == ["written to runs/quickstart-sweep", "to compare the methods: fedsgd compare runs/quickstart-sweep"]
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    made = Sweep.read("runs/quickstart-sweep")
    assert (made.grid, made.tuned) == (("rounds",), ("client.optimizer.lr",))
    again = command(*arguments, "--seeds", "3", "--seed", "5")
    assert again.stderr.splitlines() == ["24 cells, 24 of them finished before"]
    assert again.stdout == result.stdout


def test_json_is_the_file_and_all_there_is_on_standard_output(quickstart: Path, fake: list[Path]) -> None:
    result = command(quickstart, "--seeds", "2", "--out", "o", "--json", "--quiet")
    assert (result.stdout, result.stderr) == (Path("o/sweep.json").read_text(), "")
    assert len(json.loads(result.stdout)["cells"]) == 2


def test_an_interrupted_sweep_says_what_is_kept(quickstart: Path, fake: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    cell = executor.run_cell

    def interrupted(scenario: Scenario, *rest: Any) -> executor.CellOutcome:
        if scenario.seed == 1:
            raise KeyboardInterrupt
        return cell(scenario, *rest)

    monkeypatch.setattr(executor, "run_cell", interrupted)
    result = command(quickstart, "--seeds", "3", "--out", "o")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-2:] == [
        "fedsgd: 1 of 3 cells are finished and stored in o; repeat the command to run the others",
        "fedsgd: interrupted",
    ]


def test_a_refused_sweep_is_status_two(quickstart: Path, fake: list[Path]) -> None:
    assert command(quickstart, "--out", "o").exit_code == 0
    result = command(quickstart, "--set", "rounds=3", "--out", "o")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "rounds is 40 there, and 3 was asked for" in line
    assert command(quickstart, "--set", "rounds=3", "--out", "o", "--overwrite").exit_code == 0


def test_more_jobs_than_cores_are_remarked_on(quickstart: Path, fake: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "in_processes", lambda plan, out, data, jobs: executor.run_sequentially(plan, out, data, None))
    assert "1000 jobs share" in command(quickstart, "--jobs", "1000", "--out", "o").stderr
    assert command(quickstart, "--jobs", "1000", "--out", "o", "--quiet").stderr == ""


def test_brackets_in_labels_are_only_brackets(quickstart: Path, fake: list[Path]) -> None:
    Path("b.toml").write_text('["a [bold]b"]\n["[/] c"]')
    result = command(quickstart, "--methods", "b.toml", "--out", "o")
    assert "a [bold]b " in result.stdout
    assert "[/] c " in result.stdout
    assert "1 of 2: a [bold]b, seed 0: accuracy" in result.stderr


def test_a_terminal_gets_a_bar(
    tiny: Scenario, tmp_path: Path, fake: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", "120")):
        monkeypatch.setenv(name, value)
    with terminal.show_sweep_progress(quiet=False) as told:
        fedsgd.sweep(tiny, methods={"a [b]": {}}, seeds=2, out=tmp_path, **told._asdict())
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert "2 cells" in text
    assert "cell 2/2" in text
    assert "a [b], seed 1: accuracy 0.4000, up 1.2 kB, down 34 kB, 1.0 s" in text


def test_rounds_are_told_of_with_one_job(tiny: Scenario, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    fedsgd.sweep(
        tiny.with_settings({"rounds": 2}),
        out=tmp_path,
        seeds=2,
        on_round=lambda cell, record: told.append((cell.seed, record.round)),
    )
    assert told == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_a_wrong_cell_is_refused_before_torch_is_imported(quickstart: Path) -> None:
    code = f"""
import sys
from fedsgd.cli import main
try:
    main(["sweep", {str(quickstart)!r}, "--grid", "rounds=1,0"])
except SystemExit as status:
    assert status.code == 2
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_all_errors_are_ours(tiny: Scenario, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FedsgdError, match="choose a folder with --out"):
        fedsgd.sweep(tiny, out=tmp_path / "file" / "o")
