"""Every scenario of the project runs, at a tiny size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedsgd.data import Dataset, Examples
from fedsgd.experiment import run
from fedsgd.scenario import load

FOLDER = Path(__file__).parent.parent / "scenarios"
TINY = {"rounds": 2, "evaluation.every": 1, "client.steps": 2, "server.cohort": 2}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda p: p.stem)
def test_every_scenario_runs(path: Path, request: pytest.FixtureRequest) -> None:
    scenario = load(path, TINY)
    data = dataset = None
    if scenario.data.source.name != "digits":
        data = request.getfixturevalue("data_folder")
        full = scenario.data.source.load(data)
        dataset = Dataset(
            Examples(full.train.x[:1000], full.train.y[:1000]), Examples(full.test.x[:200], full.test.y[:200]), full.classes
        )
    result = run(scenario, data=data, dataset=dataset)
    assert result.summary["rounds"] == 2
    assert 0 <= result.summary["final_accuracy"] <= 1


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda p: p.stem)
def test_every_scenario_is_called_what_its_file_is(path: Path) -> None:
    assert load(path).name == path.stem
    assert path.read_text().startswith("# ")


def test_the_simulation_script_runs() -> None:
    done = subprocess.run([sys.executable, FOLDER / "simulation_script.py", "2"], check=True, capture_output=True, text=True)
    assert "2 clients a round" in done.stdout
    assert "20 clients a round" in done.stdout
    assert len((FOLDER / "simulation_script.py").read_text().splitlines()) < 30
