"""Checks of blocks that are not run: options of commands, settings of scenarios, tables of TOML."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from importlib.util import find_spec
from itertools import pairwise

import click

from fedsgd.cli import main
from fedsgd.scenario.overrides import parse_setting
from fedsgd.scenario.scenario import load, parse_scenario
from fedsgd.sweeps.runner import _plan_sweep
from fedsgd.sweeps.settings import parse_grids
from tests.docs.blocks import ROOT, Block


def check_options(block: Block, words: list[str]) -> None:
    """Check that a command exists and has the options, that its files exist, and that its scenario has the settings.

    Args:
        block: block of the command.
        words: command and its arguments.
    """
    for path in (word for word in words if re.match(r"(?:scenarios|tests)/", word)):
        assert (ROOT / path).exists(), f"{block.place}: no file {path}"
    if words[:2] == ["python", "-m"]:
        assert words[2] in ("pip", "mkdocs", "pytest", "http.server") or find_spec(words[2]), (
            f"{block.place}: no module {words[2]}"
        )
    if words[0] != "fedsgd":
        return
    context = click.Context(main, **main.context_settings)
    command = main.get_command(context, words[1])
    assert command is not None, f"{block.place}: no command {words[1]}"
    command.make_parser(click.Context(command, info_name=words[1], parent=context)).parse_args(words[2:])
    settings = dict(parse_setting(value) for option, value in pairwise(words) if option == "--set")
    paths = [word for word in words if re.fullmatch(r"scenarios/[\w/]+\.toml", word)]
    if words[1] in ("run", "plan", "partition", "flower"):
        load(ROOT / paths[0], settings)
    elif words[1] == "sweep":
        grids = [
            parse_grids([value for option, value in pairwise(words) if option == name], name) for name in ("--grid", "--tune")
        ]
        methods = ROOT / paths[1] if len(paths) > 1 else None
        _plan_sweep(load(ROOT / paths[0], settings), methods, *grids, 1)


def check_toml(block: Block) -> None:
    """Check that a block of TOML is valid: a scenario, tables of a scenario, or the methods of a sweep.

    Args:
        block: block of the page.
    """
    tables = tomllib.loads(block.text)
    if block.is_excluded or "project" in tables or "tool" in tables:
        return
    if block.find_comment("methods file") is not None:
        for table in tables.values():
            load(ROOT / "scenarios" / "quickstart.toml").with_settings(table)
        return
    quickstart = tomllib.loads((ROOT / "scenarios" / "quickstart.toml").read_text())
    parse_scenario(_merge(quickstart, tables))


def _merge(base: Mapping[str, object], tables: Mapping[str, object]) -> dict[str, object]:
    """Return tables over those of a base. A table with another `name`, or a key that excludes one, replaces the table."""
    merged = dict(base)
    for key, value in tables.items():
        old = base.get(key)
        is_same_component = (
            isinstance(old, Mapping) and isinstance(value, Mapping) and value.get("name") in (None, old.get("name"))
        )
        merged[key] = (
            _merge(old, value) if is_same_component and isinstance(old, Mapping) and isinstance(value, Mapping) else value
        )
    for section, pair in (("client", ("steps", "epochs")), ("server", ("fraction", "cohort"))):
        new, table = tables.get(section), merged.get(section)
        for key, other in (pair, pair[::-1]):
            if isinstance(new, Mapping) and isinstance(table, dict) and key in new and other not in new:
                table.pop(other, None)
    return merged
