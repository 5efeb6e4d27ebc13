"""README: its commands are those that CI runs, its code runs, its files exist."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from fedsgd.compression import ErrorFeedback
from fedsgd.config.registry import import_by_path
from fedsgd.scenario.scenario import load, parse_scenario
from fedsgd.testing import check_compressor
from tests.flower import run

pytestmark = pytest.mark.examples

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Return the README's fenced blocks of code in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def test_readme_test_command_is_run_by_ci() -> None:
    first, second, *_ = blocks("sh")
    assert first.strip() == "python -m pip install . && fedsgd run scenarios/quickstart.toml"
    assert "python -m pytest" in second
    assert second.strip() in (ROOT / ".ci" / "run").read_text().splitlines()


def test_flower_app_commands_are_run_by_ci() -> None:
    (block,) = (block for block in blocks("sh") if "flwr run" in block)
    install, command = block.splitlines()
    assert command == run.COMMAND
    script = [line.strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]
    assert {install, "python -m tests.flower.run simulation"} <= set(script)


def test_named_files_exist() -> None:
    for name in re.findall(r"`((?:fedsgd|scenarios|tests)/[\w./-]*)`", README):
        assert (ROOT / name).exists(), name


def test_readme_pictures_are_in_the_folder_of_figures() -> None:
    picture_paths = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert picture_paths
    assert {ROOT / path for path in picture_paths} <= set((ROOT / "fedsgd" / "docs" / "figures").iterdir())


def test_scenario_rows_state_a_time() -> None:
    rows = re.findall(r"^\| `scenarios/.*$", README, flags=re.MULTILINE)
    assert len(rows) > 15
    for row in rows:
        assert re.search(r"\| \d+ s \|$", row), row


def test_ratios_of_bytes_name_their_direction() -> None:
    """Each sentence and table row of the README, of the scenarios' comments and of the scripts' docstrings is checked."""
    ratio = r"\bratios?\b(?!\.py)|(?:st|nd|rd|th) of the bytes|(?:times|×) (?:smaller|fewer|less)\b"
    texts = {"README.md": re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)}
    for path in (ROOT / "scenarios").rglob("*.*"):
        if path.suffix == ".toml":
            texts[path.name] = re.sub(r"\n# ?", " ", "\n".join(re.findall(r"^#.*", path.read_text(), flags=re.MULTILINE)))
        elif path.suffix == ".py":
            texts[path.name] = ast.get_docstring(ast.parse(path.read_text())) or ""
    sentences = [(name, sentence) for name, text in texts.items() for sentence in re.split(r"(?<=[.])\s|\n(?=\|)|\n\n", text)]
    claims = [(name, sentence) for name, sentence in sentences if re.search(ratio, sentence)]
    assert len(claims) > 15
    assert not re.search(r"\| (?:compression )?ratios? \|", README), "a column states one direction, or both together"
    for name, sentence in claims:
        assert re.search(r"\b(?:up|down|uplink|downlink|both ways|both directions)\b", sentence), f"{name}: {sentence}"


def test_readme_lists_every_scenario() -> None:
    packages = [path.parent for path in (ROOT / "scenarios").rglob("pyproject.toml")]
    assert len(packages) == 2
    assert all(f"`{package.relative_to(ROOT)}`" in README for package in packages), "a package is listed by its folder"
    for path in (ROOT / "scenarios").rglob("*.*"):
        if path.suffix in (".toml", ".py") and not any(package in path.parents for package in packages):
            assert f"`{path.relative_to(ROOT)}`" in README


def test_example_scenario_loads_and_round_trips() -> None:
    (text,) = blocks("toml")
    scenario = parse_scenario(tomllib.loads(text))
    assert parse_scenario(tomllib.loads(scenario.to_toml())) == scenario


def test_settings_in_commands_are_valid() -> None:
    from fedsgd.scenario.overrides import parse_setting

    commands = [line for block in blocks("sh") for line in block.splitlines() if re.search("fedsgd (run|partition) ", line)]
    assert len(commands) > 4
    for command in commands:
        (path,) = re.findall(r"scenarios/\w+\.toml", command)
        load(ROOT / path, dict(parse_setting(text) for text in re.findall(r"--set (\S+)", command)))


def test_python_example_prints_three_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = (block for block in blocks("python") if "fedsgd.run(" in block)
    monkeypatch.chdir(ROOT)
    tiny = example.replace('{"', '{"rounds": 2, "client.epochs": 1, "', 1)
    assert tiny != example
    exec(tiny, {})
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_ledger_queries_print_the_documented_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README shows queries in three libraries, with their output; digits may differ on another machine."""
    from fedsgd.experiment.runner import run

    queries = [block for block in blocks("python") if "quickstart-1/" in block]
    assert [re.findall(r"^import (\w+)", query)[0] for query in queries] == ["pandas", "duckdb", "polars"]
    run(load(ROOT / "scenarios" / "quickstart.toml"), out=tmp_path / "runs" / "quickstart-1")
    monkeypatch.chdir(tmp_path)
    for query in queries:
        exec(query, {})
    output = capsys.readouterr().out
    assert "bits_a_position" in output
    assert re.search(r"│ [67] +┆ 0\.9", output)


def test_described_columns_are_the_columns_of_the_tables() -> None:
    from fedsgd.experiment.ledger import COLUMNS
    from fedsgd.storage.run_directory import ROUND_COLUMNS

    for file, columns in (("ledger", COLUMNS), ("rounds", ROUND_COLUMNS)):
        (table,) = re.findall(rf"^\| `{file}\.parquet` \| \| \|\n((?:\|.*\n)+)", README, flags=re.MULTILINE)
        names = set(re.findall(r"`(\w+)`", table))
        assert names - {"loss", "accuracy"} == set(columns)


def test_example_compressor_obeys_the_laws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = (block for block in blocks("python") if "class MySign" in block)
    (tmp_path / "my_sign.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    check_compressor(ErrorFeedback(import_by_path("my_sign:MySign")()))
