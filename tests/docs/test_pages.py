"""Pages of the documentation: their size, links, figures and language, and the site that is built from them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedsgd.cli.doc_pages import list_pages
from tests.docs.blocks import BLOCK, DOCS, ROOT
from tests.structure import FIELD_TERMS, METAPHORS

MAX_LINES, MAX_LINE_LENGTH = 200, 140
MAX_FIGURE_BYTES = 300_000
PAGES = sorted(DOCS.rglob("*.md"))
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
RATIO = re.compile(
    r"\bratios?\b(?! of downlink to uplink)|(?:st|nd|rd|th) of the bytes|\d (?:times|×) (?:smaller|fewer|less)\b"
)
DIRECTION = re.compile(r"\b(?:up|down|uplinks?|downlinks?|both ways|both directions)\b", re.IGNORECASE)
WIDE = re.compile(r"^\s*\||https?://|^\s*!\[")
"""Lines that may be long: rows of tables, addresses and images."""


def name_of(path: Path) -> str:
    return path.relative_to(DOCS).with_suffix("").as_posix()


def prose(path: Path) -> str:
    """Return the text of a page without code and comments."""
    text = re.sub(r"<!--.*?-->", "", BLOCK.sub("", path.read_text(encoding="utf-8")), flags=re.DOTALL)
    return re.sub(r"`[^`\n]*`", "`code`", text)


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, spelled as GitHub and mkdocs spell them."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", path.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_page_has_bounded_size_and_one_title(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= MAX_LINES
    assert [line for line in lines if len(line) > MAX_LINE_LENGTH and not WIDE.search(line)] == []
    assert len(re.findall(r"^# ", BLOCK.sub("", text), flags=re.MULTILINE)) == 1


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_of_page_lead_to_pages_and_headings(path: Path) -> None:
    for target in LINK.findall(BLOCK.sub("", path.read_text(encoding="utf-8"))):
        if re.match(r"https?://|mailto:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.is_relative_to(DOCS), target
        assert linked.is_file(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / ".github" / "CONTRIBUTING.md", *PAGES], ids=lambda path: path.stem)
def test_prose_of_page_has_no_rejected_word(path: Path) -> None:
    assert [match[0] for match in METAPHORS.finditer(FIELD_TERMS.sub("", prose(path)))] == []


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_named_files_exist(path: Path) -> None:
    for name in re.findall(r"`((?:fedsgd|scenarios|tests)/[\w./-]*)`", path.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), name


def test_every_page_is_linked_from_a_page() -> None:
    pages = list_pages()
    linked = {link for page in pages for link in page.links if link != page.name}
    assert {page.name for page in pages} - linked <= {"index"}


def test_figures_are_shown_described_and_small() -> None:
    images = [(match[1], (path.parent / match[2]).resolve()) for path in PAGES for match in IMAGE.finditer(path.read_text())]
    figures = set((DOCS / "figures").glob("*")) if (DOCS / "figures").is_dir() else set()
    assert {path for _, path in images} == figures
    assert [path for text, path in images if len(text) < 20] == []
    assert [path for path in figures if path.stat().st_size > MAX_FIGURE_BYTES] == []


def test_ratios_of_bytes_name_their_direction() -> None:
    """Each sentence and table row with a number is checked, of the pages, of the scenarios' comments and of the scripts' docstrings."""
    texts = {path.name: prose(path) for path in [ROOT / "README.md", *PAGES]}
    for path in (ROOT / "scenarios").rglob("*.*"):
        if path.suffix == ".toml":
            texts[str(path)] = re.sub(r"\n# ?", " ", "\n".join(re.findall(r"^#.*", path.read_text(), flags=re.MULTILINE)))
        elif path.suffix == ".py":
            texts[str(path)] = ast.get_docstring(ast.parse(path.read_text())) or ""
    parts = [(name, part) for name, text in texts.items() for part in re.split(r"(?<=[.])\s|\n(?=\||[*-] )|\n\n", text)]
    claims = [(name, part) for name, part in parts if RATIO.search(part) and re.search(r"\b\d", part)]
    assert len(claims) > 25
    assert [name for name, text in texts.items() if re.search(r"\| (?:compression )?ratios? \|", text)] == []
    assert [claim for claim in claims if not DIRECTION.search(claim[1])] == []


def test_guide_lists_every_scenario_with_its_time() -> None:
    text = (DOCS / "guides" / "included-scenarios.md").read_text(encoding="utf-8")
    packages = [path.parent for path in (ROOT / "scenarios").rglob("pyproject.toml")]
    files = [path for path in (ROOT / "scenarios").rglob("*.*") if path.suffix in (".toml", ".py", ".ipynb")]
    folders = [*packages, ROOT / "scenarios" / "replication"]  # tests/analysis/replication checks that studies are documented
    own_files = [path for path in files if not any(folder in path.parents for folder in folders)]
    names = [path.relative_to(ROOT).as_posix() for path in [*packages, *own_files] if "__pycache__" not in path.parts]
    assert [name for name in names if f"`{name}`" not in text] == []
    rows = re.findall(r"^\| `scenarios/.*$", text, flags=re.MULTILINE)
    assert len(rows) > 15
    assert [row for row in rows if not re.search(r"\| \d+ s \|$", row)] == []


@pytest.mark.nightly
@pytest.mark.examples
def test_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        *["build", "--strict", "--quiet", "-f", ".mkdocs.yml", "-d"],
        str(tmp_path / "site"),
    ]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # an advertisement
    completed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert (tmp_path / "site" / "index.html").is_file()
