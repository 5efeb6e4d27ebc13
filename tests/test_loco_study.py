"""Script of the study of DiLoCo and its relatives: the learning rate that it selects, and cells that were not run."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from fedsgd.sweeps import Cell, Sweep
from tests.scripts import load_script


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return load_script("loco/study.py")


def make_sweep(folder: Path, losses: dict[float, float | None], state: str = "finished") -> Sweep:
    cells = []
    for rate, loss in losses.items():
        (folder / str(rate)).mkdir()
        (folder / str(rate) / "summary.json").write_text(json.dumps({"best": {"value": loss}}))
        cells.append(Cell(str(rate), "m", "m", {}, {"lr": rate}, 0, state))  # type: ignore[arg-type]
    return Sweep(folder, "loco", ("lr",), (), tuple(cells))


def test_study_selects_the_learning_rate_with_the_lowest_loss(study: ModuleType, tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, {3e-4: 2.0, 1e-3: 1.8, 3e-3: None})
    assert study.select_learning_rate(sweep, "lr") == 1e-3
    assert [study.describe(sweep, cell).rpartition(": ")[2] for cell in sweep.cells] == [
        "loss 2.0000",
        "loss 1.8000",
        "loss inf",
    ]


def test_study_selects_nothing_before_all_cells_have_run(study: ModuleType, tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, {3e-4: 2.0, 1e-3: 1.8}, "waiting")
    assert study.select_learning_rate(sweep, "lr") is None
    assert study.describe(sweep, sweep.cells[0]).endswith(": not run")


@pytest.mark.examples
def test_study_without_time_names_every_method(
    study: ModuleType, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study.run_study(data_folder, tmp_path, hours=0.0, jobs=1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 * (3 + 1)
    assert all(line.endswith(": not run") for line in lines)
