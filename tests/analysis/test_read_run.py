"""Results as objects: runs read from their folders, tables of pandas, short texts."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest

import fedsgd as fs
from fedsgd.errors import ReportError
from fedsgd.sweeps import Cell, Sweep

SCENARIO = fs.Scenario(
    name="tiny",
    rounds=2,
    data=fs.DataConfig(partition=fs.partitioners.Iid(clients=4)),
    model=fs.models.Mlp(hidden=(4,)),
    evaluation=fs.EvaluationConfig(every=2),
    uplink=fs.UplinkConfig(fs.compressors.TopK(density=0.1), error_feedback="persist"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def result(folder: Path) -> fs.Result:
    return fs.run(SCENARIO, out=folder)


def test_table_of_a_result_has_a_row_for_each_round(result: fs.Result) -> None:
    table = result.to_pandas()
    assert (table.index.name, table.index.tolist()) == ("round", [1, 2])
    assert table.uplink_bytes.tolist() == [record.uplink_bytes for record in result.history]
    assert table.uplink_bytes.dtype == "int64"
    assert table.accuracy.isna().tolist() == [True, False]
    assert table.accuracy[2] == result.history[1].accuracy


def test_table_of_a_read_run_equals_that_of_the_result_and_of_the_file(result: fs.Result, folder: Path) -> None:
    table = fs.read_run(folder).to_pandas()
    pd.testing.assert_frame_equal(table, result.to_pandas())
    pd.testing.assert_frame_equal(table, pd.read_parquet(folder / "rounds.parquet").set_index("round"), check_dtype=False)


def test_read_run_has_summary_ledger_totals_and_settings(result: fs.Result, folder: Path) -> None:
    run = fs.read_run(str(folder))
    assert run.summary == result.summary
    for direction, totals in result.ledger.totals.items():
        assert asdict(totals).items() <= run.ledger_totals[direction].items()
    assert run.settings["uplink.compressor.density"] == 0.1
    assert fs.load(run.folder / "scenario.toml") == result.scenario


def test_read_run_imports_no_module_of_the_scenario(result: fs.Result, folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    text = (folder / "scenario.toml").read_text().replace('name = "digits"', 'name = "no_such_module:Data"')
    (tmp_path / "scenario.toml").write_text(text)
    assert fs.read_run(tmp_path).settings["data.name"] == "no_such_module:Data"


def test_read_run_of_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"is not a run folder"):
        fs.read_run(tmp_path)


def test_missing_pandas_is_named_with_the_command_that_installs_it(
    result: fs.Result, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fs.read_run(folder)
    monkeypatch.setitem(sys.modules, "pandas", None)
    for source in (result, run):
        with pytest.raises(ReportError, match=r'^pandas is not installed: .* python -m pip install "\.\[pandas\]"$'):
            source.to_pandas()


def test_texts_of_results_are_short(result: fs.Result, folder: Path) -> None:
    comparison = fs.compare([(f"method {i}", folder) for i in range(9)], networks=["4g"])
    sweep = Sweep(folder, "tiny", cells=(Cell("a", "a", "a", {}, {}, 0), Cell("b", "b", "b", {}, {}, 0, "finished")))
    priced_run = fs.price(folder, "4g")
    for value in (result, SCENARIO, fs.read_run(folder), comparison, priced_run, comparison.rows[0], result.ledger, sweep):
        text = repr(value)
        assert len(text.splitlines()) <= 5
        assert max(map(len, text.splitlines())) <= 320, text
        assert "array" not in text
    assert "... and 6 more rows" in repr(comparison)
    assert f"{result.summary['uplink_bytes']:,} bytes up" in repr(fs.read_run(folder))
    assert repr(sweep).endswith("2 cells: 1 waiting, 1 finished)")
    assert repr(result.history[1]).startswith("RoundRecord(round 2: 4 of 4 accepted · acc 0.")


def test_text_of_a_scenario_has_the_changed_settings() -> None:
    assert repr(fs.Scenario(name="digits")) == "Scenario(name='digits')"
    assert repr(SCENARIO).endswith("uplink=UplinkConfig(compressor=TopK(density=0.1), error_feedback='persist'), "
                                   "evaluation=EvaluationConfig(every=2))")  # fmt: skip
