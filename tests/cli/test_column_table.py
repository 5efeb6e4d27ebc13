"""Tables that fit the width of a terminal, and the columns of commands."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import pytest
from rich.console import Console

from fedsgd.cli.streams import ERROR_HANDLER
from fedsgd.cli.terminal import column_table
from fedsgd.cli.terminal.column_table import ColumnTable, create_console, fit_columns, print_tables, shorten_labels
from fedsgd.config.text_columns import TextColumn, select_columns
from tests.analysis.helpers import invoke

LABELS = ("mnist, density 0.001, error_feedback none", "mnist, density 0.001, error_feedback persist", "mnist, density 0.1, x")


def make_columns(labels: tuple[str, ...] = LABELS, n_figures: int = 3, width: int = 10) -> list[TextColumn]:
    """Return labels and columns of figures, the first of which is the most important."""
    label = TextColumn("method", "method", labels, align="left", shorten="distinct")
    cells = ("9" * width,) * len(labels)
    return [label, *(TextColumn(f"f{rank}", f"figure {rank}", cells, rank) for rank in range(n_figures))]


def test_columns_that_fit_stay_unchanged() -> None:
    columns = make_columns()
    shown, notes = fit_columns(columns, 80)
    assert (shown, notes) == (columns, [])


def test_labels_are_shortened_before_columns_are_dropped() -> None:
    shown, notes = fit_columns(make_columns(), 60)
    assert [column.name for column in shown] == ["method", "f0", "f1", "f2"]
    assert max(map(len, shown[0].cells)) <= 24
    assert len(set(shown[0].cells)) == 3
    assert notes == ['"…" stands at the start of a method for "mnist, ", elsewhere for a part of a long method']


def test_least_important_column_is_dropped_first() -> None:
    shown, notes = fit_columns(make_columns(), 50, hint="a hint")
    assert [column.name for column in shown] == ["method", "f0", "f1"]
    assert notes[0] == "not shown at 50 columns: figure 2 (a hint)"
    shown, notes = fit_columns(make_columns(), 16, hint="a hint")
    assert [column.name for column in shown] == ["method", "f0"]
    assert notes[0] == "not shown at 16 columns: figure 1; figure 2 (a hint)"


@pytest.mark.parametrize("width", [4, 6, 9, 15, 24])
def test_shortened_labels_fit_and_differ(width: int) -> None:
    label_sets = (LABELS, ("日本語" * 9, "日本語" * 10), tuple(f"{'x' * 30}{i}{'y' * 30}" for i in range(12)), ("a" * 40,) * 2)
    for labels in label_sets:
        cells, _ = shorten_labels(labels, width)
        assert max(map(column_table.cell_len, cells)) <= width
        assert len(set(cells)) == len(set(labels))


def test_selected_columns_follow_the_names() -> None:
    selected = select_columns(make_columns(), ["f2", "f0"])
    assert [(column.name, column.rank) for column in selected] == [("method", 0), ("f2", 0), ("f0", 1)]
    assert [column.name for column in select_columns(make_columns(), ["f2", "method"])] == ["f2", "method"]


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_printed_table_has_no_long_line_and_no_wrapped_cell(width: int) -> None:
    columns = make_columns(n_figures=5)
    columns.append(TextColumn("remark", "remark", ("one, two, three, " * 5,) * 3, 9, "left", "end"))
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        print_tables(console, [ColumnTable(columns, "title")])
    table = list(itertools.takewhile(str.strip, capture.get().splitlines()))
    assert max(map(len, table)) <= width
    assert len(table) - next(i for i, line in enumerate(table) if "─" in line) - 1 == len(LABELS)


def test_table_of_an_ascii_stream_is_aligned() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors=ERROR_HANDLER)
    columns = [*make_columns(n_figures=2), TextColumn("spread", "±", ("1 ± ∞", "2", "3"))]
    print_tables(Console(width=50, file=stream), [ColumnTable(columns)])
    stream.flush()
    lines = stream.buffer.getvalue().decode().splitlines()  # type: ignore[attr-defined]
    assert len({len(line) for line in lines[1:5]}) == 1
    assert lines[2].startswith("~density")
    assert lines[2].endswith("1 +- inf")
    assert '"~" stands at the start of a method for "mnist, "' in "\n".join(lines)


def test_output_outside_a_terminal_is_80_columns_wide_or_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert create_console().width == 80
    monkeypatch.setenv("COLUMNS", "123")
    assert create_console().width == 123


def test_unknown_column_of_a_sweep_is_refused_before_it_runs(root: Path, tmp_path: Path) -> None:
    result = invoke("sweep", root / "scenarios" / "quickstart.toml", "--out", tmp_path / "s", "--columns", "sed")
    assert result.exit_code == 2
    assert '--columns: got "sed", did you mean "seeds"' in result.stderr
    assert not (tmp_path / "s").exists()
