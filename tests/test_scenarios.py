"""The project's scenarios and their scripts, at a tiny size."""

from __future__ import annotations

import gzip
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from fedsgd import SweepConfig
from fedsgd.analysis import load_methods
from fedsgd.data.datasets.mnist import read_idx
from fedsgd.experiment.federation_plan import make_plan
from fedsgd.experiment.partition_summary import load_client_data
from fedsgd.experiment.runner import run
from fedsgd.experiment.scenario_warnings import find_warnings
from fedsgd.models.builder import build_task
from fedsgd.scenario.scenario import Scenario, load
from fedsgd.sweeps.runner import sweep
from fedsgd.sweeps.settings import normalize_methods, read_methods
from tests.data.datasets.test_mnist import encode_idx
from tests.effort import nightly_unless

pytestmark = pytest.mark.examples

FOLDER = Path(__file__).parent.parent / "scenarios"
NO_SCENARIOS = ("pyproject.toml", "plugin.toml", "study.toml")  # of packages; of a package, see test_plugins.py; of studies
METHODS = sorted(FOLDER.rglob("*methods.toml"))
SCENARIOS = sorted(path for path in {*FOLDER.rglob("*.toml")} - {*METHODS} if path.name not in NO_SCENARIOS)
NIGHTLY_SCENARIOS = {"loco", "char_gpt", "resnet20", "cifar_cnn", "shakespeare", "scenario"}
"""Scenarios that run at night only: by day, `mnist_cnn` trains convolutions, and tests/laws and tests/models their models.
Files called scenario.toml are of studies, which tests/analysis/replication reads."""
TINY = {"rounds": 2, "evaluation.every": 1, "client.steps": 2, "server.cohort": 2}
FEW_EXAMPLES = {"fedprox2020/mnist": {"data.partition.clients": 40}}
"""Settings with which a scenario fits the tiny data, by folder and file."""
FILES_OF_THE_USER = {"mnist", "cifar10", "shakespeare", "text", "hugging-face"}


@pytest.fixture(scope="session")
def tiny_data(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the first examples of the real files, in the same formats, and return their folder."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("mnist", "cifar10"):
        (folder / name).mkdir()
    for stem, n in (("train", 1000), ("t10k", 200)):
        for kind, dimensions in (("images-idx3-ubyte", 3), ("labels-idx1-ubyte", 1)):
            array = read_idx(data_folder / "mnist" / f"{stem}-{kind}.gz", dimensions)
            (folder / "mnist" / f"{stem}-{kind}.gz").write_bytes(gzip.compress(encode_idx(np.asarray(array[:n]))))
    for part, n in (("train", 1000), ("test", 100)):
        pq.write_table(
            pq.read_table(data_folder / "cifar10" / f"{part}.parquet").slice(0, n), folder / f"cifar10/{part}.parquet"
        )
    text = (data_folder / "shakespeare" / "input.txt").read_text(encoding="utf-8")
    (folder / "input.txt").write_text(text[:60_000], encoding="utf-8")
    return folder


def few_examples(path: Path) -> dict[str, Any]:
    """Return the settings with which a scenario fits the tiny data."""
    return FEW_EXAMPLES.get(f"{path.parent.name}/{path.stem}", {})


def make_files(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the commands of a scenario's comment that create its files, in a folder that becomes the current folder."""
    monkeypatch.chdir(folder)
    for command in re.findall(r'^#   python -c "(.*)"$', path.read_text(), flags=re.MULTILINE):
        subprocess.run([sys.executable, "-c", command], check=True)


@pytest.mark.sampled
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("path", nightly_unless(lambda p: p.stem not in NIGHTLY_SCENARIOS, SCENARIOS), ids=lambda p: p.stem)
def test_every_scenario_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    scenario = load(path, {**TINY, **few_examples(path)})
    data = request.getfixturevalue("tiny_data") if scenario.data.source.name in FILES_OF_THE_USER else None
    make_files(path, tmp_path, monkeypatch)
    result = run(scenario, data=data)
    assert result.summary["rounds"] == 2
    assert 0 <= result.summary["final_accuracy"] <= 1


FULL_SIZE = {"mnist": 60, "cifar10": 50, "hugging-face": 50, "shakespeare": 10, "text": 18}
"""Examples of a client of the real files, as a multiple of those in `tiny_data`, by dataset."""


def warnings_of(scenario: Scenario, data: Path | None) -> tuple[str, ...]:
    """Return the warnings of a scenario, for clients with as many examples as the real files give them."""
    dataset, train, _ = load_client_data(scenario, data)
    plan = make_plan(scenario, build_task(scenario.model, dataset, scenario.seed), train)
    (sizes, counts), factor = train.distinct_sizes(), FULL_SIZE.get(scenario.data.source.name, 1)
    full_data: Any = SimpleNamespace(distinct_sizes=lambda: (factor * sizes, counts))
    return find_warnings(scenario, plan, full_data)


@pytest.mark.sampled
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("path", SCENARIOS, ids=lambda p: p.stem)
def test_scenario_warnings_appear_only_where_its_comment_announces_them(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    scenario = load(path, few_examples(path))
    data = request.getfixturevalue("tiny_data") if scenario.data.source.name in FILES_OF_THE_USER else None
    make_files(path, tmp_path, monkeypatch)
    texts = warnings_of(scenario, data)
    assert bool(texts) == bool(re.search(r"^#.* warns\b", path.read_text(), flags=re.MULTILINE)), texts


@pytest.mark.sampled
@pytest.mark.parametrize(
    "path", nightly_unless(lambda p: p.parent.stem != "loco", METHODS), ids=lambda p: f"{p.parent.stem}-{p.stem}"
)
def test_method_warnings_appear_only_where_its_comment_announces_them(path: Path, tiny_data: Path) -> None:
    stem = path.parent.stem if path.stem == "methods" else path.stem.removesuffix("_methods")
    (base,) = (scenario for scenario in SCENARIOS if scenario.stem == stem)
    tables = re.findall(r'((?:^#.*\n)*)^\["(.*)"\]$', path.read_text(), flags=re.MULTILINE)
    comments = {label: comment for comment, label in tables}
    for label, settings in normalize_methods(read_methods(path), "").items():
        texts = warnings_of(load(base).with_settings(settings), tiny_data)
        assert bool(texts) == bool(re.search(r"\bwarns\b", comments[label])), (label, texts)


@pytest.mark.nightly
def test_compressors_sweep_runs_every_method(tiny_data: Path, tmp_path: Path) -> None:
    folder = FOLDER / "compressors"
    scenario = load(folder / "compressors.toml", TINY)
    result = sweep(scenario, methods=folder / "methods.toml", out=tmp_path / "sweep", execution=SweepConfig(data=tiny_data))
    methods = load_methods([tmp_path / "sweep"])
    assert len(methods) == len(result.cells) == 13
    assert [method.label for method in methods if method.uncompressed] == ["dense"]
    up = {method.label: method.runs[0].summary["uplink"]["n_bytes"] for method in methods}
    for name in ("top-k", "rand-k", "DGC", "STC", "EF21", "CAFe"):
        assert up[f"{name} 0.1 %"] < up[f"{name} 1 %"] < up["dense"] / 40


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda p: p.stem)
def test_scenario_name_is_its_file_name(path: Path) -> None:
    assert load(path).name == (path.parent.name if path.stem == "scenario" else path.stem)
    assert path.read_text().startswith("# ")
    assert len(path.read_text().splitlines()) < 50


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda p: p.stem)
def test_settings_in_comments_are_valid(path: Path) -> None:
    from fedsgd.scenario.overrides import parse_setting

    comments = " ".join(line[1:] for line in path.read_text().splitlines() if line.startswith("#"))
    settings = [parse_setting(text.rstrip(".,;")) for text in re.findall(r"--set (\S+)", comments)]
    load(path, dict(settings))


@pytest.mark.nightly
def test_simulation_script_prints_both_cohorts() -> None:
    process = subprocess.run([sys.executable, FOLDER / "simulation_script.py", "2"], check=True, capture_output=True, text=True)
    assert "2 clients a round" in process.stdout
    assert "20 clients a round" in process.stdout
    assert len((FOLDER / "simulation_script.py").read_text().splitlines()) < 30


@pytest.mark.nightly
def test_comparison_interrupted_resumes_without_repeating_runs(tiny_data: Path, tmp_path: Path) -> None:
    options = ["--rounds", "2", "--seeds", "2", "--rates", "0.2", "0.4", "--splits", "IID", "--jobs", "2"]
    command = [sys.executable, FOLDER / "participation" / "compare.py", *options, "--data", tiny_data]
    results = tmp_path / "results.jsonl"
    processes = [
        subprocess.run(
            [*command, "--results", results, "--methods", *methods], check=True, capture_output=True, text=True, cwd=tmp_path
        )
        for methods in (["dense"], ["dense", "STC both ways"], ["dense", "STC both ways"])
    ]
    assert [len(run.stderr.splitlines()) for run in processes] == [4, 4, 0], "each run is executed once"
    assert processes[1].stdout == processes[2].stdout
    rows = [line.split(" | ") for line in processes[1].stdout.splitlines()]
    assert [row[0] for row in rows[2:]] == ["| dense", "| STC both ways"]
    assert all(" ± " in row[1] for row in rows[2:])
    assert float(rows[2][3]) > 50 * float(rows[3][3]), "megabytes up"


@pytest.mark.nightly
def test_batch_norm_script_prints_all_policies(tmp_path: Path) -> None:
    command = [sys.executable, FOLDER / "participation" / "batch_norm.py", "2"]
    process = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    policies = {line.split(":")[0].strip(): line for line in process.stdout.splitlines()}
    assert list(policies) == ["group", "batch", "mean", "local"]
    assert {name for name, line in policies.items() if not line.endswith(" 0 of them statistics")} == {"mean"}


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("replication/mcmahan2017-2nn/causes.py", ["--results", "causes.json"], "causes.py: mnist: no data folder is set: "),
        ("replication/counting-rules/measure.py", ["--data", "none"], "measure.py: mnist: train-images-idx3-ubyte not found "),
        ("dgc/waits.py", ["none.toml"], "waits.py: none.toml: cannot be read (No such file or directory)"),
        ("loco/figure.py", ["--out", "none/loco.svg"], "figure.py: none/loco.svg: cannot be written "),
    ],
    ids=["causes", "measure", "waits", "figure"],
)
def test_script_ends_with_a_line_about_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDSGD_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as error:
        runpy.run_path(str(FOLDER / script), run_name="__main__")
    assert str(error.value).startswith(message)
    assert list(tmp_path.iterdir()) == []
