"""Pages of the command line: one for each command."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

import click

from fedsgd.cli import main
from fedsgd.cli.option_groups import UNGROUPED, GroupedCommand, GroupedOption
from tests.docs.markdown import bullets, code, code_block, escape, link, make_page, paragraph, split_pages, table

NOT_RUN = "<!-- not run: examples of the help text; the guides run them -->"
GUIDES = {
    "run": "first-run",
    "sweep": "compare-methods",
    "compare": "compare-methods",
    "report": "compare-methods",
    "price": "price-networks",
    "certify": "certify",
    "flower": "flower-deployment",
    "partition": "own-data",
    "plan": "plan",
    "replicate": "replicate",
    "init": "scenarios",
    "list": "scenarios",
    "explain": "scenarios",
}
"""Guide of each command."""


def build_cli_pages() -> dict[str, str]:
    """Return the pages cli/COMMAND.md and cli/index.md by path."""
    pages = {"cli/index.md": _build_index()}
    for name, command in sorted(main.commands.items()):
        pages |= _build_command_pages(name, command)
    return pages


def list_options(command: click.Command) -> list[click.Option]:
    """Return the options of a command that its help shows, without --help, which every command has.

    Args:
        command: command of fedsgd.
    """
    context = _make_context(command)
    return [p for p in command.params if isinstance(p, click.Option) and p.get_help_record(context) is not None]


def _make_context(command: click.Command) -> click.Context:
    parent = click.Context(main, info_name="fedsgd", **main.context_settings)
    return click.Context(command, info_name=command.name, parent=parent)


def _build_index() -> str:
    rows = [
        (link(f"fedsgd {name}", f"{name}.md"), command.get_short_help_str(100))
        for name, command in sorted(main.commands.items())
    ]
    blocks = textwrap.dedent(main.help or "").strip().split("\n\n")
    return make_page(
        "# Command line",
        *(paragraph(" ".join(block.split())) for block in blocks),
        table(("command", "what it does"), rows),
        paragraph(
            "`fedsgd COMMAND --help`, or `-h`, prints the same as the page of a command. `fedsgd --version` prints the version."
        ),
    )


def _build_command_pages(name: str, command: click.Command) -> dict[str, str]:
    context = _make_context(command)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    intro = [code_block(usage), *_render_help(command.help or "")]
    if name in GUIDES:
        guide = link(GUIDES[name].replace("-", " "), f"../../guides/{GUIDES[name]}.md")
        intro.append(paragraph(f"Guide: {guide}.", is_markdown=True))
    parts = [f"## {heading}\n\n{bullets(entries)}" for heading, entries in _group_options(command, context).items()]
    return split_pages(f"cli/{name}.md", f"fedsgd {name}", intro, [*parts, *_render_epilog(command.epilog or "")])


def _group_options(command: click.Command, context: click.Context) -> dict[str, list[str]]:
    """Return the entries of the options by the heading of their group, ungrouped options last."""
    groups: dict[str, list[str]] = {}
    for option in list_options(command):
        names, text = option.get_help_record(context) or ("", "")
        is_grouped = isinstance(command, GroupedCommand) and isinstance(option, GroupedOption)
        heading = option.group if is_grouped else UNGROUPED
        description = escape(" ".join(text.split()).replace("  [", " ["))
        groups.setdefault(heading, []).append(f"{code(names)}: {description}")
    if list(groups) == [UNGROUPED]:
        return {"Options": groups[UNGROUPED]}
    return dict(sorted(groups.items(), key=lambda item: item[0] == UNGROUPED))


def _render_help(text: str) -> Iterator[str]:
    """Yield the paragraphs of a help text; those after a line "\\b" keep their lines."""
    for block in textwrap.dedent(text.split("\f")[0]).strip().split("\n\n"):
        if block.startswith("\b"):
            yield code_block(textwrap.dedent(block.removeprefix("\b").strip("\n")))
        else:
            yield paragraph(" ".join(block.split()))


def _render_epilog(text: str) -> Iterator[str]:
    """Yield the sections of an epilog, each a title and a block of lines."""
    for title, block in re.findall(
        r"^(\w[^\n]*):\n\n\x08\n(.*?)(?=\n\n\w|\Z)", text.strip("\n") + "\n", re.MULTILINE | re.DOTALL
    ):
        lines = textwrap.dedent(block).strip("\n")
        is_shell = all(line.startswith(("fedsgd ", " ", "#")) for line in lines.splitlines() if line)
        rendered = f"{NOT_RUN}\n{code_block(lines, 'sh')}" if is_shell and "fedsgd " in lines else code_block(lines)
        yield f"## {title}\n\n{rendered}"
