"""Generator of the reference: `python -m tests.docs.generate` writes the pages below fedsgd/docs/reference/.

The pages come from the code: keys and components from dataclasses and docstrings, commands from click, columns from the tables in
docstrings, networks from their profiles. Three pages are written by hand: the wire format, its values, and the glossary.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from fedsgd.config.registry import refuse_plugins
from fedsgd.scenario.key_reference import list_sections
from tests.docs.cli_pages import build_cli_pages
from tests.docs.column_pages import build_column_pages
from tests.docs.component_pages import build_component_pages
from tests.docs.key_pages import FAMILIES, build_key_pages
from tests.docs.markdown import MARK, bullets, code, link, make_page, paragraph
from tests.docs.network_pages import build_network_pages
from tests.docs.python_pages import build_python_pages

REFERENCE = Path(__file__).resolve().parents[2] / "fedsgd" / "docs" / "reference"


@cache
def build_pages() -> dict[str, str]:
    """Return the text of each generated page by its path below `REFERENCE`."""
    with refuse_plugins():
        pages = {
            "index.md": _build_index(),
            **build_key_pages(),
            **build_component_pages(),
            **build_cli_pages(),
            **build_python_pages(),
            **build_column_pages(),
            **build_network_pages(),
        }
    return _redirect_links(pages)


def _redirect_links(pages: dict[str, str]) -> dict[str, str]:
    """Return the pages with links to the continuation page, NAME-2.md, where a heading stands on it."""
    for path in [path for path in pages if re.search(r"-\d+\.md$", path)]:
        first, name = re.sub(r"-\d+\.md$", ".md", path), path.rpartition("/")[2]
        old_name = first.rpartition("/")[2]
        for anchor in re.findall(r"^## ([\w-]+)$", pages[path], re.MULTILINE):
            pages = {key: text.replace(f"{old_name}#{anchor})", f"{name}#{anchor})") for key, text in pages.items()}
            pages[first] = pages[first].replace(f"](#{anchor})", f"]({name}#{anchor})")
    return pages


def list_generated_files() -> list[Path]:
    """Return the files below `REFERENCE` that the generator wrote."""
    return [path for path in sorted(REFERENCE.rglob("*.md")) if path.read_text(encoding="utf-8").startswith(MARK)]


def _build_index() -> str:
    sections = ", ".join(link(code(name), f"keys/{name}.md") for name in list_sections())
    families = ", ".join(link(name, f"components/{name}.md") for name in FAMILIES if name != "compressors")
    entries = [
        f"Keys of a scenario, by section: {sections}",
        "[Compressors](compressors/index.md): what each sends, its state, its laws, when to use it",
        f"Other components: {families}, [trackers](components/trackers.md)",
        "[Command line](cli/index.md): commands, arguments and options",
        "[Python API](python/index.md): functions, classes and [base classes](python/base-classes.md)",
        "[Files and columns of a run](columns.md), [keys of summary.json](summary.md)",
        "[Networks and devices](networks.md), with the sources of their figures",
        "[Wire format](wire-format.md) and [values and compressors](wire-format-values.md): every byte of a frame",
        "[Glossary](glossary.md): terms and letters, each with one meaning",
    ]
    return make_page(
        "# Reference",
        paragraph(
            "Every key, component, option, column and public name. All pages but the wire format and the glossary are generated "
            "from the code, and a test fails if one is out of date. `fedsgd explain NAME` and `fedsgd list` print the same in a "
            "terminal."
        ),
        bullets(entries),
    )


def main() -> None:
    """Write all pages, and remove pages that an earlier version generated."""
    pages = {REFERENCE / path: text for path, text in build_pages().items()}
    for path in list_generated_files():
        if path not in pages:
            path.unlink()
    for path, text in pages.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    print(f"{len(pages)} pages below {REFERENCE}")


if __name__ == "__main__":
    main()
