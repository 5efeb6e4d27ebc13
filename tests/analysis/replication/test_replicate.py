"""`fedsgd.replicate`: figures, verdicts, continued studies, files."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import fedsgd
from fedsgd.analysis.replication.pages import to_html, to_markdown
from fedsgd.analysis.replication.plan import ReplicationConfig, StudyPlan, StudyRun
from fedsgd.analysis.replication.records import Results, RunRecord
from fedsgd.analysis.replication.replicate import open_study, replicate
from fedsgd.analysis.replication.runner import divide_tuning
from fedsgd.analysis.replication.study import load_study
from fedsgd.analysis.replication.verdicts import build_replication, judge, measure
from fedsgd.analysis.runs import load_run
from fedsgd.cli import main
from fedsgd.errors import ReportError, ScenarioError
from fedsgd.sweeps.options import SweepConfig
from tests.analysis.replication.studies import SCENARIO, write_study

PAIR: dict[str, Any] = {"a": {}, "b": {"paper": 2, "settings": {"client.steps": 4}}}
COMPUTED = """
def compute_cells():
    return {"a": {"value": 2.5, "own_value": 3.0, "rule_bytes": 40, "n_bytes": 30}, "b": {"value": 4}}
"""


@pytest.mark.slow
def test_figures_are_medians_of_the_runs_and_verdicts_follow_the_tolerance(tmp_path: Path) -> None:
    cells = {"a": {"paper": 3}, "b": {"paper": 400, "cause": "another paper", "settings": {"client.steps": 4}}, "c": {}}
    folder = write_study(tmp_path / "mine", cells=cells, networks=["4g"])
    result = replicate(folder, out=tmp_path / "out")
    for cell in result.cells:
        runs = [load_run(path.parent) for path in (tmp_path / "out" / "final" / cell.label).rglob("summary.json")]
        assert len(runs) == 2
        assert cell.value == statistics.median(run.summary["rounds_to_target"] for run in runs)
        assert cell.uplink_bytes == statistics.median(run.summary["uplink_bytes_to_target"] for run in runs)
        priced = [fedsgd.price(run.folder, "4g") for run in runs]
        ends = [run.find_reached(run_target) for run in runs if (run_target := fedsgd.Target("accuracy", above=0.4))]
        seconds = [end.interpolate_on(p.cumulative_seconds) for end, p in zip(ends, priced, strict=True) if end is not None]
        assert cell.network_seconds == {"4g": statistics.median(seconds)}
    assert [cell.verdict for cell in result.cells] == ["reproduced", "differs, cause known", "no published figure"]


@pytest.mark.slow
def test_cell_with_missing_seeds_shows_how_many_were_run(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "mine", cells={"a": {"paper": 3}}, seeds=2)
    replicate(folder, out=tmp_path / "out")
    write_study(folder, cells={"a": {"paper": 3}}, seeds=3)
    plan, _ = open_study(folder, ReplicationConfig(), None)
    assert ", n = 2 of 3)" in to_markdown(build_replication(plan))


def test_page_escapes_texts_and_marks_figures_and_verdicts(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "mine", cells={"a <b>": {"paper": 3}}, differences=["steps & <i>"])
    plan, _ = open_study(folder, ReplicationConfig(), None)
    page = to_html(build_replication(plan))
    assert "<title>Rounds</title>" in page
    assert '<td>a &lt;b&gt;</td>\n<td class="number">3</td>\n' in page
    assert '<td class="not">not run</td>' in page
    assert "steps &amp; &lt;i&gt;" in page
    assert "<script" not in page


@pytest.mark.slow
def test_continued_study_runs_only_what_has_no_record(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "mine")
    first = replicate(folder, config=ReplicationConfig(("a",)), out=tmp_path / "first")
    assert [cell.label for cell in first.cells] == ["a"]
    second = replicate(folder, out=tmp_path / "second")
    assert sorted(path.name for path in (tmp_path / "second" / "final").iterdir() if path.is_dir()) == ["b"]
    assert second.cells[0] == first.cells[0]
    report = (folder / "RESULTS.md").read_text(encoding="utf-8")
    third = replicate(folder, out=tmp_path / "third")
    assert not (tmp_path / "third" / "final").exists()
    assert third == second
    assert (folder / "RESULTS.md").read_text(encoding="utf-8") == report


@pytest.mark.slow
def test_record_of_other_settings_does_not_count(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "mine", cells={"a": {}})
    replicate(folder, out=tmp_path / "first")
    write_study(folder, cells={"a": {"settings": {"client.steps": 3}}})
    plan, _ = open_study(folder, ReplicationConfig(), None)
    assert len(plan.find_waiting(plan.plan_final())) == 2
    replicate(folder, out=tmp_path / "first")  # the folders of runs with the former settings are replaced
    table = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert len(table["runs"]) == 2


@pytest.mark.slow
def test_tuned_value_is_selected_by_validation_examples(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "mine", cells={"a": {}}, tune={"client.optimizer.lr": [0.001, 0.5]})
    result = replicate(folder, out=tmp_path / "out")
    assert result.cells[0].tuned == "client.optimizer.lr = 0.5 (edge of the grid)"
    tuning = [path.parent for path in (tmp_path / "out" / "tuning").rglob("summary.json")]
    final = [path.parent for path in (tmp_path / "out" / "final").rglob("summary.json")]
    assert len(tuning) == len(final) == 2
    assert {fedsgd.load(path / "scenario.toml").evaluation.validation for path in tuning} == {0.1}
    assert {fedsgd.load(path / "scenario.toml").evaluation.validation for path in final} == {None}
    assert {fedsgd.load(path / "scenario.toml").seed for path in tuning} == {0}
    assert {fedsgd.load(path / "scenario.toml").seed for path in final} == {1, 2}


@pytest.mark.slow
@pytest.mark.parametrize(("measure", "share"), [("rounds", 1), ("uplink-bytes", 1.25), ("accuracy", math.inf)])
def test_tuning_run_ends_where_it_is_not_selected_any_more(tmp_path: Path, measure: str, share: float) -> None:
    text, tune = SCENARIO.replace("rounds = 4", "rounds = 30"), {"client.optimizer.lr": [0.05, 0.0001]}
    folder = write_study(tmp_path / "mine", text, cells={"a": {}}, tune=tune, seeds=1, measure=measure)
    result = replicate(folder, out=tmp_path / "out")
    assert "lr = 0.05" in result.cells[0].tuned
    plan, _ = open_study(folder, ReplicationConfig(), None)
    first, second = (plan.results.runs[run.key] for run in plan.plan_tuning())
    n_rounds = first.selection["rounds"]
    assert n_rounds is not None
    assert 4 < n_rounds < 20
    limit = math.ceil(share * n_rounds) if share < math.inf else None
    assert (first.round_limit, second.rounds, second.round_limit) == (None, limit or 30, limit)


def add_records(plan: StudyPlan, *rows: tuple[float | None, int | None]) -> list[StudyRun]:
    """Add a record for each tuning run, with its rounds to the target and its limit. Return the tuning runs."""
    runs = plan.plan_tuning()
    for run, (rounds, limit) in zip(runs, rows, strict=True):
        cell, phase, seed, digest = run.key
        record = RunRecord(cell, phase, seed, digest, dict(run.planned_cell.cell.tuned), rounds=limit or 4)
        plan.results.add(replace(record, round_limit=limit, selection={"rounds": rounds, "uplink_bytes": rounds, "best": 0.2}))
    return runs


def open_plan(folder: Path, **changes: Any) -> StudyPlan:
    text = SCENARIO.replace("rounds = 4", "rounds = 40\nevaluation = { every = 5 }")
    tune = {"client.optimizer.lr": [0.5, 0.4, 0.001]}
    return open_study(write_study(folder, text, **{"cells": {"a": {}}, "tune": tune, **changes}), ReplicationConfig(), None)[0]


def test_limited_tuning_run_counts_only_with_the_value_that_limits_it(tmp_path: Path) -> None:
    plan = open_plan(tmp_path / "mine")
    first, second, third = add_records(plan, (12.5, None), (33.5, None), (None, 15))
    assert plan.find_waiting(plan.plan_tuning()) == []
    assert plan.select_tuned("a") == {"client.optimizer.lr": 0.5}
    del plan.results.runs[first.key]
    assert plan.find_waiting(plan.plan_tuning()) == [first, third]
    assert [plan.limit_run(run).scenario.rounds for run in (first, second, third)] == [35, 35, 35]
    del plan.results.runs[second.key]
    assert plan.limit_run(third) == third.planned_cell


def test_limited_run_that_reached_the_target_does_not_count_for_its_best_value(tmp_path: Path) -> None:
    runs = add_records(plan := open_plan(tmp_path / "mine"), (12.5, None), (9.5, 15), (None, 10))
    assert plan.find_waiting(runs) == []
    other_plan = StudyPlan(replace(plan.study, measure="accuracy"), plan.config, plan.results)
    assert other_plan.find_waiting(runs) == runs[1:]


@pytest.mark.parametrize(
    ("tune", "expected"),
    [({"client.optimizer.lr": [1, 0.1]}, 25), ({"server.cohort": [4, 1]}, 40), ({"uplink.compressor.density": [0.1, 0.2]}, 40)],
    ids=["rate", "cohort", "density"],
)
def test_bytes_limit_the_rounds_of_optimizers_only(tmp_path: Path, tune: dict[str, Any], expected: int) -> None:
    uplink = {"uplink.compressor.name": "top-k", "uplink.error_feedback": "persist"}
    plan = open_plan(tmp_path / "mine", measure="uplink-bytes", tune=tune, cells={"a": {"settings": uplink}})
    runs = add_records(plan, (18.2, None), (None, None))
    assert plan.limit_run(runs[1]).scenario.rounds == expected


@pytest.mark.slow
def test_error_of_a_later_tuning_run_is_listed_and_the_others_run(tmp_path: Path) -> None:
    tune = {"data.partition.clients": [4, 100_000, 5]}
    folder = write_study(tmp_path / "mine", cells={"a": {}, "b": {"tune": {}}}, tune=tune, seeds=1)
    result = replicate(folder, out=tmp_path / "out")
    assert [run for run, _ in result.errors] == ["a, seed 0"]
    assert [len(cell.values) for cell in result.cells] == [0, 1]
    plan, _ = open_study(folder, ReplicationConfig(), None)
    assert len(plan.find_waiting(plan.plan_tuning())) == 1


@pytest.mark.parametrize(("jobs", "sizes"), [(1, [2, 1, 1]), (2, [2, 2]), (8, [4])])
def test_tuning_runs_are_divided_by_their_number_in_their_cell(tmp_path: Path, jobs: int, sizes: list[int]) -> None:
    plan = open_plan(tmp_path / "mine", cells={"a": {}, "b": {"tune": {"client.optimizer.lr": [0.1]}}})
    groups = divide_tuning(plan.plan_tuning(), jobs)
    assert [len(group) for group in groups] == sizes
    assert [*chain(*groups)][:2] == [plan.plan_tuning()[0], plan.plan_tuning()[3]]


@pytest.mark.slow
def test_cell_without_its_target_is_not_reached_and_not_reproduced(tmp_path: Path) -> None:
    settings = {"client.optimizer.lr": 1e-6}
    folder = write_study(tmp_path / "mine", cells={"a": {"paper": 3, "settings": settings}, "b": {}}, seeds=1)
    claims = [{"text": "a is better", "better": "a", "worse": "b"}]
    write_study(folder, cells={"a": {"paper": 3, "settings": settings}, "b": {}}, seeds=1, claims=claims)
    result = replicate(folder, out=tmp_path / "out")
    assert result.cells[0].value == math.inf
    assert result.cells[0].verdict == "differs, cause unknown"
    assert result.claims[0].verdict == "does not hold"
    assert "| a | 3 | not reached |" in (folder / "RESULTS.md").read_text(encoding="utf-8")


def test_diverged_run_is_a_result_of_the_cell(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "mine", cells={"a": {"settings": {"client.optimizer.lr": 1e38}}}, seeds=1)
    result = replicate(folder, out=tmp_path / "out")
    assert [run for run, _ in result.diverged] == ["a, final run with seed 1"]
    assert result.errors == ()
    assert result.cells[0].value == math.inf


def test_script_gives_the_figures_of_a_computed_study(tmp_path: Path) -> None:
    cells = {"a": {"paper": 2.5, "expected": "reproduced"}, "b": {"paper": 1, "expected": "reproduced"}}
    folder = write_study(tmp_path / "mine", scenario=None, script="measure.py", measure="ratio", tolerance=1.01, cells=cells)
    (folder / "measure.py").write_text(COMPUTED, encoding="utf-8")
    result = replicate(folder, out=tmp_path / "out")
    assert [(c.value, c.own_value, c.rule_bytes, c.uplink_bytes, c.verdict) for c in result.cells] == [
        (2.5, 3.0, 40, 30, "reproduced"),
        (4, None, None, None, "differs, cause unknown"),
    ]
    assert result.changed == ("b",)
    reply = CliRunner().invoke(main, ["replicate", str(folder), "--quick", "--json"])
    assert reply.exit_code == 1
    assert json.loads(reply.stdout)["changed_verdicts"] == ["b"]


def test_script_with_other_cells_is_refused(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "mine", scenario=None, script="measure.py", measure="ratio", cells={"a": {}})
    (folder / "measure.py").write_text(COMPUTED, encoding="utf-8")
    with pytest.raises(
        ReportError, match=r"measure.py: compute_cells\(\) returned other cells than those of study.toml: \['b'\]"
    ):
        replicate(folder, out=tmp_path / "out")


def test_quick_form_runs_its_cells_and_writes_no_results(tmp_path: Path) -> None:
    cells = {"a": {"quick": {"client.optimizer.lr": 0.2}}, "b": {}}
    folder = write_study(tmp_path / "mine", cells=cells, tune={"client.optimizer.lr": [0.1, 0.3]})
    result = replicate(folder, config=ReplicationConfig(quick=True), out=tmp_path / "out")
    assert [(cell.label, len(cell.values)) for cell in result.cells] == [("a", 1)]
    scenario = fedsgd.load(next((tmp_path / "out").rglob("scenario.toml")))
    assert scenario.client.optimizer.lr == 0.2
    assert sorted(path.name for path in folder.iterdir()) == ["scenario.toml", "study.toml"]


def test_runs_after_the_time_limit_are_not_run(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "mine")
    result = replicate(folder, config=ReplicationConfig(execution=SweepConfig(stop_after=0)), out=tmp_path / "out")
    assert [cell.verdict for cell in result.cells] == ["not run", "not run"]


def test_damaged_results_are_refused(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "mine")
    (folder / "results.json").write_text('{"format": 1, "study": "mine", "runs": [{}], "computed": {}}', encoding="utf-8")
    with pytest.raises(ReportError, match=r"results.json: not the results of a study \(TypeError"):
        replicate(folder, out=tmp_path / "out")


def test_records_do_not_depend_on_keys_with_their_defaults(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "mine")
    keys = [run.key for run in open_study(folder, ReplicationConfig(), None)[0].plan_final()]
    write_study(folder, SCENARIO.replace("steps = 2", 'steps = 2, velocity = "restart"'))
    assert [run.key for run in open_study(folder, ReplicationConfig(), None)[0].plan_final()] == keys


@pytest.mark.slow
def test_new_network_is_not_a_target_that_is_not_reached(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "mine", cells={"a": {}}, networks=["4g"])
    assert replicate(folder, out=tmp_path / "out").cells[0].network_seconds["4g"] < math.inf
    write_study(folder, cells={"a": {}}, networks=["3g", "4g"])
    assert replicate(folder, out=tmp_path / "out").cells[0].network_seconds.keys() == {"4g"}
    write_study(folder, cells={"a": {}}, networks=["4g"], device="laptop")
    assert replicate(folder, out=tmp_path / "out").cells[0].network_seconds == {}


@pytest.mark.slow
def test_baseline_of_a_chosen_cell_is_run_too(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "mine", measure="speedup", baseline="a", seeds=1, cells=PAIR)
    result = replicate(folder, config=ReplicationConfig(("b",)), out=tmp_path / "out")
    assert [(cell.label, cell.verdict != "not run") for cell in result.cells] == [("a", True), ("b", True)]
    assert result.cells[0].value == 1.0


@pytest.mark.slow
def test_labels_that_differ_in_signs_have_their_own_folders(tmp_path: Path) -> None:
    cells = {"E = 1": {"settings": {"client.steps": 1}}, "E=1": {"settings": {"client.steps": 8}}}
    result = replicate(write_study(tmp_path / "mine", cells=cells, seeds=1), out=tmp_path / "out")
    rounds = [cell.value for cell in result.cells]
    assert None not in rounds
    assert rounds[0] != rounds[1]


@pytest.mark.slow
def test_cell_stays_readable_without_the_keys_that_were_tuned(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "mine", cells={"a": {}}, tune={"client.optimizer.lr": [0.5]}, seeds=1)
    replicate(folder, out=tmp_path / "out")
    write_study(folder, cells={"a": {}}, seeds=1)
    assert build_replication(open_study(folder, ReplicationConfig(), None)[0]).cells[0].verdict == "no published figure"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measure": "loss"}, "measure: 'loss' needs a target of the loss in [report]"),
        ({"measure": "ratio"}, "measure: got 'ratio', expected another one with a scenario"),
    ],
)
def test_measure_that_the_scenario_does_not_have_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = write_study(tmp_path / "mine", **change)
    with pytest.raises(ScenarioError) as error:
        open_study(folder, ReplicationConfig(), None)
    assert str(error.value) == f"mine: {message}"


def test_study_without_quick_cells_has_no_quick_form(tmp_path: Path) -> None:
    reply = CliRunner().invoke(main, ["replicate", str(write_study(tmp_path / "mine")), "--quick"])
    assert reply.exit_code == 2
    assert "mine: no cell has a quick form" in reply.stderr


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return {'a': {'value': 'x'}}", "cell 'a': value: expected a number, got \"x\""),
        ("return {'a': {'value': float('nan')}}", "cell 'a': value: expected a finite number, got nan"),
        ("return {'a': {'valu': 1}}", "cell 'a': 'valu', did you mean \"value\"?"),
        ("return {'a': {}}", "cell 'a': got {}, expected a table with `value`"),
        ("return None", "compute_cells() returned other cells than those of study.toml: None"),
        ("raise KeyError('k')", "KeyError: 'k'"),
    ],
)
def test_wrong_result_of_a_script_is_refused_and_not_saved(tmp_path: Path, body: str, message: str) -> None:
    folder = write_study(tmp_path / "mine", scenario=None, script="measure.py", measure="ratio", cells={"a": {}})
    (folder / "measure.py").write_text(f"def compute_cells():\n    {body}\n", encoding="utf-8")
    with pytest.raises(ReportError) as error:
        replicate(folder, out=tmp_path / "out")
    assert str(error.value) == f"{(folder / 'measure.py').resolve()}: {message}"
    assert not (folder / "results.json").exists()


def _record(**changes: Any) -> RunRecord:
    return replace(RunRecord("a", "final", 1, "0"), **changes)


@pytest.mark.parametrize(
    ("change", "value", "expected"),
    [
        ({"measure": "rounds", "tolerance": 1.5}, 149.9, "reproduced"),
        ({"measure": "rounds", "tolerance": 1.5}, 150.1, "differs, cause unknown"),
        ({"measure": "rounds", "tolerance": 1.5}, 66.6, "differs, cause unknown"),
        ({"measure": "rounds", "tolerance": 1.5}, math.inf, "differs, cause unknown"),
        ({"measure": "accuracy", "tolerance": 0.01}, 99.99, "reproduced"),
        ({"measure": "accuracy", "tolerance": 0.01}, 100.02, "differs, cause unknown"),
    ],
)
def test_verdict_compares_a_factor_or_a_difference(tmp_path: Path, change: dict[str, Any], value: float, expected: str) -> None:
    study = load_study(write_study(tmp_path / "mine", **change))
    assert judge(study, value, 100.0, "") == expected


def test_relative_measures_pair_the_seeds(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path / "mine", measure="accuracy-difference", tolerance=0.1, baseline="a", cells=PAIR))
    baseline = {1: _record(final=0.9, target={"rounds": 30.0})}
    assert measure(study, _record(final=0.95), baseline) == pytest.approx(0.05)
    assert measure(study, _record(final=0.95, seed=2), baseline) is None
    study = load_study(write_study(tmp_path / "mine", measure="speedup", baseline="a", cells=PAIR))
    assert measure(study, _record(target={"rounds": 10.0}), baseline) == 3.0
    assert measure(study, _record(target=None), baseline) == 0.0


def test_results_survive_a_write_and_a_read(tmp_path: Path) -> None:
    results = Results("mine")
    record = _record(final=0.5, curve=[[1, 0.25], [3, 0.5]], network_seconds={"4g": None}, made={"date": "2026-12-01"})
    results.add(record)
    results.add(_record(seed=2, settings_sha256="1"))
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json", "mine").runs == results.runs
