"""Descriptions of sections, components and keys as text that fits the terminal."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from fedsgd.cli.streams import echo

if TYPE_CHECKING:
    from fedsgd.scenario.key_reference import ComponentReference, KeyReference, SectionReference

MIN_WIDTH, MAX_WIDTH = 40, 100
LABEL_WIDTH = 9
NO_BREAK = "\0"
"""Stands for a space at which no line is broken."""
NO_MEANING = "(the docstring of the class does not describe this key)"


def get_width() -> int:
    """Return the number of columns for a text."""
    return max(MIN_WIDTH, min(MAX_WIDTH, shutil.get_terminal_size().columns))


def wrap(text: str, indent: int = 0, hanging: int | None = None) -> str:
    """Break a text into lines that fit the terminal.

    `indent` is the number of spaces in front of the first line, and `hanging` of the other lines, the same by default.
    """
    spaces = " " * indent, " " * (indent if hanging is None else hanging)
    return textwrap.fill(text, get_width(), initial_indent=spaces[0], subsequent_indent=spaces[1], break_on_hyphens=False)


def echo_titled(title: str, text: str, indent: int = 0) -> None:
    """Print a coloured title and a text after it, wrapped."""
    lines = wrap(f"{title}{text}", indent, indent + 4)
    echo(lines.replace(title, click.style(title, fg="cyan"), 1))


def format_default(default: Any, options: Sequence[Any] = (), required: bool = False) -> str:
    """Return a key's default, spelled nearly as in TOML, "(unset)" or "(required)", and then its other options."""
    alternatives = [json.dumps(value) for value in options if value != default]
    if default is None or required:
        return " | ".join(["(required)" if required else "(unset)", *alternatives])
    return " | ".join([json.dumps(default, ensure_ascii=False), *alternatives])


def echo_keys(keys: Mapping[str, str], title: str = "") -> None:
    """Print keys with their defaults, several on a line, behind the title of a family or below a component."""
    indent = 2 if title else 6
    entries = [_join_words(f"{key} = {default}", get_width() - indent - 1) for key, default in keys.items()]
    if entries:
        echo(wrap(f"{title}{', '.join(entries)}", indent, 6).replace(NO_BREAK, " "), dim=True)


def _join_words(entry: str, width: int) -> str:
    """Replace the spaces of an entry by NO_BREAK; an entry that is too long for a line may be broken before its options."""
    joined = entry.replace(" ", NO_BREAK)
    return joined if len(entry) <= width else joined.replace(f"{NO_BREAK}|{NO_BREAK}", f" |{NO_BREAK}")


def echo_section_overview(section: SectionReference) -> None:
    """Print a section as one line, and its keys with their defaults."""
    echo_titled(_format_heading(section), f": {section.summary}", 2)
    echo_keys({_get_name(key): _format_key_default(key, with_options=key.default is None) for key in section.keys})


def echo_section(section: SectionReference, in_full: bool = False) -> None:
    """Print a section with the type and the meaning of each key, of which the first sentence unless `in_full`."""
    echo_titled(_format_heading(section), f": {section.summary}")
    for key in section.keys:
        echo()
        _echo_key_of_table(key, in_full)
    if section.family:
        echo()
        echo(wrap(f"Further keys are those of the component that `name` selects: `fedsgd list {section.family}`."), dim=True)


def echo_component(component: ComponentReference) -> None:
    """Print a component: its docstring, the keys of a scenario that accept it, an example, and its keys."""
    aliases = f", or {', '.join(component.aliases)}" if component.aliases else ""
    echo_titled(component.name, f" ({component.family}{aliases}): {component.summary}")
    is_paragraph = True
    for block in component.description:
        indent = 2 + len(block) - len(block.lstrip())
        if is_paragraph or not block.startswith((" ", "* ")):
            echo()
        is_paragraph = not block.startswith((" ", "* "))
        echo(wrap(block.strip(), indent, indent + 2 * block.startswith("* ")))
    echo()
    _echo_row("used in", ", ".join(component.places))
    _echo_row("class", component.class_name)
    _echo_examples(component)
    for key in component.keys:
        echo()
        _echo_key_of_table(key, in_full=True)


def echo_key(key: KeyReference) -> None:
    """Print all that is known about a key, with an example."""
    echo_titled(key.key, f" (of {', '.join(key.components)})" if key.components else "")
    echo(wrap(key.meaning or NO_MEANING, 2))
    echo()
    _echo_row("type", key.type)
    _echo_row("default", _format_key_default(key))
    if _accepts_components(key):
        _echo_row("options", ", ".join(map(str, key.options)))
    if key.components:
        _echo_row("class", ", ".join(key.components.values()))
    _echo_examples(key)


def _echo_key_of_table(key: KeyReference, in_full: bool) -> None:
    echo_titled(_get_name(key), f" = {_format_key_default(key)}", 2)
    meaning = key.meaning if in_full else key.summary
    echo(wrap(meaning or NO_MEANING, 6))
    echo(wrap(f"type: {key.type}", 6), dim=True)
    if _accepts_components(key):
        echo(wrap(f"options: {', '.join(map(str, key.options))}", 6), dim=True)


def _echo_row(label: str, text: str) -> None:
    echo(wrap(f"{label:{LABEL_WIDTH}}{text}", 2, 2 + LABEL_WIDTH))


def _echo_examples(described: KeyReference | ComponentReference) -> None:
    from fedsgd.scenario.toml_text import format_tables

    lines = format_tables(described.example, get_width() - LABEL_WIDTH - 2).splitlines()
    settings = [f"--set {setting}" for setting in described.settings]
    for label, entries in (("TOML", lines), ("or", settings)):
        for i, entry in enumerate(entries):
            echo(f"  {label if i == 0 else '':{LABEL_WIDTH}}{entry}")


def _format_heading(section: SectionReference) -> str:
    from fedsgd.scenario.key_reference import TOP_LEVEL

    return TOP_LEVEL if section.section == TOP_LEVEL else f"[{section.section}]"


def _get_name(key: KeyReference) -> str:
    return key.key.rpartition(".")[2]


def _accepts_components(key: KeyReference) -> bool:
    """Return True for options that the type of the key does not list."""
    return bool(key.options) and not all(json.dumps(option) in key.type for option in key.options)


def _format_key_default(key: KeyReference, with_options: bool = False) -> str:
    from fedsgd.scenario.toml_text import format_toml_value

    if key.required or key.default is None:
        return format_default(None, key.options if with_options and not _accepts_components(key) else (), key.required)
    return format_toml_value(key.default)
