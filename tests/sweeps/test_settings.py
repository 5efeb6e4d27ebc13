"""Tests of the settings of a sweep: grids and methods."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fedsgd.errors import ScenarioError
from fedsgd.scenario.scenario import load
from fedsgd.sweeps import parse_grids, plan_cells, read_methods
from fedsgd.sweeps.settings import check_grids, flatten_table, normalize_methods
from tests.sweeps.helpers import run_command

# ------------------------------------------------------------------------------------------------------------------------ grids


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a.b=1,2.5", [1, 2.5]),
        ("a.b= x , true,1e-3", ["x", True, 1e-3]),
        ('a.b=["x, y", "z"]', ["x, y", "z"]),
        ("a.b=[[64], [32, 32]]", [[64], [32, 32]]),
        ('a.b=[{ name = "top-k", density = 0.1 }, "dense"]', [{"name": "top-k", "density": 0.1}, "dense"]),
        ('a.b="x","y"', ["x", "y"]),
    ],
)
def test_grid_text_is_parsed_to_values(text: str, values: list[Any]) -> None:
    (parsed,) = parse_grids([text], "--grid").values()
    assert parsed == values
    assert [type(value) for value in parsed] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a.b"], "--grid a.b: expected KEY=V1,V2,..., for example"),
        (["=1"], "expected KEY=V1"),
        (["a..b=1"], "expected KEY=V1"),
        (["a=1", "a=2"], "--grid a: got it twice"),
        (["a=[1"], "--grid a: not a TOML array"),
        (["a=[64],[32, 32]"], "example with arrays: [[64], [32, 32]]"),
        (['a={ name = "x", density = 1 }'], "--grid a: got '{ name = \"x\"', expected a TOML array, a=[...]"),
    ],
)
def test_invalid_grid_text_is_an_error(texts: list[str], message: str) -> None:
    with pytest.raises(ScenarioError, match=re.escape(message)):
        parse_grids(texts, "--grid")


@pytest.mark.parametrize(
    ("grid", "tune", "message"),
    [
        ({"rounds": []}, {}, "grid rounds: no values"),
        ({"rounds": [1, 2, 1.0]}, {}, "grid rounds: got 1.0 twice"),
        ({}, {"a": ["x", ""]}, "tune a: value 2 is empty"),
        ({"rounds": "12"}, {}, "grid rounds: got '12', expected a list"),
        ({"rounds": [1]}, {"rounds": [2]}, "rounds: got it in grid and in tune, expected it in one of them"),
        ({"seed": [1]}, {}, "grid seed: a sweep sets the seeds itself"),
    ],
)
def test_contradictory_grids_are_an_error(grid: Mapping[str, Any], tune: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=re.escape(message)):
        check_grids(grid, tune)


def test_one_and_true_are_different_values() -> None:
    check_grids({"a": [1, True]}, {})


# ---------------------------------------------------------------------------------------------------------------------- methods


def test_tables_of_sections_are_flattened_and_tables_of_components_are_not() -> None:
    component = {"name": "top-k", "density": 0.1}
    assert flatten_table({"uplink": {"compressor": component, "error_feedback": "persist"}, "rounds": 3}) == {
        "uplink.compressor": component,
        "uplink.error_feedback": "persist",
        "rounds": 3,
    }
    assert flatten_table({"uplink.compressor": component}) == {"uplink.compressor": component}
    assert flatten_table({"client": {"optimizer": {"lr": 0.1}}}) == {"client.optimizer.lr": 0.1}
    assert flatten_table({"model": {"module": "m:f", "arguments": {"width": 3}}}) == {
        "model": {"module": "m:f", "arguments": {"width": 3}}
    }
    partition = {"name": "iid", "clients": 5}
    assert flatten_table({"data": {"name": "digits", "partition": partition}}) == {
        "data.name": "digits",
        "data.partition": partition,
    }


def test_method_sets_the_same_as_load(quickstart: Path) -> None:
    methods = normalize_methods(read_methods(Path("m.toml")), "")
    base = load(quickstart)
    for planned in plan_cells(base, methods, {}, {}, 1, ""):
        assert planned.scenario == load(quickstart, methods[planned.cell.label])
    dense = plan_cells(
        base, {"dense": {"uplink.compressor": {"name": "dense"}, "uplink.error_feedback": "none"}}, {}, {}, 1, ""
    )
    assert not hasattr(dense[0].scenario.uplink.compressor, "density"), "a component is replaced, not merged"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "bad.toml: got no methods"),
        ("rounds = 3", "bad.toml: rounds: expected a table of settings, one for each method, got 3"),
        ("[top-k 1 %]", "bad.toml: not valid TOML"),
        ('[" "]', "bad.toml: [' ']: expected a label of printable characters"),
        ("[a]\nseed = 3", "bad.toml: [a]: seed: a sweep sets the seeds itself"),
        ("[a]\nuplnk.error_feedback = 'none'", 'bad.toml: [a]: uplnk: unknown key, did you mean "uplink"?'),
        (
            '[a]\n["b c"]\nuplink.compressor = { name = "top-k", densty = 0.1 }',
            'bad.toml: [b c]: uplink.compressor.densty: unknown key, did you mean "density"?',
        ),
    ],
)
def test_invalid_file_of_methods_is_an_error(quickstart: Path, run_folders: list[Path], text: str, message: str) -> None:
    Path("bad.toml").write_text(text)
    result = run_command(quickstart, "--methods", "bad.toml", "--out", "o")
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not run_folders
    assert not Path("o").exists()


def test_missing_file_of_methods_is_an_error_with_the_nearest_name(quickstart: Path) -> None:
    assert (
        'mm.toml: cannot be read (No such file or directory), did you mean "m.toml"?'
        in run_command(quickstart, "--methods", "mm.toml").stderr
    )
