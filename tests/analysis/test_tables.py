"""Tables of comparisons in four formats."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedsgd.analysis import compare, load_methods
from fedsgd.analysis.columns import TableConfig, build_text_columns, format_cell, format_rounds
from fedsgd.analysis.comparison import Comparison
from fedsgd.analysis.pricing import BreakEven
from fedsgd.analysis.tables import describe_break_evens, save_table, to_csv, to_json, to_latex, to_markdown
from fedsgd.config.quantities import format_bytes, format_seconds
from fedsgd.errors import OutputError, ScenarioError
from fedsgd.experiment.time_to_target import summarize_seeds
from fedsgd.scenario.target import parse_target
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
    assert lines[2].startswith("| dense | 2 | 0.")
    assert to_latex(comparison).count(r"\\") == 4
    for name, problem in (("t.xls", 'got a table ".xls"'), ("none/t.csv", "there is no folder")):
        with pytest.raises(OutputError, match=problem):
            save_table(comparison, tmp_path / name)


def test_special_characters_in_labels_are_escaped(runs: Path) -> None:
    method = replace(load_methods([runs / "dense-0"])[0], label=r"50 % of_it & #1 ~ a|b {x} \y")
    comparison = compare([method])
    assert r"50 \% of\_it \& \#1 \textasciitilde{} a|b \{x\} \textbackslash{}y" in to_latex(comparison)
    assert r"| 50 % of\_it & #1 \~ a\|b {x} \\y |" in to_markdown(comparison)
    notes = replace(comparison, rows=tuple(replace(row, warnings=("*a* of <b>",)) for row in comparison.rows))
    assert to_markdown(notes).splitlines()[-1] == r"- 50 % of\_it & #1 \~ a\|b {x} \\y: warning: \*a\* of \<b>"
    marked = replace(method, label="<x>|*y* [1] < 2, ~~a~~ &lt; b & c")
    assert r"| \<x>\|\*y\* \[1] < 2, \~\~a\~\~ \&lt; b & c |" in to_markdown(compare([marked]))


def test_cell_of_mean_has_the_sample_standard_deviation() -> None:
    summary = summarize_seeds([3, 5])
    assert (summary.mean, summary.std) == (4, pytest.approx(2**0.5))
    assert format_cell(summary, "{:.1f} kB".format, statistic="mean") == "4.0 ± 1.4 kB"
    assert format_cell(summary, "{:.1f} kB".format, "\n", "mean") == "4.0 kB\n± 1.4"
    assert format_cell(summarize_seeds([3]), "{:.1f} kB".format, statistic="mean") == "3.0 kB"
    assert format_cell(summarize_seeds([3, 5, None]), "{:.1f} kB".format, statistic="mean") == "not reached (2 of 3 do)"


def test_cell_of_two_lines_has_a_common_unit_once() -> None:
    assert format_cell(summarize_seeds([1, 2, 4.5]), "{:g} kB".format, "\n") == "2 kB\n1–4.5"
    assert format_cell(summarize_seeds([1, 2, None]), "{:g} kB".format, "\n") == "2 kB\n1–∞"


def test_durations_of_two_units_are_written_in_full() -> None:
    summary = summarize_seeds([190, 250, 310])
    assert format_cell(summary, format_seconds) == "4 min 10 s (3 min 10 s to 5 min 10 s)"
    assert format_cell(summary, format_seconds, "\n") == "4 min 10 s\n3 min 10 s–5 min 10 s"
    assert format_cell(summary, format_seconds, statistic="mean") == "4 min 10 s ± 1 min"


def make_comparison(comparison: Comparison) -> Comparison:
    """Return two methods with two seeds each, of which the second method does not reach the target."""
    first = replace(
        comparison.rows[0],
        label="dense",
        seeds=2,
        up_bytes=summarize_seeds([2e6, 4e6]),
        best_value=summarize_seeds([0.5, 0.75]),
    )
    second = replace(first, label="top-k", seeds=1, n_failed=1, up_bytes=summarize_seeds([2.5e6, None]))
    return replace(comparison, rows=(first, second), target=parse_target(0.5))


def test_latex_table_has_units_spread_seeds_and_caption(runs: Path) -> None:
    comparison = make_comparison(compare(load_methods([runs / "dense-0"])))
    config = TableConfig("mean", ("method", "seeds", "best", "up"), mark_best=True)
    lines = to_latex(comparison, config, "paper").splitlines()
    assert [line.strip() for line in lines[lines.index(r"\begin{table}") :]] == [
        r"\begin{table}",
        r"\centering",
        r"\caption{Mean $\pm$ sample standard deviation over 2 seeds, to 0.5 test accuracy.}",
        r"\label{tab:paper}",
        r"\begin{tabular}{lrr@{\,}lr@{\,}l}",
        r"\toprule",
        r"method & seeds  & \multicolumn{2}{r}{best accuracy} & \multicolumn{2}{r}{uplink to 0.5 (MB)} \\",
        r"\midrule",
        r"dense  & 2      & \textbf{0.6250} & $\pm$ 0.1768    & \textbf{3.00} & $\pm$ 1.41 \\",
        r"top-k  & 1 of 2 & \textbf{0.6250} & $\pm$ 0.1768    & \multicolumn{2}{r}{not reached (1 of 2 do)} \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    median = to_latex(comparison, TableConfig(columns=("up",), caption="50 % of_it"), "a b%")
    assert r"\label{tab:a-b-}" in median
    assert r"\caption{50 \% of\_it}" in median
    assert r"dense  & 3.00 & (2.00 to 4.00) \\" in median
    assert "textbf" not in median


@pytest.mark.parametrize(("value", "text"), [(0.000123456, "0.000123"), (0.25, "0.2500"), (12345.678, "12,346")])
def test_latex_figures_of_a_metric_have_significant_decimals(runs: Path, value: float, text: str) -> None:
    comparison = compare(load_methods([runs / "dense-0"]))
    rows = (replace(comparison.rows[0], label="[a]", best_value=summarize_seeds([value])),)
    lines = to_latex(replace(comparison, rows=rows), TableConfig(columns=("best",))).splitlines()
    (row,) = (line for line in lines if "{[}a]" in line)
    assert row.split("&")[1].strip() == text + r" \\"


def test_json_names_the_statistic_of_its_table(runs: Path) -> None:
    comparison = make_comparison(compare(load_methods([runs / "dense-0"])))
    assert "medians over seeds" in to_json(comparison)
    assert "means over seeds" in to_json(comparison, "mean")


def test_markdown_marks_the_best_value_and_has_chosen_columns(runs: Path) -> None:
    comparison = make_comparison(compare(load_methods([runs / "dense-0"])))
    lines = to_markdown(comparison, TableConfig("mean", ("up", "method"), mark_best=True)).splitlines()
    assert lines[0] == "| uplink to 0.5 | method |"
    assert lines[2:4] == ["| **3 ± 1.41 MB** | dense |", "| not reached (1 of 2 do) | top-k |"]
    assert "- means over seeds, ± the sample standard deviation (n − 1)" in lines


def test_csv_has_mean_and_standard_deviation(runs: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(make_comparison(compare(load_methods([runs / "dense-0"])))))))
    assert [row["uplink_bytes mean"] for row in rows] == ["3000000.0", ""]
    assert float(rows[0]["uplink_bytes std"]) == pytest.approx(2**0.5 * 1e6)


def test_columns_are_ranked_by_importance(runs: Path) -> None:
    methods = load_methods([runs / "dense-0"])
    comparison = compare(methods, 0.5, {"a": PRICING_MODEL, "b": PRICING_MODEL})
    ranks = {column.heading: column.rank for column in build_text_columns(comparison)}
    assert sorted(ranks, key=lambda heading: ranks[heading])[1:] == [
        *("time to 0.5, a", "uplink to 0.5", "downlink to 0.5", "time to 0.5, b", "best accuracy", "rounds to 0.5"),
    ]
    assert {column.name: column.rank for column in build_text_columns(compare(methods))}["best"] == 0


def test_final_value_and_bytes_both_ways_are_shown_only_if_selected(runs: Path) -> None:
    (method,) = load_methods([runs / "dense-0"])
    comparison = compare([method])
    (row,), (run,) = comparison.rows, method.runs
    assert row.final_value == summarize_seeds([run.rounds["accuracy"][-1]])
    assert not {"final", "both"} & {column.name for column in build_text_columns(comparison)}
    columns = build_text_columns(comparison, TableConfig(columns=("final", "both")))
    assert [column.heading for column in columns] == ["method", "final accuracy", "both ways in all"]
    assert columns[2].cells == (format_bytes(run.summary["uplink_bytes"] + run.summary["downlink_bytes"]),)
    assert "both ways in all (MB)" in to_latex(comparison, TableConfig(columns=("both",)))
    (record,) = csv.DictReader(io.StringIO(to_csv(comparison)))
    assert float(record["final_accuracy median"]) == run.rounds["accuracy"][-1]


def test_latex_table_has_notes_below_it(runs: Path) -> None:
    comparison = compare(load_methods([runs / "dense-0"]))
    assert "footnotesize" not in to_latex(comparison)
    tuned = (replace(comparison.rows[0], tuned={"client.optimizer.lr": 0.1}, grid_edge_keys=("client.optimizer.lr",)),)
    for caption, start in (None, "Tuned values"), ("mine", "Figures of a run, of whole runs. Tuned values"):
        lines = to_latex(replace(comparison, rows=tuned), TableConfig(caption=caption)).splitlines()
        note = lines[lines.index(r"  \end{tabular}") + 1]
        assert note.startswith(rf"  \par\smallskip{{\footnotesize {start} were chosen on the test examples (accuracy)")
        assert note.endswith(
            r"* the best value is the smallest or largest value that was tried; a better value may exist "
            r"beyond this edge.\par}"
        )


def test_unknown_column_is_refused_with_the_nearest_name(runs: Path) -> None:
    comparison = compare(load_methods([runs / "dense-0"]))
    with pytest.raises(ScenarioError, match=r'--columns: got "dwn", did you mean "down"\?'):
        build_text_columns(comparison, TableConfig(columns=("up", "dwn")))


def test_break_evens_are_described_as_ranges() -> None:
    two = [BreakEven("A", "B", 1e6), BreakEven("B", "A", 1e9)]
    three = [*two, BreakEven("A", "B", 1e10)]
    assert list(describe_break_evens(two[:1])) == ["A is faster than B below 1 Mbit/s up"]
    assert list(describe_break_evens(two)) == ["A is faster than B below 1 Mbit/s and above 1 Gbit/s up"]
    assert list(describe_break_evens(three)) == ["A is faster than B below 1 Mbit/s and between 1 Gbit/s and 10 Gbit/s up"]
