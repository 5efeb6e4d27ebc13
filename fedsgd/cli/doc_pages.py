"""Pages of the documentation that the package contains."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from fedsgd.errors import ScenarioError, suggest_name

FOLDER = Path(str(files("fedsgd"))) / "docs"
"""Folder of the pages."""
HOME = "index"
"""Name of the first page, which links to the others in the order of reading."""


@dataclass(frozen=True)
class DocPage:
    """Page of the documentation.

    Attributes:
        name: path below the folder of pages without its suffix, such as "guides/first-run".
        text: the page in Markdown.
    """

    name: str
    text: str

    @property
    def section(self) -> str:
        """Name of the page's folder, such as "guides" or "reference/cli"; "" for the first page."""
        return self.name.rpartition("/")[0]

    @property
    def title(self) -> str:
        """Heading of the page."""
        match = re.search(r"^# (.+)$", self.text, flags=re.MULTILINE)
        return match[1].replace("`", "") if match else self.name

    @property
    def links(self) -> list[str]:
        """Names of the pages that this page links to, in the order of the last links to them."""
        targets = re.findall(r"\]\((?!\w+:)([^)#\s]+)\.md(?:#[^)]*)?\)", self.text)
        folder = (FOLDER / self.name).parent
        paths = [(folder / target).resolve() for target in targets]
        names = [path.relative_to(FOLDER.resolve()).as_posix() for path in paths if path.is_relative_to(FOLDER.resolve())]
        return list(dict.fromkeys(reversed(names)))[::-1]


def list_pages() -> list[DocPage]:
    """Return all pages: those of an index in the order of its links, and the others of the same folder after them."""
    pages = {page.name: page for page in _read_pages()}
    names = list(_follow_indexes(HOME, pages, set()))
    sections = list(dict.fromkeys(pages[name].section for name in names))
    rest = [name for name in sorted(pages) if name not in names]
    sections += sorted({pages[name].section for name in rest} - set(sections))
    return [pages[name] for section in sections for name in [*names, *rest] if pages[name].section == section]


def find_page(name: str, pages: Sequence[DocPage]) -> DocPage:
    """Return a page by its name, or by the last part of its name.

    Args:
        name: name of a page; ".md" at its end, and the number of a tutorial's page may be present or not.
        pages: all pages.

    Raises:
        ScenarioError: no page has the name, or several have it.
    """
    wanted = name.removeprefix("./").removesuffix(".md").rstrip("/")
    matches = [page for page in pages if page.name in (wanted, f"{wanted}/{HOME}")]
    matches = matches or [page for page in pages if wanted in _short_names(page)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        listed = ", ".join(f'"{page.name}"' for page in matches)
        raise ScenarioError(f'docs: "{name}" is the name of several pages: {listed}')
    names = [alternative for page in pages for alternative in (page.name, *_short_names(page))]
    raise ScenarioError(f'docs: no page "{name}"{suggest_name(wanted, names)}; `fedsgd docs` lists all pages')


def search_pages(text: str, pages: Sequence[DocPage]) -> Iterator[tuple[DocPage, int, str]]:
    """Yield (page, line number, line) of each line that contains a text, upper and lower case being equal.

    Args:
        text: text to look for.
        pages: pages to search.
    """
    for page in pages:
        for number, line in enumerate(page.text.splitlines(), 1):
            if text.casefold() in line.casefold():
                yield page, number, line.strip()


def _read_pages() -> Iterator[DocPage]:
    for path in sorted(FOLDER.rglob("*.md")):
        yield DocPage(path.relative_to(FOLDER).with_suffix("").as_posix(), path.read_text(encoding="utf-8"))


def _follow_indexes(name: str, pages: dict[str, DocPage], visited: set[str]) -> Iterator[str]:
    """Yield the names of the pages that an index links to, and of those that their indexes link to."""
    visited.add(name)
    yield name
    if name.rpartition("/")[2] != HOME:
        return
    for link in pages[name].links if name in pages else []:
        if link in pages and link not in visited:
            yield from _follow_indexes(link, pages, visited)


def _short_names(page: DocPage) -> list[str]:
    """Return the last part of a page's name, with and without a number; of an index, the name of its folder."""
    last = page.name.removesuffix(f"/{HOME}").rpartition("/")[2]
    return list(dict.fromkeys([last, re.sub(r"^\d+-", "", last)]))
