"""Studies: study.toml, and the messages for wrong keys."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedsgd.analysis.replication.pages import count_verdicts, describe_verdicts, to_markdown
from fedsgd.analysis.replication.plan import ReplicationConfig
from fedsgd.analysis.replication.replicate import list_results, open_study
from fedsgd.analysis.replication.study import (
    KNOWN,
    NOT_RUN,
    REPRODUCED,
    UNKNOWN,
    VERDICTS,
    find_study,
    list_studies,
    load_study,
)
from fedsgd.analysis.replication.verdicts import build_replication
from fedsgd.cli import main
from fedsgd.cli.terminal.replication_tables import STUDY_HEADINGS
from fedsgd.errors import ReportError, ScenarioError
from tests.analysis.replication.studies import write_study


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tolerance": 0.5}, "tolerance: got 0.5, expected a factor of at least 1"),
        ({"measure": "round"}, 'measure: got "round", did you mean "rounds"?'),
        ({"tolerence": 2}, 'tolerence: no such key, did you mean "tolerance"?'),
        ({"title": None}, "title: missing"),
        ({"cells": {}}, "cells: none, expected a table for each cell"),
        ({"cells": {"a": {"papr": 3}}}, 'cells.a.papr: no such key, did you mean "paper"?'),
        ({"cells": {"a": {"paper": "many"}}}, 'cells.a.paper: expected a number, or the key left out, got "many"'),
        ({"script": "measure.py"}, 'scenario: expected "scenario" or "script", and only one of them'),
        ({"baseline": "a"}, "baseline: expected with the measures speedup and accuracy-difference, and only with them"),
        (
            {"measure": "speedup", "baseline": "a"},
            "cells.a.paper: got a figure, expected none: the cell is its own baseline, so its figure is known without a run",
        ),
        ({"networks": ["5gg"]}, 'networks: got "5gg", did you mean "5g"?'),
        ({"counting": "dense-float23"}, "counting: got 'dense-float23', did you mean \"dense-float32\"?"),
        ({"claims": [{"text": "t", "better": "a", "worse": "d"}]}, 'claims[0].worse: got \'d\', expected one of: "a", "b"'),
    ],
)
def test_wrong_study_is_refused_with_file_and_key(tmp_path: Path, change: dict[str, object], message: str) -> None:
    folder = write_study(tmp_path / "mine", **change)
    with pytest.raises(ScenarioError) as error:
        load_study(folder)
    assert str(error.value).startswith(f"{folder / 'study.toml'}: {message}")


def test_wrong_setting_of_a_cell_is_refused_with_study_and_cell(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "mine", cells={"a": {"settings": {"client.epoch": 2}}})
    with pytest.raises(ScenarioError, match=r'mine: \[a\]: client.epoch: unknown key, did you mean "epochs"'):
        open_study(folder, ReplicationConfig(), None)[0].plan_final()


def test_unknown_study_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ReportError, match=r"study 'mcmahan2017-2n', did you mean \"mcmahan2017-2nn\""):
        find_study("mcmahan2017-2n")


def test_unknown_cell_is_refused_with_the_nearest_label(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "mine", cells={"IID": {}, "non-IID": {}})
    with pytest.raises(ScenarioError, match=r"mine: cell 'IDD', did you mean \"IID\""):
        open_study(folder, ReplicationConfig(("IDD",)), None)


@pytest.mark.sampled
@pytest.mark.parametrize("name", list_studies())
def test_every_study_has_valid_settings_and_a_documented_set_up(name: str) -> None:
    plan, _ = open_study(name, ReplicationConfig(), None)
    assert plan.labels == [*plan.study.cells]
    assert plan.study.script is not None or plan.plan_tuning() or plan.plan_final()
    assert plan.study.differences


@pytest.mark.parametrize("name", [name for name in list_studies() if (find_study(name) / "results.json").exists()])
def test_report_is_that_of_the_committed_results(name: str) -> None:
    plan, _ = open_study(name, ReplicationConfig(), None)
    assert (find_study(name) / "RESULTS.md").read_text(encoding="utf-8") == to_markdown(build_replication(plan))


@pytest.mark.slow
def test_page_has_the_verdicts_of_the_committed_results() -> None:
    text = (Path(__file__).parents[3] / "fedsgd" / "docs" / "results" / "replication.md").read_text(encoding="utf-8")
    results = list_results()
    rows = [f"| `{r.study.name}` | {r.study.title} | {describe_verdicts(r)} |" for r in results]
    assert [row for row in rows if row not in text] == []
    opening, counts, claims = " ".join(text.split("```")[0].split()), Counter[str](), Counter[str]()
    for result in results:
        if result.study.script is None:
            counts += count_verdicts(result.cells)
        claims += count_verdicts(result.claims)
    n_run = sum(counts[verdict] for verdict in (REPRODUCED, KNOWN, UNKNOWN))
    assert f"Of {n_run} trained cells that have a published figure and were run, {counts[REPRODUCED]} are within" in opening
    assert f"Of {claims['holds'] + claims['does not hold']} claims about two cells, {claims['holds']} hold" in opening
    assert f"{counts[NOT_RUN]} were not run" in opening


def test_list_of_studies_counts_verdicts_and_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [sum(verdict.startswith(heading) for heading in STUDY_HEADINGS) for verdict in VERDICTS] == [1] * len(VERDICTS)
    module = importlib.import_module("fedsgd.analysis.replication.replicate")  # the package has a function of this name
    monkeypatch.setattr(module, "list_studies", lambda: ["dgc2018-ablation", "stc2019-bits"])
    table = CliRunner().invoke(main, ["replicate"], env={"COLUMNS": "80"})
    rows = [line.split() for line in table.stdout.splitlines()]
    assert ["dgc2018-ablation", "12", "6", "of", "10"] in rows
    assert ["stc2019-bits", "4"] in rows
    first, second = json.loads(CliRunner().invoke(main, ["replicate", "--json"]).stdout)
    assert first["claims"] == {"holds": 6, "does not hold": 4}
    assert (second["verdicts"], second["claims"]) == ({"reproduced": 4}, {})
