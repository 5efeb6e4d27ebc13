"""Fenced blocks in the pages of the documentation."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "fedsgd" / "docs"
BLOCK = re.compile(
    r"^(?P<comments>(?:[ ]*<!--[^\n]*-->\n+)*)(?P<indent>[ ]*)```(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^(?P=indent)```[ ]*$",
    flags=re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """Fenced block of a page.

    Attributes:
        page: path of the page below the project's root.
        line: number of its first line of text in the page.
        language: word after the fence, "" for none.
        text: text between the fences.
        comments: texts of the HTML comments in front of the block.
    """

    page: str
    line: int
    language: str
    text: str
    comments: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Page and line, for messages."""
        return f"{self.page}:{self.line}"

    @property
    def file_name(self) -> str | None:
        """Name of the file that the block is written to, stated by its first line: `# my_module.py`."""
        match = re.match(r"# ([\w./-]+\.(?:py|toml))$", self.text.partition("\n")[0].strip())
        return match[1] if match else None

    @property
    def is_excluded(self) -> bool:
        """True if the block is only checked, and not run."""
        return self.find_comment("not run") is not None or self.page.startswith("fedsgd/docs/results/")

    def find_comment(self, start: str) -> str | None:
        """Return the rest of the comment that begins with a text; None if there is no such comment.

        Args:
            start: first words of the comment.
        """
        return next((comment[len(start) :].strip(" :") for comment in self.comments if comment.startswith(start)), None)

    @property
    def commands(self) -> list[list[str]]:
        """Commands of a block of shell lines, as lists of arguments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines for words in _split_commands(line)]


def _split_commands(line: str) -> Iterator[list[str]]:
    words = shlex.split(line, comments=True)
    while words:
        end = words.index("&&") if "&&" in words else len(words)
        yield words[:end]
        words = words[end + 1 :]


def read_blocks(path: Path) -> list[Block]:
    """Return the fenced blocks of a page.

    Args:
        path: file of the page.
    """
    text = path.read_text(encoding="utf-8")
    return [
        Block(
            path.relative_to(ROOT).as_posix(),
            text.count("\n", 0, match.start("text")) + 1,
            match["language"],
            dedent(match["text"]),
            tuple(re.findall(r"<!--\s*(.*?)\s*-->", match["comments"])),
        )
        for match in BLOCK.finditer(text)
    ]


def list_pages() -> list[Path]:
    """Return the README and all pages of the documentation."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
