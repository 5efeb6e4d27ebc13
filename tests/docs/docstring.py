"""Sections of a docstring in Google style."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_SECTION = re.compile(r"^(Args|Returns|Raises|Warns|Yields|Attributes):\n((?:[ \t]+.*\n?|\n)*)", re.MULTILINE)
_ENTRY = re.compile(r"^    ([*\w, ]+): (.*(?:\n {5,}.*)*)", re.MULTILINE)
_EXAMPLE = re.compile(r"^([ ]*)>>> .*\n(?:[ ]*\S.*\n?)*", re.MULTILINE)


@dataclass(frozen=True)
class Docstring:
    """Parts of a docstring.

    Attributes:
        summary: first line.
        blocks: paragraphs, list entries and formulas, as `fedsgd.scenario.docstrings.find_description` returns them.
        sections: entries (names, text) by the title of their section.
        example: lines of the doctests.
    """

    summary: str
    blocks: tuple[str, ...] = ()
    sections: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    example: str = ""


def parse_docstring(text: str | None) -> Docstring:
    """Return the parts of a docstring.

    Args:
        text: docstring as it stands in the code.
    """
    cleaned = inspect.cleandoc(text or "")
    summary, _, body = cleaned.partition("\n")
    sections = {title: _parse_entries(content) for title, content in _SECTION.findall(body)}
    body = _SECTION.sub("", body)
    examples = [inspect.cleandoc("\n" + match[0]) for match in _EXAMPLE.finditer(body)]
    return Docstring(summary, tuple(_split_blocks(_EXAMPLE.sub("", body))), sections, "\n\n".join(examples))


def _parse_entries(content: str) -> list[tuple[str, str]]:
    entries = [(names, " ".join(text.split())) for names, text in _ENTRY.findall(content)]
    return entries or [("", " ".join(content.split()))]


def _split_blocks(body: str) -> Iterator[str]:
    for paragraph in filter(str.strip, re.split(r"\n\s*\n", body)):
        lines = paragraph.strip("\n").splitlines()
        if lines[0].startswith("    "):
            yield from lines
        else:
            entries = re.split(r"\n(?=[*-] )", paragraph.strip())
            yield from (re.sub(r"^- ", "* ", " ".join(entry.split())) for entry in entries)
