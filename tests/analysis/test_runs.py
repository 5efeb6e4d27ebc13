"""Finished runs read from their folders."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from fedsgd.analysis import load_run
from fedsgd.errors import ReportError
from tests.analysis.helpers import edit_summary


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda f: (f / "summary.json").unlink(), "has no summary.json: the run did not finish"),
        (lambda f: (f / "ledger.parquet").unlink(), "it has no ledger.parquet"),
        (lambda f: (f / "summary.json").write_text("{"), "summary.json: cannot be read"),
        (lambda f: (f / "summary.json").write_text('{"rounds": 6}'), "has no clients; an older version may have written it"),
        (lambda f: (f / "summary.json").write_text("3"), "has no clients"),
        (lambda f: edit_summary(f, clients="x"), "has no clients"),
        (lambda f: edit_summary(f, versions=None), "has no versions"),
        (lambda f: edit_summary(f, uplink={}), "has no parts of uplink"),
        (lambda f: (f / "scenario.toml").write_text('name = "x"'), "has no seed"),
        (lambda f: (f / "scenario.toml").write_text("= 3"), "scenario.toml: cannot be read"),
        (lambda f: (f / "rounds.parquet").write_bytes(b"PAR1"), "cannot be read as Parquet"),
    ],
)
def test_load_run_from_broken_folder_names_the_problem(runs: Path, tmp_path: Path, damage: Any, problem: str) -> None:
    shutil.copytree(runs / "topk-0", tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(ReportError, match=problem) as error:
        load_run(tmp_path / "run")
    assert str(tmp_path / "run") in str(error.value)


def test_run_of_an_earlier_release_has_later_defaults(runs: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs / "topk-0", tmp_path / "run"))
    path = folder / "scenario.toml"
    lines = path.read_text().splitlines()
    later_lines = ('test = "dataset"', "held_out = 0.0", "stragglers = 0.0")
    path.write_text("\n".join(line for line in lines if line not in later_lines))
    assert len(path.read_text().splitlines()) == len(lines) - len(later_lines)
    assert dict(load_run(folder).settings) == dict(load_run(runs / "topk-0").settings)
