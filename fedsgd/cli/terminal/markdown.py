"""Markdown as formatted text for a terminal."""

from __future__ import annotations

import io
import re
from textwrap import indent

from rich.console import Console
from rich.markdown import Markdown
from rich.text import Text

FENCED_BLOCK = re.compile(r"^```[^\n]*\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def format_markdown(text: str, width: int) -> str:
    """Format Markdown with the escape codes of a terminal. Lines of code keep their length, so that they can be copied.

    Args:
        text: the page in Markdown.
        width: number of columns for prose and tables.
    """
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width)
    for i, part in enumerate(FENCED_BLOCK.split(text)):
        if i % 2:
            console.print(Text(indent(part, "    "), style="cyan"), soft_wrap=True)
        elif part.strip():
            console.print(Markdown(part, hyperlinks=False))
            console.print()
    return stream.getvalue()
