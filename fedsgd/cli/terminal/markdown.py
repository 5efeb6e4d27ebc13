"""Markdown as formatted text for a terminal."""

from __future__ import annotations

import io

from rich.console import Console
from rich.markdown import Markdown


def format_markdown(text: str, width: int) -> str:
    """Format Markdown with the escape codes of a terminal.

    Args:
        text: the page in Markdown.
        width: number of columns.
    """
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width)
    console.print(Markdown(text, hyperlinks=False))
    return stream.getvalue()
