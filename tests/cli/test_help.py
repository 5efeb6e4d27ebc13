"""Help texts: summaries that are not cut, and options in groups."""

from __future__ import annotations

import re

import click
import pytest

from fedsgd.cli import main
from tests.analysis.helpers import invoke

GROUPS = {
    "compare": ["Runs", "Network", "Devices and time", "Cost", "Output", "Other options"],
    "price": ["Runs", "Network", "Devices and time", "Cost", "Output", "Fleet", "Other options"],
    "report": ["Runs", "Network", "Devices and time", "Cost", "Output", "Fleet", "Other options"],
}


def test_summaries_are_not_cut_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = invoke("--help").stdout.splitlines()
    summaries = lines[lines.index("Commands:") + 1 :]
    assert [line.split()[0] for line in summaries] == sorted(main.commands)
    assert not [line for line in summaries if line.endswith("...") or len(line) > 80]


@pytest.mark.parametrize("name", GROUPS)
def test_options_are_in_groups_and_appear_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = invoke(name, "--help").stdout
    assert [line[:-1] for line in text.splitlines() if re.fullmatch(r"[A-Z][a-z ]+:", line)] == GROUPS[name]
    text = text[text.index("\nRuns:\n") :]
    command = main.commands[name]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert len(re.findall(rf"^  {parameter.opts[0]}\b(?!-)", text, re.MULTILINE)) == 1, parameter.name
    listed = re.findall(r"^  (-[-\w]+)", text, re.MULTILINE)
    assert sorted(listed) == sorted([*(p.opts[0] for p in command.params if isinstance(p, click.Option)), "-h"])
