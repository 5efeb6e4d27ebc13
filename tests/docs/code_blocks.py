"""Blocks of code in the pages of the documentation, and a runner that executes those of a page in order.

Commands of fedsgd and scripts of scenarios/ are run. Commands that install packages are not. A text after a block is compared
with its output: numbers too, but for times, memory and digests, and but for blocks that the tests shorten. Comments in front of a block change its test:

* `<!-- not run: REASON -->`: a block is only checked for its syntax, and for valid options of fedsgd. Commands of pages of
  results take long and are never run.
* `<!-- in tests: --set rounds=2 -->`: the text is appended to each `fedsgd run` and `fedsgd sweep` of the block.
* `<!-- methods file -->`: a block of TOML has the methods of a sweep.
* `<!-- output not compared: REASON -->`, `<!-- not output -->`: a text is not compared with the output before it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from textwrap import dedent

import click
from click.testing import CliRunner

from fedsgd.cli import main
from fedsgd.scenario.overrides import parse_setting
from fedsgd.scenario.scenario import load, parse_scenario

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "fedsgd" / "docs"
BLOCK = re.compile(
    r"^(?P<comments>(?:[ ]*<!--[^\n]*-->\n+)*)(?P<indent>[ ]*)```(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^(?P=indent)```[ ]*$",
    flags=re.DOTALL | re.MULTILINE,
)
NUMBER = re.compile(r"[-+−]?\d[\d,_]*(?:\.\d+)?(?:e[-+]?\d+)?")
TIME = re.compile(r"(?:\d[\d.]*\s?(?:d|h|min|s|ms|µs)\b\s?)+")
UNIT = re.compile(r"#\s?(?:[kMGT]?i?B|[kM]bit/s|ms|min|[smhd×%])(?![\w])")


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


@dataclass
class PageRunner:
    """Runner of the blocks of a page.

    Attributes:
        folder: working folder of all blocks.
        data: folder of the real data, None if there is none.
        namespace: names that the blocks of Python share.
        output: output of the last block that ran; None if there is none to compare with.
        is_exact: whether the numbers of the output are those of the page.
        has_excluded: whether the last block was not run.
        failed_command: last command, if its exit status was not 0.
    """

    folder: Path
    data: Path | None
    namespace: types.ModuleType = field(default_factory=lambda: types.ModuleType("__main__"))
    output: str | None = None
    is_exact: bool = False
    has_excluded: bool = False
    failed_command: str = ""

    def run(self, block: Block) -> None:
        """Run a block, or compare it with the output of the block before.

        Args:
            block: block of the page.
        """
        if block.language == "text":
            self._compare(block)
            return
        assert not self.failed_command, f"{block.place}: the command before fails: {self.failed_command}\n{self.output}"
        self.output, self.has_excluded = None, block.is_excluded
        self.is_exact = block.find_comment("in tests") is None
        if block.file_name is not None:
            path = self.folder / block.file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.language == "sh":
            self._run_commands(block)
        elif block.language == "python":
            self._run_python(block)
        elif block.language == "toml":
            check_toml(block)

    def finish(self) -> None:
        """Check that the last command succeeded."""
        assert not self.failed_command, f"{self.failed_command}\n{self.output}"

    def _run_commands(self, block: Block) -> None:
        if block.is_excluded:
            for words in block.commands:
                check_options(block, words)
            return
        outputs = []
        for words in block.commands:
            assert not self.failed_command, f"{block.place}: {self.failed_command}\n{outputs}"
            outputs.append(self._run_command(block, self._complete(block, words)))
        self.output = "\n".join(outputs)

    def _complete(self, block: Block, words: list[str]) -> list[str]:
        """Return a command with the folder of the data, and with the arguments that tests add."""
        extra = shlex.split(block.find_comment("in tests") or "") if words[1:2] in (["run"], ["sweep"]) else []
        if "DIR" in words:
            assert self.data is not None, f"{block.place}: the command needs the real data"
        return [str(self.data) if word == "DIR" else word for word in words] + extra

    def _run_command(self, block: Block, words: list[str]) -> str:
        if words[:4] == ["python", "-m", "pip", "install"]:
            return ""
        if words[0] == "fedsgd":
            result = CliRunner(env={"COLUMNS": "80"}).invoke(main, words[1:], prog_name="fedsgd")
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                raise result.exception
            self.failed_command = shlex.join(words) if result.exit_code else ""
            return result.output
        assert [words[0], words[1][-3:]] == ["python", ".py"], f"{block.place}: {words[0]} is not run by the tests"
        environment = {**os.environ, "COLUMNS": "80", "MPLBACKEND": "Agg", "PYTHONPATH": f"{ROOT}"}
        completed = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, env=environment, check=False)
        assert completed.returncode == 0, f"{block.place}: {completed.stderr}"
        return completed.stdout

    def _run_python(self, block: Block) -> None:
        if block.is_excluded:
            compile(block.text, block.place, "exec")
            return
        code = compile("\n" * (block.line - 1) + block.text, str(ROOT / block.page), "exec")
        stream = io.StringIO()
        with contextlib.redirect_stdout(stream):
            exec(code, vars(self.namespace))
        self.output = stream.getvalue()

    def _compare(self, block: Block) -> None:
        skips = ("output not compared", "not output")
        if self.has_excluded or any(block.find_comment(skip) is not None for skip in skips):
            return
        assert self.output is not None, f"{block.place}: a text without a block before it needs the comment 'not output'"
        assert block.text.replace("...", "").strip(), f"{block.place}: the text has no line to compare"
        missing = find_missing_line(block.text, self.output, self.is_exact)
        assert missing is None, f"{block.place}: the output has no line {missing!r} at its place:\n{self.output}"
        if re.search(r"^fedsgd: |^\w*Error\b", block.text, flags=re.MULTILINE):
            self.failed_command = ""


def mask(line: str, is_exact: bool = False) -> str:
    """Return a line with one space between words, and with equal marks for what differs between runs.

    Args:
        line: line of a page or of an output.
        is_exact: whether numbers are kept; times, memory and digests are not.
    """
    line = re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,}\b|\b[0-9a-f]{16,}\b", "#", line)
    line = re.sub(r"[─━═\-]{3,}", "───", line)
    if is_exact:
        line = TIME.sub("#", line)
        return re.sub(r"^peak memory .*", "peak memory #", " ".join(line.split()))
    line = UNIT.sub("#", NUMBER.sub("#", line))
    return re.sub(r"#(?:\s#)+", "#", " ".join(line.split()))


def find_missing_line(expected: str, output: str, is_exact: bool = False) -> str | None:
    """Return the first expected line that the output has not, or not after the line before; None if it has all.

    Args:
        expected: text of a page. "..." in a line stands for any characters, and as a line for any lines.
        output: output of a command.
        is_exact: whether numbers are compared.
    """
    lines, position = [mask(line, is_exact) for line in output.splitlines()], 0
    for line in expected.splitlines():
        if line.strip() in ("", "..."):
            continue
        pattern = ".*".join(re.escape(mask(part, is_exact)) for part in line.replace("…", "...").split("..."))
        position = next((i + 1 for i in range(position, len(lines)) if re.fullmatch(rf"\s*{pattern}\s*", lines[i])), 0)
        if not position:
            return line
    return None


def check_options(block: Block, words: list[str]) -> None:
    """Check that a command exists and has the options, that its files exist, and that its scenario has the settings.

    Args:
        block: block of the command.
        words: command and its arguments.
    """
    for path in (word for word in words if re.match(r"(?:scenarios|tests)/", word)):
        assert (ROOT / path).exists(), f"{block.place}: no file {path}"
    if words[:2] == ["python", "-m"]:
        assert words[2] in ("pip", "mkdocs", "pytest", "http.server") or find_spec(words[2]), (
            f"{block.place}: no module {words[2]}"
        )
    if words[0] != "fedsgd":
        return
    context = click.Context(main, **main.context_settings)
    command = main.get_command(context, words[1])
    assert command is not None, f"{block.place}: no command {words[1]}"
    command.make_parser(click.Context(command, info_name=words[1], parent=context)).parse_args(words[2:])
    settings = dict(parse_setting(value) for option, value in pairwise(words) if option == "--set")
    varied = [value.partition("=") for option, value in pairwise(words) if option in ("--grid", "--tune") and "=" in value]
    settings |= dict(parse_setting(f"{key}={values.split(',')[0]}") for key, _, values in varied)
    paths = [ROOT / word for word in words if re.fullmatch(r"scenarios/[\w/]+\.toml", word)]
    if words[1] in ("run", "sweep", "partition", "flower"):
        scenario = load(paths[0], settings)
        for methods in paths[1:]:
            for table in tomllib.loads(methods.read_text(encoding="utf-8")).values():
                scenario.with_settings(table)


def check_toml(block: Block) -> None:
    """Check that a block of TOML is valid: a scenario, tables of a scenario, or the methods of a sweep.

    Args:
        block: block of the page.
    """
    tables = tomllib.loads(block.text)
    if block.is_excluded or "project" in tables or "tool" in tables:
        return
    if block.find_comment("methods file") is not None:
        for table in tables.values():
            load(ROOT / "scenarios" / "quickstart.toml").with_settings(table)
        return
    quickstart = tomllib.loads((ROOT / "scenarios" / "quickstart.toml").read_text())
    parse_scenario(_merge(quickstart, tables))


def _merge(base: Mapping[str, object], tables: Mapping[str, object]) -> dict[str, object]:
    """Return tables over those of a base. A table with another `name`, or a key that excludes one, replaces the table."""
    merged = dict(base)
    for key, value in tables.items():
        old = base.get(key)
        is_same_component = (
            isinstance(old, Mapping) and isinstance(value, Mapping) and value.get("name") in (None, old.get("name"))
        )
        merged[key] = (
            _merge(old, value) if is_same_component and isinstance(old, Mapping) and isinstance(value, Mapping) else value
        )
    for section, pair in (("client", ("steps", "epochs")), ("server", ("fraction", "cohort"))):
        new, table = tables.get(section), merged.get(section)
        for key, other in (pair, pair[::-1]):
            if isinstance(new, Mapping) and isinstance(table, dict) and key in new and other not in new:
                table.pop(other, None)
    return merged
