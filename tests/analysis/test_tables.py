"""Tables of comparisons in four formats."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedsgd.analysis import compare, load_methods
from fedsgd.analysis.pricing import BreakEven
from fedsgd.analysis.tables import describe_break_evens, format_cell, format_rounds, save_table, to_latex, to_markdown
from fedsgd.errors import OutputError
from fedsgd.experiment.time_to_target import summarize_seeds
from tests.analysis.helpers import PRICING_MODEL


def test_cell_of_unreached_seeds_says_so() -> None:
    assert format_cell(summarize_seeds([None, None]), format_rounds) == "not reached"
    assert format_cell(summarize_seeds([3, None, 5]), format_rounds) == "5 (3 to ∞)"
    assert format_cell(summarize_seeds([3, None]), format_rounds) == "not reached (1 of 2 do)"
    assert format_cell(summarize_seeds([3]), format_rounds) == "3"
    assert format_cell(summarize_seeds([3, 3]), format_rounds) == "3"
    assert format_cell(summarize_seeds([1, 2, 4.5]), lambda v: f"{v:g} kB") == "2 kB (1 to 4.5 kB)"


def test_table_is_written_in_four_formats(runs: Path, tmp_path: Path) -> None:
    comparison = compare(load_methods([runs]), 0.5, {"slow": PRICING_MODEL})
    for suffix in ("csv", "json", "md", "tex"):
        save_table(comparison, tmp_path / f"t.{suffix}")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text())))
    assert [row["method"] for row in rows] == [row.label for row in comparison.rows]
    assert float(rows[0]["uplink_bytes median"]) == comparison.rows[0].up_bytes.median
    content = json.loads((tmp_path / "t.json").read_text())
    assert content["methods"][0]["rounds"]["median"] == comparison.rows[0].rounds.median
    assert content["terms"]["slow"]["network"]["link"]["up_bits_per_second"] == 1e6
    lines = to_markdown(comparison).splitlines()
    assert len({line.count("|") for line in lines[:5]}) == 1
    assert lines[2].startswith("| dense | 0.")
    latex = to_latex(comparison)
    assert latex.count(r"\\") == 4
    assert r"\begin{tabular}{lrrrrr}" in latex
    for name, problem in (("t.xls", 'got a table ".xls"'), ("none/t.csv", "there is no folder")):
        with pytest.raises(OutputError, match=problem):
            save_table(comparison, tmp_path / name)


def test_special_characters_in_labels_are_escaped(runs: Path) -> None:
    method = replace(load_methods([runs / "dense-0"])[0], label=r"50 % of_it & #1 ~ a|b {x} \y")
    comparison = compare([method])
    assert r"50 \% of\_it \& \#1 \textasciitilde{} a|b \{x\} \textbackslash{}y" in to_latex(comparison)
    assert r"a\|b" in to_markdown(comparison)


def test_break_evens_are_described_as_ranges() -> None:
    two = [BreakEven("A", "B", 1e6), BreakEven("B", "A", 1e9)]
    three = [*two, BreakEven("A", "B", 1e10)]
    assert list(describe_break_evens(two[:1])) == ["A is faster than B below 1 Mbit/s up"]
    assert list(describe_break_evens(two)) == ["A is faster than B below 1 Mbit/s and above 1 Gbit/s up"]
    assert list(describe_break_evens(three)) == ["A is faster than B below 1 Mbit/s and between 1 Gbit/s and 10 Gbit/s up"]
