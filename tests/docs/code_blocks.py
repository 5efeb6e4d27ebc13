"""Runner of the blocks of code in a page of the documentation, in their order.

Commands of fedsgd and scripts of scenarios/ are run. Commands that install packages are not. A text after a block is compared
with its output: numbers too, but for times, memory and digests, and but for what follows a block that the tests shorten.

Comments in front of a block change its test:

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
import types
from dataclasses import dataclass, field
from pathlib import Path

from click.testing import CliRunner

from fedsgd.cli import main
from tests.docs.block_checks import check_options, check_toml
from tests.docs.blocks import ROOT, Block

NUMBER = re.compile(r"[-+−]?\d[\d,_]*(?:\.\d+)?(?:e[-+]?\d+)?")
TIME = re.compile(r"(?:\d[\d.]*\s?(?:d|h|min|s|ms|µs)\b\s?)+")
UNIT = re.compile(r"#\s?(?:[kMGT]?i?B|[kM]bit/s|ms|min|[smhd×%])(?![\w])")


@dataclass
class PageRunner:
    """Runner of the blocks of a page.

    Attributes:
        folder: working folder of all blocks.
        data: folder of the real data, None if there is none.
        namespace: names that the blocks of Python share.
        output: output of the last block that ran; None if there is none to compare with.
        is_exact: whether the numbers of the output are those of the page: no block so far was shortened.
        has_excluded: whether the last block was not run.
        failed_command: last command, if its exit status was not 0.
    """

    folder: Path
    data: Path | None
    namespace: types.ModuleType = field(default_factory=lambda: types.ModuleType("__main__"))
    output: str | None = None
    is_exact: bool = True
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
        self.is_exact = self.is_exact and block.find_comment("in tests") is None
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
    line = re.sub(r"\b(?=\d*[a-f])(?=[a-f]*\d)[0-9a-f]{8,}\b", "#", line)
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
