"""Tests of the plan of a sweep's cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedsgd.errors import ScenarioError
from fedsgd.scenario.scenario import Scenario
from fedsgd.sweeps import plan_cells
from tests.sweeps.helpers import run_command


def test_cells_are_all_combinations_in_order_of_seeds(short_scenario: Scenario) -> None:
    methods = {"top-k": {}, "TOP-K": {"uplink.compressor.density": 0.5}}
    base = short_scenario.with_settings({"seed": 7})
    plan = plan_cells(base, methods, {"client.batch_size": [5, 10]}, {"client.optimizer.lr": [0.1, 0.2]}, 2, "")
    cells = [planned.cell for planned in plan]
    assert len(cells) == 16
    assert len({cell.folder for cell in cells}) == 16
    assert [cell.seed for cell in cells] == [7] * 8 + [8] * 8
    assert {cell.label for cell in cells[:4]} == {cell.label for cell in cells}, "all methods before the next value"
    first, last = cells[0], cells[-1]
    assert first.folder == "top-k-batch-size-5/lr-0.1/seed-7"
    assert str(last) == "TOP-K, batch_size 10, lr 0.2, seed 8"
    assert last.folder == "top-k-batch-size-10-2/lr-0.2/seed-8"
    assert (last.method, last.grid, last.tuned) == ("TOP-K", {"client.batch_size": 10}, {"client.optimizer.lr": 0.2})
    expected = short_scenario.with_settings(
        {"uplink.compressor.density": 0.5, "client.batch_size": 10, "client.optimizer.lr": 0.2, "seed": 8}
    ).with_settings({"evaluation.validation": 0.1})
    assert plan[-1].scenario == expected


def test_tuned_cells_have_a_validation_split_unless_scenario_or_method_sets_it(short_scenario: Scenario) -> None:
    def plan_shares(base: Scenario, tune: dict[str, Any], **methods: dict[str, Any]) -> list[float | None]:
        plan = plan_cells(base, methods or {"a": {}}, {}, tune, 1, "")
        return [planned.scenario.evaluation.validation for planned in plan]

    tune = {"client.optimizer.lr": [0.1]}
    assert plan_shares(short_scenario, tune) == [0.1]
    assert plan_shares(short_scenario, {}) == [None]
    assert plan_shares(short_scenario.with_settings({"evaluation.validation": 0.3}), tune) == [0.3]
    assert plan_shares(short_scenario, tune, a={"evaluation.validation": 0.2}, b={}) == [0.2, 0.1]
    for keys in ({}, tune):
        (planned,) = plan_cells(short_scenario.with_settings({"evaluation.validation": 0}), {"a": {}}, {}, keys, 1, "")
        assert "validation" not in planned.scenario.to_toml(), "the file of a cell of earlier releases"


def test_grid_may_set_a_key_that_a_method_lacks(short_scenario: Scenario) -> None:
    """The method alone is not a valid scenario."""
    (planned,) = plan_cells(short_scenario, {"mine": {"data.name": "npz"}}, {"data.path": ["a.npz"]}, {}, 1, "")
    assert planned.cell.label == "mine, path a.npz"


def test_equal_labels_are_an_error(short_scenario: Scenario) -> None:
    methods: dict[str, dict[str, Any]] = {"a": {}, "a, name y": {}}
    with pytest.raises(ScenarioError, match=r'm\.toml: two pairs of method .* "a, name y, name x"'):
        plan_cells(short_scenario, methods, {"name": ["x", "y, name x"]}, {}, 1, "m.toml: ")


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (
            "uplink.compressor.densty=0.1",
            'cell "quickstart, densty 0.1, seed 0": uplink.compressor.densty: unknown key, did you',
        ),
        ("uplnk.x=1", 'cell "quickstart, x 1, seed 0": uplnk: unknown key, did you mean "uplink"?'),
        ("rounds=2,0", 'cell "quickstart, rounds 0, seed 0": rounds: '),
        ("rounds=2,", "grid rounds: value 2 is empty"),
        ("rounds=2,3,2", "grid rounds: got 2 twice"),
        ("uplink.compressor.name=top-k,sgn", 'compressor.name: got "sgn", did you mean "sign"?'),
    ],
)
def test_invalid_cell_is_an_error_before_the_first_run(
    quickstart: Path, run_folders: list[Path], grid: str, message: str
) -> None:
    result = run_command(quickstart, "--grid", grid, "--out", "o")
    assert (result.exit_code, run_folders) == (2, [])
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not Path("o").exists()
