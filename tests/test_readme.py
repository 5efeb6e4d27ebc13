"""README: its size, links and commands. tests/docs/test_code_blocks.py runs its code."""

from __future__ import annotations

import re

from tests.docs.blocks import ROOT, read_blocks
from tests.docs.test_pages import IMAGE, LINK
from tests.flower import run

README = ROOT / "README.md"
COMMANDS = [block.text.strip() for block in read_blocks(README) if block.language == "sh"]


def test_readme_has_bounded_size() -> None:
    assert len(README.read_text().splitlines()) <= 150
    assert README.stat().st_size <= 9_000


def test_readme_commands_are_run_by_ci() -> None:
    first, second, *_ = COMMANDS
    assert first == "python -m pip install . && fedsgd run scenarios/quickstart.toml"
    assert "python -m pytest" in second
    assert second in (ROOT / ".ci" / "run").read_text().splitlines()


def test_flower_app_commands_are_run_at_night() -> None:
    (block,) = (command for command in COMMANDS if "flwr run" in command)
    install, command = block.splitlines()
    assert command == run.COMMAND
    script = [line.strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]
    assert {install, "python -m tests.flower.run simulation"} <= set(script)


def test_links_and_pictures_of_readme_exist() -> None:
    text = README.read_text()
    targets = [target.partition("#")[0] for target in LINK.findall(text)] + [target for _, target in IMAGE.findall(text)]
    assert len(targets) > 10
    assert [target for target in targets if not (ROOT / target).is_file()] == []


def test_files_that_readme_names_exist() -> None:
    names = re.findall(r"`((?:fedsgd|scenarios|tests)/[\w./-]*)`", README.read_text())
    assert [name for name in names if not (ROOT / name).exists()] == []
