"""The package of plugins in scenarios/plugin: by entry points, by module, from Python, in a sweep, and with two workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fedsgd.cli import main

pytestmark = pytest.mark.examples

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "scenarios" / "plugin"
SCENARIO = str(PACKAGE / "plugin.toml")
SHORT = ("--set", "rounds=2", "--set", "client.epochs=1")
FROM_PYTHON = """
import json

import fedsgd
from fedsgd_example.aggregator import MeanAroundMedian
from fedsgd_example.compressor import ChunkMax
from fedsgd_example.partitioner import Zipf
from fedsgd_example.sampler import TimeZones
from fedsgd.scenario.scenario import Scenario
from fedsgd.scenario.sections import ClientConfig, DataConfig, ServerConfig, UplinkConfig
from fedsgd.optim import OPTIMIZERS

scenario = Scenario(
    name="plugin",
    rounds=2,
    data=DataConfig(partition=Zipf(clients=12, exponent=0.5)),
    client=ClientConfig(optimizer=OPTIMIZERS["momentum"](lr=0.05), epochs=1),
    server=ServerConfig(
        cohort=4, weighting="uniform", sampler=TimeZones(zones=3), aggregator=MeanAroundMedian(discarded=0.2)
    ),
    uplink=UplinkConfig(ChunkMax(chunk=32), error_feedback="persist"),
)
result = fedsgd.run(scenario)
print(json.dumps({**result.summary, "scenario": result.scenario.to_toml()}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment in which the package is installed: its folder and its metadata are on Python's path."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    site = tmp_path_factory.mktemp("site")
    metadata = site / f"fedsgd_example-{project['version']}.dist-info"
    metadata.mkdir()
    metadata.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = (
        f"[{group}]\n" + "".join(f"{name} = {path}\n" for name, path in points.items())
        for group, points in project["entry-points"].items()
    )
    metadata.joinpath("entry_points.txt").write_text("\n".join(groups))
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(PACKAGE), str(ROOT)])}


def call(environment: dict[str, str], *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", *arguments]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == code, process.stderr
    return process


def call_without_package(*arguments: str, code: int = 0) -> Result:
    """Run a command in this process, in which the package is not installed."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result


COMMANDS = """
import json, sys
from click.testing import CliRunner
from fedsgd.cli import main

results = [CliRunner().invoke(main, arguments) for arguments in json.loads(sys.argv[1])]
print(json.dumps([(result.exit_code, result.stderr) for result in results]))
"""


def digests(summary: dict[str, Any]) -> tuple[str, str]:
    return summary["params_sha256"], summary["ledger_sha256"]


@pytest.fixture(scope="module")
def run_folder(installed: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the scenario by its entry points, and return the run directory."""
    folder = tmp_path_factory.mktemp("runs") / "plugin"
    call(installed, "-m", "fedsgd", "run", SCENARIO, *SHORT, "--quiet", "--out", str(folder))
    return folder


def test_list_names_the_package_of_each_plugin(installed: dict[str, str]) -> None:
    listing = json.loads(call(installed, "-m", "fedsgd", "list", "--json").stdout)
    origins = {member["name"]: member["origin"] for members in listing.values() for member in members if "origin" in member}
    assert origins == dict.fromkeys(("chunk-max", "mean-around-median", "zipf", "time-zones"), "fedsgd-example 1.0")


@pytest.mark.nightly  # by day, .ci/run compares workers and a deployment
def test_plugins_give_equal_digests_by_every_way(installed: dict[str, str], run_folder: Path, tmp_path: Path) -> None:
    expected = digests(json.loads((run_folder / "summary.json").read_text()))
    again = call(installed, "-m", "fedsgd", "run", str(run_folder / "scenario.toml"), "--json", "--workers", "2")
    assert digests(json.loads(again.stdout)) == expected, "with two workers, from the run directory"
    (tmp_path / "script.py").write_text(FROM_PYTHON)
    from_python = json.loads(call(installed, str(tmp_path / "script.py")).stdout)
    assert digests(from_python) == expected
    assert from_python["scenario"] == (run_folder / "scenario.toml").read_text()


@pytest.mark.nightly
def test_class_path_needs_no_installation(installed: dict[str, str], tmp_path: Path) -> None:
    environment = {**installed, "PYTHONPATH": os.pathsep.join([str(PACKAGE), str(ROOT)])}
    (tmp_path / "by_path.toml").write_text(
        'name = "by-path"\nrounds = 2\ndata.partition = { name = "fedsgd_example.partitioner:Zipf", clients = 5 }\n'
        'uplink.compressor = { name = "fedsgd_example.compressor:ChunkMax", chunk = 32 }\nuplink.error_feedback = "persist"\n'
    )
    call(environment, "-m", "fedsgd", "run", str(tmp_path / "by_path.toml"), "--quiet", "--out", str(tmp_path / "run"))
    text = (tmp_path / "run" / "scenario.toml").read_text()
    assert 'name = "fedsgd_example.compressor:ChunkMax"\nchunk = 32\n' in text


@pytest.mark.nightly
def test_sweep_compares_a_plugin_with_a_built_in_compressor(installed: dict[str, str], tmp_path: Path) -> None:
    grid = ("--grid", "uplink.compressor.name=chunk-max,top-k", "--out", str(tmp_path / "sweep"), "--jobs", "2")
    call(installed, "-m", "fedsgd", "sweep", SCENARIO, *SHORT, *grid, "--quiet")
    table = call_without_package("compare", str(tmp_path / "sweep"), "--network", "4g").stdout
    assert "chunk-max" in table, "the comparison needs the names only"
    assert "top-k" in table


@pytest.mark.nightly
def test_certificate_of_the_compressor_has_no_broken_law(installed: dict[str, str]) -> None:
    call(installed, "-m", "fedsgd", "certify", "chunk-max", "--data", "gaussian", "--size", "2000", "--quiet")


@pytest.mark.nightly
def test_missing_package_is_named_in_one_line(run_folder: Path) -> None:
    (line,) = call_without_package("run", str(run_folder / "scenario.toml"), code=2).stderr.splitlines()
    assert 'data.partition.name: got "zipf", expected one of: ' in line
    assert line.endswith("the name of a plugin needs its package to be installed")
    for command in (("price", "--network", "4g"), ("compare", "--network", "4g")):
        call_without_package(command[0], str(run_folder), *command[1:])


def test_refused_plugins_end_every_building_command_in_one_line(installed: dict[str, str]) -> None:
    commands: tuple[tuple[str, ...], ...] = (
        ("run", SCENARIO),
        ("partition", SCENARIO),
        ("plan", SCENARIO),
        ("sweep", SCENARIO),
        ("certify", "chunk-max"),
    )
    commands = (*commands, ("flower", SCENARIO, "--nodes", "2"))
    arguments = json.dumps([(*command, "--no-plugins", "--quiet") for command in commands])
    results = json.loads(call(installed, "-c", COMMANDS, arguments).stdout)
    for command, (code, errors) in zip(commands, results, strict=True):
        assert code == 2, command
        (line,) = errors.splitlines()
        assert line.endswith("which is not part of fedsgd, expected a built-in name: --no-plugins is set"), command


@pytest.mark.nightly
def test_class_of_a_script_is_refused_with_workers_in_one_line(installed: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        """
from dataclasses import dataclass
from typing import ClassVar

import fedsgd
from fedsgd.compression.operators.topk import TopK
from fedsgd.scenario.scenario import Scenario
from fedsgd.scenario.sections import UplinkConfig


@dataclass(frozen=True)
class Own(TopK):
    name: ClassVar[str] = "own"


if __name__ == "__main__":
    scenario = Scenario(name="own", rounds=1, uplink=UplinkConfig(Own(density=0.5), error_feedback="persist"))
    print(fedsgd.run(scenario).summary["uplink_bytes"] > 0)
    try:
        fedsgd.run(scenario, execution=fedsgd.ExecutionConfig(workers=2))
    except fedsgd.ScenarioError as error:
        print(error)
"""
    )
    lines = call(installed, str(tmp_path / "script.py")).stdout.splitlines()
    assert lines[0] == "True"
    assert len(lines) == 2
    assert "uplink.compressor.name: needs Python objects" in lines[1]
    assert 'define the class in a module and set uplink.compressor.name to "my_package.my_module:MyClass"' in lines[1]


@pytest.mark.nightly
def test_module_next_to_the_scenario_is_found_from_another_folder(
    installed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "chunks_of_mine.py").write_text("from fedsgd_example.compressor import ChunkMax\n")
    (folder / "mine.toml").write_text('name = "mine"\nrounds = 1\nuplink.compressor = { name = "chunks_of_mine:ChunkMax" }\n')
    monkeypatch.chdir(tmp_path)
    call(installed, "-m", "fedsgd", "run", "project/mine.toml", "--quiet", "--workers", "2", "--out", "run")
