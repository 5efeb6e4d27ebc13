"""Groups of runs that are one method."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import fedsgd
from fedsgd.analysis import load_methods
from fedsgd.analysis.differences import describe_other_differences
from fedsgd.analysis.method_labels import describe_distinct_settings
from fedsgd.errors import ReportError
from fedsgd.scenario.scenario import Scenario
from fedsgd.scenario.target import Criterion
from fedsgd.sweeps import Cell, Sweep
from tests.analysis.helpers import copy_run, edit_summary, invoke


def test_runs_that_differ_in_seed_are_one_method(runs: Path) -> None:
    methods = load_methods([runs])
    labels = ["dense", "stc, density 0.05", "top-k, density 0.01, error feedback"]
    assert [(method.label, [run.seed for run in method.runs]) for method in methods] == [(label, [0, 1]) for label in labels]
    assert [method.uncompressed for method in methods] == [True, False, False]
    duplicates = load_methods([runs / "topk-0", runs / "topk-0"])
    assert len(duplicates[0].runs) == 1


def test_label_of_runs_names_the_method(runs: Path) -> None:
    first, second = load_methods([("mine", runs / "stc-0"), str(runs / "dense-0")])
    assert (first.label, second.label) == ("mine", "dense")
    with pytest.raises(
        ReportError, match=r"all: the label has runs that differ in more than their seed: .*dense-0 has downlink\.compressor"
    ):
        load_methods([("all", runs)])
    with pytest.raises(ReportError, match="a label of printable characters"):
        load_methods([("a\nb", runs / "stc-0")])
    result = invoke("compare", f"my own={runs / 'stc-0'}", runs / "dense-0", "--json")
    assert [row["label"] for row in json.loads(result.stdout)["methods"]] == ["my own", "dense"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([{}, {"server.aggregator.name": '"median"'}], [[], ["server.aggregator median"]]),
        ([{}, {"client.optimizer.clip_norm": "1.0"}], [[], ["clip norm 1"]]),
        (
            [{"o.name": '"sgd"', "o.lr": "0.1"}, {"o.name": '"adam"', "o.lr": "0.1", "o.beta1": "0.9"}],
            [["o sgd"], ["o adam"]],
        ),
        (
            [{"o.name": '"sgd"'}, *({"o.name": '"momentum"', "o.momentum": momentum} for momentum in ("0.5", "0.9"))],
            [["o sgd"], ["o momentum", "momentum 0.5"], ["o momentum", "momentum 0.9"]],
        ),
        (
            [{"d.name": '"a"', "d.part.name": '"p"'}, {"d.name": '"b"', "d.part.name": '"p"', "d.part.least": "2"}],
            [["d a"], ["d b", "least 2"]],
        ),
        (
            [{"o.name": '"sgd"'}, {"o.name": '"momentum"'}, {"o.name": '"momentum"', "o.clip_norm": "1.0"}],
            [["o sgd"], ["o momentum"], ["o momentum", "clip norm 1"]],
        ),
    ],
    ids=["component", "setting", "components with own settings", "settings of one component", "part of equal name", "option"],
)
def test_setting_that_only_some_methods_have_is_named(settings: list[dict[str, str]], words: list[list[str]]) -> None:
    assert describe_distinct_settings(settings) == words


def test_different_runs_are_never_merged(runs: Path, tmp_path: Path) -> None:
    other_engine = copy_run(runs / "topk-0", tmp_path / "a", 'name = "stacked"', 'name = "sequential"', {"params_sha256": "ff"})
    with pytest.raises(
        ReportError, match=r"have the same settings and seed, but different params_sha256: compare them as LABEL=RUN"
    ):
        load_methods([runs / "topk-0", other_engine])
    assert len(load_methods([runs / "topk-0", ("sequential", other_engine)])) == 2
    with pytest.raises(ReportError, match=r"x: the label has runs that differ in more than their seed.*different labels"):
        load_methods([("x", runs / "topk-0"), ("x", runs / "dense-1")])
    with_module = copy_run(
        runs / "topk-1", tmp_path / "b", "seed = 1", "seed = 1", {"given_in_python": ["module"], "parameters": 610}
    )
    assert len(load_methods([runs / "topk-0", with_module])) == 2, "a module given in Python"


def test_engine_and_seed_do_not_separate_methods(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "topk-0", tmp_path / "a")
    text = (tmp_path / "a" / "scenario.toml").read_text()
    (tmp_path / "a" / "scenario.toml").write_text(
        text.replace('name = "stacked"', 'name = "sequential"').replace("seed = 0", "seed = 7")
    )
    assert len(load_methods([runs / "topk-0", tmp_path / "a"])) == 1
    (tmp_path / "a" / "scenario.toml").write_text(text.replace("lr = 0.05", "lr = 0.07"))
    first, second = load_methods([runs / "topk-0", tmp_path / "a"])
    assert (first.label, second.label) == ("top-k, error feedback, lr 0.05", "top-k, error feedback, lr 0.07")


def test_runs_with_different_sources_of_a_class_are_refused(runs: Path, tmp_path: Path) -> None:
    first, second = (copy_run(runs / f"topk-{seed}", tmp_path / str(seed), "[", "[") for seed in (0, 1))
    edit_summary(first, user_code={"mine:Loss": "12", "mine:Rule": "34"})
    assert [len(method.runs) for method in load_methods([first, second])] == [2], "an earlier release recorded no digests"
    edit_summary(second, user_code={"mine:Loss": "12"})
    assert [len(method.runs) for method in load_methods([first, second])] == [2]
    edit_summary(first, user_code={"mine:Loss": "12", "mine:Loss, imports": "12"})
    edit_summary(second, user_code={"mine:Loss": "12", "mine:Loss, imports": "34"})
    with pytest.raises(ReportError, match=r"different sources of the modules that mine:Loss imports \(sha256 12 and 34\)"):
        load_methods([first, second])
    edit_summary(first, user_code={"mine:Loss": "12", "mine:Rule": "34"})
    edit_summary(second, user_code={"mine:Loss": "12", "mine:Rule": "56"})
    message = (
        f"{first} and {second} have the same method, but different sources of mine:Rule (sha256 34 and 56): "
        "compare them as LABEL=RUN, or run the older one again"
    )
    with pytest.raises(ReportError) as caught:
        load_methods([first, second])
    assert str(caught.value) == message
    with pytest.raises(ReportError, match="different sources of mine:Rule"):
        load_methods([("x", first), ("x", second)])
    with pytest.raises(ReportError, match="different sources of mine:Rule"):
        load_methods([first, runs / "topk-0", second])
    for arguments in (["compare"], ["price", "--network", "4g"], ["report", "--out", tmp_path / "page.html"]):
        result = invoke(*arguments, first, second)
        assert result.exit_code != 0
        assert "different sources of mine:Rule" in result.output
    old, new = load_methods([("old", first), ("new", second)])
    assert describe_other_differences([old, new]) == (
        "the runs differ in more than their method: source of mine:Rule (sha256 34; 56)"
    )
    assert describe_other_differences([old, old]) is None


def test_tuned_method_has_its_best_value(runs: Path, tmp_path: Path) -> None:
    """The accuracies of the second learning rate are edited to be better."""
    shutil.copytree(runs / "topk-0", tmp_path / "worse")
    shutil.copytree(runs / "topk-0", tmp_path / "better")
    text = (tmp_path / "better" / "scenario.toml").read_text()
    (tmp_path / "better" / "scenario.toml").write_text(text.replace("lr = 0.05", "lr = 0.07"))
    rounds = pd.read_parquet(tmp_path / "better" / "rounds.parquet")
    rounds.assign(accuracy=0.99).to_parquet(tmp_path / "better" / "rounds.parquet")
    (method,) = load_methods([tmp_path / "worse", tmp_path / "better"], tuned=["client.optimizer.lr"])
    assert method.best_variant.tuned == {"client.optimizer.lr": 0.07}
    assert method.grid_edge_keys == ("client.optimizer.lr",)
    assert len(method.variants) == 2
    (with_low_target,) = load_methods([tmp_path / "worse", tmp_path / "better"], target=0.05, tuned=["client.optimizer.lr"])
    assert with_low_target.best_variant.tuned == {"client.optimizer.lr": 0.07}, (
        "both reach it in the first round, so the accuracy decides"
    )
    with pytest.raises(ReportError, match=r"there is no setting client\.lr"):
        load_methods([tmp_path], tuned=["client.lr"])


def test_sweep_cells_become_methods_with_failures(runs: Path, tmp_path: Path) -> None:
    folder, rate = tmp_path / "sweep", "client.optimizer.lr"

    def write_cells(*cells: Cell) -> None:
        (folder / "sweep.json").write_text(Sweep(folder, "digits", (rate,), (), cells).to_json())

    for seed in (0, 1):
        shutil.copytree(runs / f"topk-{seed}", folder / "a" / f"seed-{seed}")
    finished = [Cell(f"a/seed-{seed}", "A", "A", {}, {rate: 0.05}, seed, "finished") for seed in (0, 1)]
    failed, waiting = Cell("a/x", "A", "A", {}, {rate: 9.0}, 0, "failed", "NaN"), Cell("a/y", "A", "A", {}, {rate: 9.0}, 1)
    write_cells(*finished, failed, waiting)
    notices: list[str] = []
    (method,) = load_methods([folder], on_notice=notices.append)
    assert notices == [f"{folder}: 1 of 4 cells have not been run yet"]
    assert (method.label, len(method.runs), method.best_variant.tuned) == ("A", 2, {rate: 0.05})
    assert [variant.n_failed for variant in method.variants] == [0, 1]
    assert method.grid_edge_keys == (rate,)
    with pytest.raises(ReportError, match=r"there is no setting client\.optimizer\.lrr, did you mean"):
        load_methods([folder], tuned=["client.optimizer.lrr"])
    write_cells(replace(finished[0], grid={"client.epochs": 1}))
    with pytest.raises(ReportError, match=r"client\.epochs is a setting of its --grid, .* run the sweep with --tune"):
        load_methods([folder], tuned=["client.epochs"])
    failed_cells = [replace(cell, folder=f"b/seed-{cell.seed}", label="B", state="failed") for cell in finished]
    write_cells(*failed_cells, replace(finished[0], tuned={}, label="C"), replace(finished[1], label="C"))
    notices.clear()
    (only,) = load_methods([folder], on_notice=notices.append)
    assert (only.label, len(only.variants), only.grid_edge_keys) == ("C", 2, ())
    assert notices == ["B is ignored: all of its runs ended in an error"]
    write_cells(*failed_cells)
    with pytest.raises(ReportError, match="there is no finished run to compare"):
        load_methods([folder])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", r"not the file of a sweep \(KeyError: 'format'\)"),
        ('{"format": 2}', "got format 2, expected 1"),
        (
            '{"format": 1, "cells": [{"folder": "a", "label": "A", "method": "A", "grid": {}, "tuned": 5, "seed": 0}]}',
            r"not the file of a sweep \(TypeError: cell 'a': expected a text as folder, and tables as grid and tuned",
        ),
        (
            '{"format": 1, "cells": [{"folder": 5, "label": "A", "method": "A", "grid": {}, "tuned": {}, "seed": 0}]}',
            r"not the file of a sweep \(TypeError: cell 5: expected a text as folder",
        ),
    ],
    ids=["no keys", "other format", "settings that are no table", "folder that is no text"],
)
def test_unreadable_file_of_a_sweep_is_named(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(ReportError, match=rf"sweep\.json: {problem}"):
        load_methods([tmp_path])


def test_load_methods_without_runs_names_the_path(tmp_path: Path, runs: Path) -> None:
    with pytest.raises(ReportError, match="there is no such folder"):
        load_methods([tmp_path / "none"])
    with pytest.raises(ReportError, match="has no finished run"):
        load_methods([tmp_path])
    with pytest.raises(ReportError, match=r"runs there: .*dense-0"):
        load_methods([runs / "dense"])


def test_runs_without_accuracy_are_compared_by_their_lowest_loss(tmp_path: Path) -> None:
    examples = fedsgd.Examples(np.ones((20, 3), np.float32), np.ones((20, 1), np.float32))
    dataset, settings = fedsgd.Dataset(examples, examples, None), {"data.partition.clients": 2, "engine.name": "sequential"}
    module, loss = torch.nn.Linear(3, 1), torch.nn.functional.mse_loss
    for lr in (0.05, 0.07):
        scenario = Scenario(name="x", rounds=1).with_settings({**settings, "client.optimizer.lr": lr})
        fedsgd.run(scenario, data=dataset, model=fedsgd.CustomModel(module=module, loss=loss), out=tmp_path / str(lr))
    paths = [tmp_path / "0.05", tmp_path / "0.07"]
    assert [method.best_variant.summarize_best(Criterion()) for method in load_methods(paths)] == [None, None]
    (tuned,) = load_methods(paths, tuned=["client.optimizer.lr"])
    assert tuned.best_variant.tuned == {"client.optimizer.lr": 0.07}, "the lower loss, as in the summaries"
    losses = [json.loads((path / "summary.json").read_text())["best"] for path in paths]
    assert losses[1]["value"] < losses[0]["value"]
    assert [loss["metric"] for loss in losses] == ["loss", "loss"]
    with pytest.raises(ReportError, match=r'target 0\.5: there is no metric "accuracy" in any run, expected one of: "loss"'):
        load_methods(paths, target=0.5)
