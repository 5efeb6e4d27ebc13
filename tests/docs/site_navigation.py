"""Hook of mkdocs: the navigation of the site has the pages in the order of `fedsgd docs`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fedsgd.cli.doc_pages import list_pages

TITLES = {"cli": "Commands"}
"""Titles of folders that differ from their names."""


def on_config(config: Any) -> Any:
    """Set the navigation: sections are folders, and their titles are their names."""
    navigation: list[Any] = []
    groups: dict[str, list[Any]] = {"": navigation}
    for page in list_pages():
        _group(page.section, groups).append(
            {page.title: f"{page.name}.md"} if page.name.rpartition("/")[2] != "index" else f"{page.name}.md"
        )
    config["nav"] = navigation
    return config


def _group(section: str, groups: dict[str, list[Any]]) -> list[Any]:
    """Return the list of a section's pages, after adding it to the list of the folder above."""
    if section not in groups:
        folder, _, name = section.rpartition("/")
        groups[section] = []
        _group(folder, groups).append({TITLES.get(name, name.capitalize()): groups[section]})
    return groups[section]
