"""`fedsgd init`: the file that it writes, its questions and its messages."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fedsgd.cli import main
from fedsgd.scenario.scenario import load


def fedsgd(*arguments: str, answers: str | None = None) -> Result:
    """Run a command line of fedsgd, with answers to its questions."""
    return CliRunner().invoke(main, arguments, input=answers)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_scenario_without_options_is_written_and_runs() -> None:
    result = fedsgd("init")
    assert (result.exit_code, result.stdout) == (0, "written to scenario.toml\nnext: fedsgd run scenario.toml\n")
    small = ("--set", "rounds=1", "--set", "client.epochs=1", "--set", "engine.name=sequential")
    run = fedsgd("run", "scenario.toml", *small, "--quiet", "--out", "o")
    assert run.exit_code == 0, run.output


def test_options_are_settings_of_the_scenario() -> None:
    names = {"--data": "mnist", "--partition": "shards", "--model": "cnn", "--optimizer": "momentum", "--compressor": "qsgd"}
    numbers = {"--clients": "50", "--cohort": "5", "--rounds": "3", "--set": "data.partition.shards_per_client=4"}
    options = [text for option in (names | numbers).items() for text in option]
    result = fedsgd("init", "my files.toml", *options)
    assert result.stdout.splitlines() == [
        "written to my files.toml",
        "next: fedsgd run 'my files.toml' --data DIR",
        "DIR has the files of mnist, see `fedsgd explain mnist`",
    ]
    scenario = load("my files.toml")
    assert (scenario.name, scenario.rounds, scenario.server.cohort, scenario.data.n_clients) == ("my files", 3, 5, 50)
    chosen = (
        scenario.data.source,
        scenario.data.partition,
        scenario.model,
        scenario.client.optimizer,
        scenario.uplink.compressor,
    )
    assert [component.name for component in chosen] == [*names.values()]
    assert "shards_per_client = 4" in Path("my files.toml").read_text()


def test_set_replaces_an_option_for_the_same_key() -> None:
    options = ("--clients", "5", "--rounds", "3", "--compressor", "qsgd", "--partition", "iid", "--optimizer", "nesterov")
    settings = ("data.partition.clients=6", "rounds=4", "uplink.compressor=sign", 'data.partition={name="shards"}')
    settings = (*settings, "client={optimizer={lr=0.5},epochs=2}")
    assert fedsgd("init", "a.toml", *options, *(text for setting in settings for text in ("--set", setting))).exit_code == 0
    scenario = load("a.toml")
    assert (scenario.data.n_clients, scenario.rounds, scenario.client.epochs) == (6, 4, 2)
    names = (scenario.data.partition.name, scenario.uplink.compressor.name, scenario.client.optimizer.name)
    assert names == ("shards", "sign", "nesterov"), "a table without the key leaves the option"


def test_existing_file_is_replaced_only_with_overwrite() -> None:
    Path("a.toml").write_text("# mine")
    result = fedsgd("init", "a.toml")
    assert (result.exit_code, result.stderr) == (
        2,
        "fedsgd: a.toml: exists already; choose another file, or pass --overwrite\n",
    )
    assert Path("a.toml").read_text() == "# mine"
    assert fedsgd("init", "a.toml", "--overwrite").exit_code == 0
    assert tomllib.loads(Path("a.toml").read_text())["name"] == "a"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--compressor", "topk"), 'fedsgd: uplink.compressor.name: got "topk", did you mean "top-k"?\n'),
        (("--data", "npz"), 'fedsgd: data.path: missing, expected for example path = "my_arrays.npz"\n'),
        (("--set", "uplink.compressor.densty=1"), 'fedsgd: uplink.compressor.densty: unknown key, did you mean "density"?\n'),
        (
            ("--partition", "natural"),
            'fedsgd: data.partition: got "natural", but digits has no owners; '
            'expected another partition, or data with owners: "shakespeare", or "hugging-face" with data.owner\n',
        ),
        (
            ("--set", "server.cohort=abc"),
            'fedsgd: server.cohort: expected a whole number of at least 1, or the key left out, got "abc"\n',
        ),
        (("--set", "rounds"), "fedsgd: --set rounds: expected KEY=VALUE, for example uplink.compressor.density=0.1\n"),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_wrong_option_is_one_line_and_writes_nothing(options: tuple[str, ...], message: str) -> None:
    result = fedsgd("init", "a.toml", *options)
    assert (result.exit_code, result.stderr) == (2, message)
    assert [*Path.cwd().iterdir()] == []


def test_folder_that_does_not_exist_is_one_line() -> None:
    result = fedsgd("init", "nowhere/a.toml")
    assert (result.exit_code, result.stderr) == (2, "fedsgd: nowhere/a.toml: cannot be written (No such file or directory)\n")


@pytest.mark.usefixtures("_terminal")
def test_questions_at_a_terminal_have_defaults() -> None:
    assert fedsgd("init", "asked.toml", answers="\n" * 6).exit_code == 0
    assert "Number of clients [20]: " in fedsgd("init", "asked.toml", "--overwrite", answers="\n" * 6).stdout
    assert fedsgd("init", "other.toml", "--data", "digits").stdout.startswith("written to"), "an option leaves no question"
    asked, other = (load(name) for name in ("asked.toml", "other.toml"))
    assert replace(asked, name="other") == other


@pytest.mark.usefixtures("_terminal")
def test_answers_are_checked_and_required_keys_are_asked_for() -> None:
    result = fedsgd("init", "a.toml", answers="npx\nnpz\nmine.npz\niid\n6\n\nqsgd\n2\n")
    assert result.exit_code == 0
    assert 'Error: got "npx", did you mean "npz"?' in result.stdout
    scenario = load("a.toml")
    assert scenario.to_toml().count('path = "mine.npz"') == 1
    assert (scenario.data.n_clients, scenario.uplink.compressor.name, scenario.rounds) == (6, "qsgd", 2)


@pytest.fixture
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsgd.cli.init._is_terminal", lambda: True)


@pytest.mark.usefixtures("_terminal")
def test_interrupted_questions_write_nothing() -> None:
    result = fedsgd("init", "a.toml", answers="mnist\n")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "fedsgd: interrupted")
    assert not Path("a.toml").exists()
