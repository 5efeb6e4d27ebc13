"""`fedsgd docs`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import groupby

import click

from fedsgd.cli.app import main
from fedsgd.cli.completers import complete_page
from fedsgd.cli.doc_pages import DocPage, find_pages, find_section, list_pages, search_pages
from fedsgd.cli.key_text import echo_titled, get_width, wrap
from fedsgd.cli.streams import echo, echo_json
from fedsgd.errors import ScenarioError

EXAMPLES = """Examples:

\b
    fedsgd docs                       all pages, by section
    fedsgd docs first-run             read a page
    fedsgd docs guides                pages of a section
    fedsgd docs --search break-even   lines with a text
"""


@main.command("docs", epilog=EXAMPLES, short_help="Read the documentation.")
@click.argument("page", required=False, shell_complete=complete_page)
@click.option("--search", "text", metavar="TEXT", help="Print the lines of all pages, or of PAGE, that contain TEXT.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else there.")
def docs_command(page: str | None, text: str | None, as_json: bool) -> None:
    """Read a PAGE of the documentation, or list all pages.

    PAGE is a name of the list, such as guides/first-run, its last part, first-run, or the beginning of the last part. Of
    several such pages, the first in the list is shown. With the name of a section, such as guides, its pages are listed. At a
    terminal a page is formatted and shown in a pager; elsewhere it is printed as Markdown.
    """
    pages = list_pages()
    section = find_section(page, pages) if page is not None else pages
    selected = section or [_select_page(str(page), pages)]
    if text is not None:
        _print_matches(text, selected, as_json)
    elif as_json:
        entries = [{"name": p.name, "title": p.title, **({} if section else {"text": p.readable_text})} for p in selected]
        echo_json(json.dumps(entries if section else entries[0], indent=2, ensure_ascii=False))
    elif section:
        _print_list(section)
    else:
        _show(selected[0])


def _select_page(name: str, pages: Sequence[DocPage]) -> DocPage:
    """Return the first page with a name, after printing the names of the others."""
    first, *others = find_pages(name, pages)
    if others:
        echo(f"fedsgd: {first.name}; also: {', '.join(other.name for other in others)}", err=True)
    return first


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
    if not matches:
        raise ScenarioError(f'docs: no page contains "{text}"')
    if as_json:
        entries = [{"page": page.name, "line": number, "text": line} for page, number, line in matches]
        echo_json(json.dumps(entries, indent=2, ensure_ascii=False))
        return
    for name, lines in groupby(matches, key=lambda match: match[0].name):
        echo(name, bold=True)
        for _, number, line in lines:
            echo(wrap(f"{number}: {line}", 2, 6))


def _show(page: DocPage) -> None:
    """Print a page, at a terminal formatted and in a pager."""
    if not sys.stdout.isatty():
        echo(page.readable_text.rstrip("\n"))
        return
    from fedsgd.cli.terminal.markdown import format_markdown

    click.echo_via_pager(format_markdown(page.text_with_names, get_width()))
