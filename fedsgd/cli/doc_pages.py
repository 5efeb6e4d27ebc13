"""Pages of the documentation that the package contains."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from fedsgd.errors import ScenarioError, suggest_name

FOLDER = Path(str(files("fedsgd"))) / "docs"
"""Folder of the pages."""
HOME = "index"
"""Name of the first page, and of the first page of a folder; its links have the order of reading."""
SECTIONS = ("", "tutorial", "guides", "reference", "results", "design")
"""Folders in the order of reading."""


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
    def readable_text(self) -> str:
        """The page without comments, which are for the generator and the tests."""
        return re.sub(r"^ *<!--.*?-->\n+", "", self.text, flags=re.MULTILINE | re.DOTALL)

    @property
    def text_with_names(self) -> str:
        """The page without comments, in which links lead to names of pages, as `fedsgd docs` accepts them."""
        folder = (FOLDER / self.name).parent

        def name_target(match: re.Match[str]) -> str:
            path = (folder / match[1]).resolve()
            return f"]({path.relative_to(FOLDER.resolve()).as_posix()})" if path.is_relative_to(FOLDER.resolve()) else match[0]

        return re.sub(r"\]\((?!\w+:)([^)#\s]+)\.md(?:#[^)]*)?\)", name_target, self.readable_text)

    @property
    def links(self) -> list[str]:
        """Names of the pages that this page links to, in the order of the links."""
        targets = re.findall(r"\]\((?!\w+:)([^)#\s]+)\.md(?:#[^)]*)?\)", self.text)
        folder = (FOLDER / self.name).parent
        paths = [(folder / target).resolve() for target in targets]
        names = [path.relative_to(FOLDER.resolve()).as_posix() for path in paths if path.is_relative_to(FOLDER.resolve())]
        return list(dict.fromkeys(names))


def list_pages() -> list[DocPage]:
    """Return all pages by section. In a section, the pages of an index come first, in the order of its links."""
    pages = {page.name: page for page in _read_pages()}
    order = list(dict.fromkeys([*_follow_indexes(HOME, pages, set()), *sorted(pages)]))
    names = sorted(order, key=lambda name: order.index(_first_part(name, pages)))
    sections = sorted(dict.fromkeys(pages[name].section for name in names), key=_section_rank)
    return [pages[name] for section in sections for name in names if pages[name].section == section]


def find_pages(name: str, pages: Sequence[DocPage]) -> list[DocPage]:
    """Return the pages that a name can mean, the first in the order of reading first.

    Args:
        name: name of a page, its last part, or the beginning of the last part. ".md", an anchor and "../" as in links, and the
            number of a tutorial's page, may be present or not.
        pages: all pages, in the order of reading.

    Raises:
        ScenarioError: no page has the name.
    """
    wanted = _normalize(name)
    matches = [page for page in pages if page.name in (wanted, f"{wanted}/{HOME}")]
    matches = matches or [page for page in pages if wanted in _short_names(page)]
    matches = matches or [page for page in pages if wanted and any(short.startswith(wanted) for short in _short_names(page))]
    if not matches:
        names = {alternative for page in pages for alternative in (page.name, *_short_names(page))}
        hint = suggest_name(wanted, names) if wanted else ""
        hint = hint if hint.startswith(", did") else ""
        raise ScenarioError(f'docs: no page "{name}"{hint}; `fedsgd docs` lists all pages')
    return matches


def find_section(name: str, pages: Sequence[DocPage]) -> list[DocPage]:
    """Return the pages of a section, and of the sections below it; none if no section has the name.

    Args:
        name: name of a section, such as "guides" or "reference/keys", or its last part.
        pages: all pages.
    """
    wanted = _normalize(name)
    sections = {page.section for page in pages if page.section}
    named = {section for section in sections if wanted in (section, section.rpartition("/")[2])}
    return [page for page in pages if any(f"{page.section}/".startswith(f"{section}/") for section in named)]


def search_pages(text: str, pages: Sequence[DocPage]) -> Iterator[tuple[DocPage, int, str]]:
    """Yield (page, line number, line) of each line that contains a text, upper and lower case being equal.

    Args:
        text: text to look for.
        pages: pages to search.
    """
    for page in pages:
        for number, line in enumerate(page.text.splitlines(), 1):
            if text.casefold() in line.casefold() and not line.startswith("<!--"):
                yield page, number, line.strip()


def _read_pages() -> Iterator[DocPage]:
    for path in sorted(FOLDER.rglob("*.md")):
        yield DocPage(path.relative_to(FOLDER).with_suffix("").as_posix(), path.read_text(encoding="utf-8"))


def _follow_indexes(name: str, pages: Mapping[str, DocPage], visited: set[str]) -> Iterator[str]:
    """Yield the names of the pages that an index links to, and of those that their indexes link to."""
    visited.add(name)
    yield name
    if name.rpartition("/")[2] != HOME:
        return
    folder = pages[name].section
    for link in pages[name].links:
        if link in pages and link not in visited and link.startswith(folder):
            yield from _follow_indexes(link, pages, visited)


def _first_part(name: str, pages: Mapping[str, DocPage]) -> str:
    """Return the page that a page continues, "reference/python/run" for "reference/python/run-2"; else the page itself."""
    first = re.sub(r"-\d+$", "", name)
    return first if first in pages else name


def _section_rank(section: str) -> int:
    """Return the rank of a section; folders of one section keep their order, and follow the section's own pages."""
    folder, _, below = section.partition("/")
    return 2 * (SECTIONS.index(folder) if folder in SECTIONS else len(SECTIONS)) + bool(below)


def _normalize(name: str) -> str:
    """Return a name of a page, or the target of a link, as a name in lower case."""
    return re.sub(r"^(?:\.*/)+", "", name.strip().partition("#")[0]).removesuffix(".md").rstrip("/").casefold()


def _short_names(page: DocPage) -> list[str]:
    """Return the last part of a page's name, with and without a number; of an index, the name of its folder."""
    last = page.name.removesuffix(f"/{HOME}").rpartition("/")[2]
    return list(dict.fromkeys([last, re.sub(r"^\d+-", "", last)]))
