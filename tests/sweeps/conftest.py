"""Fixtures of the tests of sweeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedsgd.scenario.scenario import Scenario
from fedsgd.sweeps import executor
from tests.sweeps.helpers import Make

METHODS = """
[dense]
uplink = { compressor = "dense", error_feedback = "none" }
["top-k 1 %"]
uplink.compressor = { name = "top-k", density = 0.01 }
uplink.error_feedback = "persist"
"""


@pytest.fixture
def quickstart(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path of a scenario. The current folder is temporary, and has a file of methods, m.toml."""
    monkeypatch.chdir(tmp_path)
    Path("m.toml").write_text(METHODS)
    return root / "scenarios" / "quickstart.toml"


@pytest.fixture
def short_scenario(scenario: Make) -> Scenario:
    """Scenario with one round."""
    return scenario({"rounds": 1})


@pytest.fixture
def run_folders(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replace runs by writing a scenario and a summary. The value lists the folders in order of the runs."""
    folders: list[Path] = []

    def run_cell(scenario: Scenario, folder: Path, on_round: object = None, **settings: object) -> executor.CellOutcome:
        folders.append(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scenario.toml").write_text(scenario.with_settings({"engine.name": "captured"}).to_toml())
        summary = {"best_accuracy": 0.5, "final_accuracy": 0.4, "uplink_bytes": 1200, "downlink_bytes": 34_000}
        (folder / "summary.json").write_text(json.dumps(summary))
        return executor.CellOutcome(1.0)

    monkeypatch.setattr(executor, "run_cell", run_cell)
    return folders
