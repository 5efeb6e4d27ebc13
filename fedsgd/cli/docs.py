"""`fedsgd docs`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import groupby

import click

from fedsgd.cli.app import main
from fedsgd.cli.completers import complete_page
from fedsgd.cli.doc_pages import DocPage, find_pages, list_pages, search_pages
from fedsgd.cli.key_text import echo_titled, get_width, wrap
from fedsgd.cli.streams import echo, echo_json
from fedsgd.errors import ScenarioError

EXAMPLES = """Examples:

\b
    fedsgd docs                       all pages, by section
    fedsgd docs first-run             read a page
    fedsgd docs --search break-even   lines with a text
"""


@main.command("docs", epilog=EXAMPLES, short_help="Read the documentation.")
@click.argument("page", required=False, shell_complete=complete_page)
@click.option("--search", "text", metavar="TEXT", help="Print the lines of all pages, or of PAGE, that contain TEXT.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else there.")
def docs_command(page: str | None, text: str | None, as_json: bool) -> None:
    """Read a PAGE of the documentation, or list all pages.

    PAGE is a name of the list, such as guides/first-run, or its last part, first-run. Of several pages with this last part, the
    first in the list is shown. At a terminal a page is formatted and
    shown in a pager; elsewhere it is printed as Markdown.
    """
    pages = list_pages()
    selected = pages
    if page is not None:
        first, *others = find_pages(page, pages)
        selected = [first]
        if others:
            echo(f"fedsgd: {first.name}; also: {', '.join(other.name for other in others)}", err=True)
    if text is not None:
        _print_matches(text, selected, as_json)
    elif as_json:
        entries = [{"name": p.name, "title": p.title, **({"text": p.text} if page is not None else {})} for p in selected]
        echo_json(json.dumps(entries[0] if page is not None else entries, indent=2, ensure_ascii=False))
    elif page is None:
        _print_list(pages)
    else:
        _show(selected[0])


def _print_list(pages: Sequence[DocPage]) -> None:
    for section, members in groupby(pages, key=lambda page: page.section):
        if section:
            echo(section, bold=True)
        for page in members:
            echo_titled(page.name, f": {page.title}", 2 * bool(section))


def _print_matches(text: str, pages: Sequence[DocPage], as_json: bool) -> None:
    if not text.strip():
        raise ScenarioError("docs: --search needs a text")
    matches = list(search_pages(text, pages))
    if as_json:
        entries = [{"page": page.name, "line": number, "text": line} for page, number, line in matches]
        echo_json(json.dumps(entries, indent=2, ensure_ascii=False))
        return
    if not matches:
        raise ScenarioError(f'docs: no page contains "{text}"')
    for name, lines in groupby(matches, key=lambda match: match[0].name):
        echo(name, bold=True)
        for _, number, line in lines:
            echo(wrap(f"{number}: {line}", 2, 6))


def _show(page: DocPage) -> None:
    """Print a page, at a terminal formatted and in a pager."""
    if not sys.stdout.isatty():
        echo(page.text.rstrip("\n"))
        return
    from fedsgd.cli.terminal.markdown import format_markdown

    click.echo_via_pager(format_markdown(page.text, get_width()))
