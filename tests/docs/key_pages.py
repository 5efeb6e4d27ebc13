"""Pages of the sections of a scenario, with an entry for each key."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from fedsgd.config.component import add_article
from fedsgd.scenario.companions import find_companions
from fedsgd.scenario.key_reference import TOP_LEVEL, KeyReference, describe_section, list_sections
from fedsgd.scenario.key_search import find_keys, list_names
from fedsgd.scenario.parsing import REGISTRIES
from fedsgd.scenario.toml_text import format_tables, format_toml_value
from tests.docs.markdown import bullets, code, code_block, escape, link, paragraph, sentence, split_pages

FAMILIES = {registry.plural: registry for registry in REGISTRIES.values()}
"""Registries of all component families by the plural of their name."""


def build_key_pages() -> dict[str, str]:
    """Return the pages keys/SECTION.md by path."""
    return {path: text for name in list_sections() for path, text in _build_section_pages(name).items()}


@cache
def list_section_keys(section: str) -> tuple[KeyReference, ...]:
    """Return the keys of a section, and those of the tables in it that belong to no component.

    Args:
        section: one of `list_sections`.
    """
    keys = {key.key: key for key in describe_section(section).keys}
    for name in list_dotted_keys():
        parent = keys.get(name.rpartition(".")[0])
        if parent is not None and not find_family(parent) and name.count(".") > 1:
            keys |= {key.key: key for key in find_keys(name) if not key.components}
    return tuple(keys.values())


@cache
def list_dotted_keys() -> tuple[str, ...]:
    """Return all dotted keys of a scenario, those of components included."""
    return tuple(name for name in list_names() if "." in name)


def component_link(family: str, name: str, root: str = "../") -> str:
    """Return a link to the entry of a component.

    Args:
        family: plural of the family.
        name: name of the component.
        root: path from the page to the folder of the reference.
    """
    page = f"compressors/{name}.md" if family == "compressors" else f"components/{family}.md#{name}"
    return link(name, f"{root}{page}")


def format_default(key: KeyReference) -> str:
    """Return the default of a key as Markdown."""
    if key.required:
        return "required"
    return "unset" if key.default is None else code(format_toml_value(key.default))


def format_meaning(key: KeyReference) -> str:
    """Return the meaning of a key as a sentence."""
    return sentence(escape(key.meaning))


def _build_section_pages(name: str) -> dict[str, str]:
    section = describe_section(name)
    title = "Keys above all tables" if name == TOP_LEVEL else f"Keys: [{name}]"
    intro = [paragraph(sentence(section.summary)), *_describe_use(name, section.family)]
    return split_pages(f"keys/{name}.md", title, intro, [_format_key(key) for key in list_section_keys(name)])


def _describe_use(name: str, family: str) -> list[str]:
    keys = list_section_keys(name)
    tables: dict[str, Any] = {}
    for key in keys:
        parts = key.key.split(".")
        if key.default is not None and not key.required and len(parts) <= 2:
            table = tables if name == TOP_LEVEL else tables.setdefault(name, {})
            table[parts[-1]] = key.default
    blocks = [code_block(format_tables(tables), "toml")] if tables and find_companions(tables) == {} else []
    if blocks:
        blocks.insert(0, paragraph("The section with its defaults; keys that are unset by default are left out:"))
    if family:
        listing = link(family, f"../components/{family}.md")
        text = f"The component that `{name}.name` selects adds its own keys to the section: see {listing}."
        blocks.append(paragraph(text, is_markdown=True))
    return blocks


def _format_key(key: KeyReference) -> str:
    family = find_family(key)
    options = format_components(key) if family else ""
    entries = [
        f"Type: {escape(key.type)}",
        f"Default: {format_default(key)}",
        f"Options: {options}" if options else "",
        f"{code(key.key + '.name')}: the name, where a table holds further keys"
        if family and not key.key.endswith("name")
        else "",
        f"Example: {' '.join(code(f'--set {setting}') for setting in key.settings)}",
    ]
    return f"## {code(key.key)}\n\n{paragraph(format_meaning(key), is_markdown=True)}\n\n{bullets(filter(None, entries))}"


def find_family(key: KeyReference) -> str:
    """Return the plural of the family whose members a key accepts, "" for other keys.

    Args:
        key: description of the key.
    """
    nouns = {f"{add_article(registry.family)}": plural for plural, registry in FAMILIES.items()}
    match = re.match(r"(?:the name of )?(.*?)(?:: its name.*)?$", key.type)
    return nouns.get(match[1], "") if match else ""


def format_components(key: KeyReference) -> str:
    """Return the components that a key accepts, without those of plugins that are installed here, and a link to their page.

    Args:
        key: key that accepts the members of a family.
    """
    family = find_family(key)
    names = ", ".join(str(name) for name in key.options if name in [*FAMILIES[family]])
    page = "compressors/index.md" if family == "compressors" else f"components/{family}.md"
    return f"{names} (see {link(family, f'../{page}')})"
