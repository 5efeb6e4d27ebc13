"""Texts from the docstrings of sections and components."""

from __future__ import annotations

import inspect
import re

_ATTRIBUTES = re.compile(r"^Attributes:\n((?:[ \t]+.*\n?|\n)*)", re.MULTILINE)
_ATTRIBUTE = re.compile(r"^    ([\w, ]+): (.*(?:\n {5,}.*)*)", re.MULTILINE)


def find_meaning(cls: type, key: str) -> str:
    """Return the meaning of a field, from the docstring of its class or of a base class; "" if no docstring describes it.

    Python's None, True and False are spelled as in a file.

    Args:
        cls: dataclass.
        key: name of the field.
    """
    for base in cls.__mro__:
        section = _ATTRIBUTES.search(_read_docstring(base))
        for names, text in _ATTRIBUTE.findall(section[1] if section else ""):
            if key in map(str.strip, names.split(",")):
                return re.sub(r"(^|\. )?\b(None|True|False)\b", _spell_as_toml, " ".join(text.split()))
    return ""


def _spell_as_toml(match: re.Match[str]) -> str:
    word = {"None": "unset", "True": "true", "False": "false"}[match[2]]
    return f"{match[1]}{word.capitalize()}" if match[1] and word == "unset" else f"{match[1] or ''}{word}"


def find_summary(cls: type) -> str:
    """Return the first line of a docstring, without the name of a section in front.

    Args:
        cls: section or component.
    """
    return re.sub(r"^\[\w+\]: ", "", _read_docstring(cls).partition("\n")[0])


def find_description(cls: type) -> list[str]:
    """Return the blocks of a docstring between its first line and its attributes, each without line breaks.

    A block is a paragraph, an entry of a list, which begins with "* ", or a line of a formula, which begins with spaces.

    Args:
        cls: component.
    """
    text = _read_docstring(cls).partition("\n")[2]
    paragraphs = re.split(r"\n\s*\n", re.split(r"^(?:Attributes:|>>> )", text, maxsplit=1, flags=re.MULTILINE)[0])
    blocks = []
    for paragraph in filter(None, map(str.strip, paragraphs)):
        is_formula = f"    {paragraph}" in text
        parts = paragraph.splitlines() if is_formula else re.split(r"\n(?=\* )", paragraph)
        blocks += [f"{'    ' * is_formula}{' '.join(part.split())}" for part in parts]
    return blocks


def _read_docstring(cls: type) -> str:
    return inspect.cleandoc(vars(cls).get("__doc__") or "")
