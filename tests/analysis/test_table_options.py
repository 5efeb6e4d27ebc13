"""Options of tables: columns that fit, columns by name, statistic, caption."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.analysis.helpers import invoke


@pytest.mark.slow
def test_compare_fits_80_columns_and_names_what_it_drops(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = invoke("compare", runs, "--network", "4g,3g,wifi,lora", "--target", "0.3", "--price-per-gigabyte", "1")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines[: lines.index("")])) <= 80
    note = " ".join(result.stdout.partition("not shown at 80 columns: ")[2].split())
    assert "rounds to 0.3" in note.partition("(--columns chooses; --json or a wider terminal shows all)")[0]
    monkeypatch.setenv("COLUMNS", "300")
    assert "not shown" not in invoke("compare", runs, "--network", "4g,3g", "--target", "0.3").stdout


@pytest.mark.parametrize(
    ("command", "names", "headings"),
    [
        ("compare", "down,rounds", ["method", "downlink in all", "rounds in all"]),
        ("price", "bytes", ["method", "bytes in all"]),
    ],
)
def test_columns_option_chooses_and_orders(
    runs: Path, monkeypatch: pytest.MonkeyPatch, command: str, names: str, headings: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    result = invoke(command, runs, "--network", "4g", "--columns", names)
    assert result.exit_code == 0, result.output
    heading = next(line for line in result.stdout.splitlines() if line.startswith("method"))
    assert heading.split() == " ".join(headings).split()


@pytest.mark.parametrize("command", ["compare", "price"])
def test_unknown_column_is_one_line(runs: Path, command: str) -> None:
    result = invoke(command, runs, "--network", "4g", "--columns", "method,tme")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == 'fedsgd: --columns: got "tme", did you mean "time"?\n'


def test_caption_and_mark_best_need_a_table_that_has_them(runs: Path, tmp_path: Path) -> None:
    for option in (("--caption", "c"), ("--mark-best",)):
        result = invoke("compare", runs, *option, "--out", tmp_path / "t.csv")
        assert result.exit_code == 2
        assert f"{option[0]} needs --out with a file .tex" in result.stderr
