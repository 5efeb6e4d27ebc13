"""`fedsgd init`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from fedsgd.cli.app import main
from fedsgd.cli.completers import complete_member, complete_setting
from fedsgd.cli.key_text import wrap
from fedsgd.cli.options import UserPath, plugin_option
from fedsgd.cli.streams import echo
from fedsgd.errors import OutputError, suggest_name

DATA_FILES = ("mnist", "cifar10", "shakespeare", "text")
"""Datasets whose files are in the folder of --data or FEDSGD_DATA."""


OPTION_KEYS = {
    "dataset": "data.name",
    "partition": "data.partition.name",
    "clients": "clients",
    "model": "model.name",
    "optimizer": "client.optimizer.name",
    "cohort": "server.cohort",
    "compressor": "uplink.compressor.name",
    "rounds": "rounds",
}
"""Setting of each option."""


def _component_option(*names: str, family: str, noun: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return an option with the name of a component."""
    text = f"{noun}, see `fedsgd list {family}`."
    return click.option(*names, metavar="NAME", shell_complete=complete_member(family), help=text)


EXAMPLES = """Examples:

\b
    fedsgd init
    fedsgd init mine.toml --data mnist --partition shards --compressor dgc
"""


@main.command("init", epilog=EXAMPLES, short_help="Write a commented scenario.")
@click.argument("file", type=UserPath(), default="scenario.toml", required=False)
@_component_option("--data", "dataset", family="datasets", noun="Dataset")
@_component_option("--partition", family="partitioners", noun="Partition of the examples over the clients")
@click.option("--clients", type=click.IntRange(min=1), metavar="N", help="Number of clients.")
@_component_option("--model", family="models", noun="Model")
@_component_option("--optimizer", family="optimizers", noun="Optimizer of the clients")
@click.option("--cohort", type=click.IntRange(min=1), metavar="N", help="Number of clients in a round.")
@_component_option("--compressor", family="compressors", noun="Compressor of the clients' updates")
@click.option("--rounds", type=click.IntRange(min=1), metavar="N", help="Maximum number of rounds.")
@click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    shell_complete=complete_setting,
    help="Set any key of the scenario, e.g. data.partition.alpha=0.1. Repeatable.",
)
@click.option("--overwrite", is_flag=True, help="Replace FILE.")
@plugin_option
def init_command(file: Path, settings: Sequence[str], overwrite: bool, **options: Any) -> None:
    """Write a commented scenario to FILE (by default scenario.toml), for `fedsgd run FILE`.

    The keys that a beginner changes have values. All other keys are comments with their defaults. Without options, the
    command asks questions if it runs in a terminal, and otherwise writes the default scenario: top-k at 1 % on handwritten
    digits, which needs no download.

    Settings that an option requires are set too: error feedback for a biased compressor, for example. --set replaces an
    option for the same key.
    """
    from fedsgd.scenario.overrides import find_setting, parse_setting
    from fedsgd.scenario.template import build_scenario, render_template
    from fedsgd.storage.run_directory import write_atomically

    if file.exists() and not overwrite:
        raise OutputError(f"{file}: exists already; choose another file, or pass --overwrite")
    values = dict(map(parse_setting, settings))
    given = {OPTION_KEYS[name]: value for name, value in options.items() if value is not None}
    chosen = {key: value for key, value in given.items() if find_setting(values, key) is None} | values
    if not chosen and _is_terminal():
        chosen = _ask()
    scenario = build_scenario(file.stem, chosen)
    write_atomically(file, render_template(scenario).encode())
    echo(f"written to {file}")
    command = f"fedsgd run {shlex.quote(str(file))}"
    if scenario.data.source.name in DATA_FILES:
        echo(f"next: {command} --data DIR")
        echo(f"DIR has the files of {scenario.data.source.name}, see `fedsgd explain {scenario.data.source.name}`")
    else:
        echo(f"next: {command}")


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _ask() -> dict[str, Any]:
    """Ask for the settings of a new scenario at the terminal. An interrupt is a KeyboardInterrupt."""
    try:
        return _ask_questions()
    except click.Abort:
        echo()
        raise KeyboardInterrupt from None


def _ask_questions() -> dict[str, Any]:
    from fedsgd.compression import COMPRESSORS
    from fedsgd.data import DATASETS, PARTITIONERS, ClientGenerator
    from fedsgd.models import MODELS
    from fedsgd.scenario.template import find_defaults

    echo("Press Enter for the default in [ ].")
    chosen: dict[str, Any] = {}
    chosen["data.name"] = _ask_name("Dataset", [*DATASETS], "digits")
    defaults = find_defaults(chosen["data.name"])
    chosen |= _ask_required("data", DATASETS[chosen["data.name"]])
    if not issubclass(DATASETS[chosen["data.name"]], ClientGenerator):
        key = "data.partition.name"
        chosen[key] = _ask_name("Partition", [*PARTITIONERS], defaults[key])
        chosen |= _ask_required("data.partition", PARTITIONERS[chosen[key]])
    if chosen.get("data.partition.name") not in ("natural", "flwr-datasets"):
        clients = defaults.get("data.partition.clients", defaults.get("data.clients"))
        chosen["clients"] = click.prompt("Number of clients", type=click.IntRange(min=1), default=clients)
    chosen["model.name"] = _ask_name("Model", [*MODELS], defaults["model.name"])
    chosen |= _ask_required("model", MODELS[chosen["model.name"]])
    chosen["uplink.compressor.name"] = _ask_name("Compressor", [*COMPRESSORS], defaults["uplink.compressor.name"])
    chosen["rounds"] = click.prompt("Rounds", type=click.IntRange(min=1), default=defaults["rounds"])
    return chosen


def _ask_name(noun: str, names: Sequence[str], default: str) -> str:
    """Ask for one of several names, or a class of the user's own."""

    def check(name: str) -> str:
        if name not in names and ":" not in name:
            raise click.UsageError(f'got "{name}"{suggest_name(name, names)}')
        return name

    echo(wrap(", ".join(names), 2), dim=True)
    name: str = click.prompt(noun, value_proc=check, default=default)
    return name


def _ask_required(place: str, cls: type) -> Mapping[str, Any]:
    """Ask for the keys of a component that have no default."""
    from fedsgd.config.component import field_defaults
    from fedsgd.scenario.docstrings import find_meaning

    answers = {}
    for f in fields(cls):
        if f.name not in field_defaults(cls):
            echo(wrap(find_meaning(cls, f.name), 2), dim=True)
            answers[f"{place}.{f.name}"] = click.prompt(f"{place}.{f.name}", type=str)
    return answers
