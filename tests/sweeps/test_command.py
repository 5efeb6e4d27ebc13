"""Tests of `fedsgd sweep` on the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fedsgd
from fedsgd.cli import terminal
from fedsgd.scenario.scenario import Scenario
from fedsgd.sweeps import Sweep, executor
from tests.sweeps.helpers import SHORT_RUN, run_command, states


@pytest.mark.slow
def test_command_prints_a_table_and_a_line_for_each_cell(quickstart: Path, run_folders: list[Path]) -> None:
    arguments = (quickstart, *SHORT_RUN, "--methods", "m.toml", "--grid", "rounds=1,2", "--tune", "client.optimizer.lr=0.1,0.2")
    first = run_command(*arguments, "--seeds", "3", "--seed", "5")
    assert first.exit_code == 0, first.output
    assert len(run_folders) == 24
    lines = first.stderr.splitlines()
    assert lines[0] == "24 cells"
    assert lines[2] == "2 of 24: dense, rounds 2, lr 0.1, seed 5: accuracy 0.4000, up 1.2 kB, down 34 kB, 1.0 s"
    rows = [" ".join(line.split()) for line in first.stdout.splitlines()]
    assert "top-k 1 %, rounds 2, lr 0.2 3 0.5000 1.2 kB 34 kB" in rows
    assert rows[-3] == "medians over the finished seeds of each row"
    assert rows[-2:] == ["written to runs/quickstart-sweep", "to compare the methods: fedsgd compare runs/quickstart-sweep"]
    assert max(len(line) for line in first.stdout.splitlines()) <= 80
    sweep = Sweep.read("runs/quickstart-sweep")
    assert (sweep.grid, sweep.tuned) == (("rounds",), ("client.optimizer.lr",))
    second = run_command(*arguments, "--seeds", "3", "--seed", "5")
    assert second.stderr.splitlines()[:-1] == ["24 cells, 24 of them finished before"]
    assert second.stderr.splitlines()[-1].startswith("fedsgd: the methods cannot be compared: "), "the fixture writes no tables"
    assert second.stdout == first.stdout


def test_json_output_has_the_file_and_a_comparison_and_nothing_else(quickstart: Path, run_folders: list[Path]) -> None:
    result = run_command(quickstart, "--seeds", "2", "--out", "o", "--json", "--quiet")
    contents = json.loads(result.stdout)
    assert (contents, result.stderr) == (json.loads(Path("o/sweep.json").read_text()) | {"comparison": None}, "")
    assert len(contents["cells"]) == 2


@pytest.mark.slow
def test_sweep_whose_runs_cannot_be_compared_says_why(quickstart: Path) -> None:
    arguments = (quickstart, *SHORT_RUN, "--seeds", "3", "--out", "o", "--json", "--quiet")
    run_command(*arguments)
    for seed in (0, 1, 2):
        path = Path(f"o/quickstart/seed-{seed}/summary.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"user_code": {"mine:Rule": str(seed)}}))
    result = run_command(*arguments)
    assert json.loads(result.stdout)["comparison"] is None
    problem = "o/quickstart/seed-0 and o/quickstart/seed-1 have the same method, but different sources of mine:Rule"
    assert result.stderr.startswith(f"fedsgd: the methods cannot be compared: {problem} (")


def test_interrupted_sweep_prints_the_number_of_finished_cells(
    quickstart: Path, run_folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_cell = executor.run_cell

    def interrupt_second_cell(scenario: Scenario, *arguments: Any, **settings: Any) -> executor.CellOutcome:
        if scenario.seed == 1:
            raise KeyboardInterrupt
        return run_cell(scenario, *arguments, **settings)

    monkeypatch.setattr(executor, "run_cell", interrupt_second_cell)
    result = run_command(quickstart, "--seeds", "3", "--out", "o")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-2:] == [
        "fedsgd: 1 of 3 cells are finished and stored in o; repeat the command to run the others",
        "fedsgd: interrupted",
    ]


@pytest.mark.slow
def test_sweep_whose_time_is_over_prints_the_cells_that_were_not_run(quickstart: Path) -> None:
    command = (quickstart, *SHORT_RUN, "--seeds", "2", "--out", "o", "--quiet")
    result = run_command(*command, "--stop-after", "0h")
    assert result.exit_code == 0
    assert [f"quickstart, seed {seed}: not run" for seed in (0, 1)] == result.stdout.splitlines()[-4:-2]
    assert not (Path("o") / "quickstart").exists()
    result = run_command(*command, "--stop-after", "6h")
    assert (result.exit_code, states(Sweep.read("o")), "not run" in result.stdout) == (0, ["finished"] * 2, False)
    result = run_command(*command, "--stop-after", "six")
    assert result.exit_code == 2
    assert 'expected a time such as "50 ms"' in result.stderr


def test_sweep_with_another_scenario_has_exit_status_two(quickstart: Path, run_folders: list[Path]) -> None:
    assert run_command(quickstart, "--out", "o").exit_code == 0
    result = run_command(quickstart, "--set", "rounds=3", "--out", "o")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "rounds is 40 there, but 3 in this sweep" in line
    assert run_command(quickstart, "--set", "rounds=3", "--out", "o", "--overwrite").exit_code == 0


def test_more_jobs_than_cores_print_a_remark(
    quickstart: Path, run_folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "fedsgd.sweeps.runner.run_in_processes", lambda plan, out, run, jobs: executor.run_sequentially(plan, out, run, None)
    )
    assert "1000 jobs share" in run_command(quickstart, "--jobs", "1000", "--out", "o").stderr
    assert run_command(quickstart, "--jobs", "1000", "--out", "o", "--quiet").stderr == ""


def test_brackets_in_labels_are_not_markup(quickstart: Path, run_folders: list[Path]) -> None:
    Path("b.toml").write_text('["a [bold]b"]\n["[/] c"]')
    result = run_command(quickstart, "--methods", "b.toml", "--out", "o")
    assert "a [bold]b " in result.stdout
    assert "[/] c " in result.stdout
    assert "1 of 2: a [bold]b, seed 0: accuracy" in result.stderr


def test_terminal_shows_a_progress_bar(
    short_scenario: Scenario,
    tmp_path: Path,
    run_folders: list[Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", "120")):
        monkeypatch.setenv(name, value)
    with terminal.show_sweep_progress(quiet=False) as callbacks:
        fedsgd.sweep(short_scenario, methods={"a [b]": {}}, seeds=2, out=tmp_path, callbacks=callbacks)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert "2 cells" in text
    assert "cell 2/2" in text
    assert "a [b], seed 1: accuracy 0.4000, up 1.2 kB, down 34 kB, 1.0 s" in text


@pytest.mark.slow
def test_invalid_cell_is_an_error_before_torch_is_imported(quickstart: Path) -> None:
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
