"""The code of all pages runs, and prints what the pages show."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, Block, list_pages, read_blocks
from tests.docs.code_blocks import PageRunner, find_missing_line, mask
from tests.effort import nightly_unless

LANGUAGES = {"sh", "python", "toml", "text", "pycon", "json", "html", "", "bibtex", "latex"}
PAGES = [path for path in list_pages() if read_blocks(path)]
NIGHTLY_PAGES = {
    f"fedsgd/docs/{name}"
    for name in (
        "guides/certify",  # tests/certification
        "guides/choose-compressor",  # tests/sweeps, tests/certification
        "guides/compare-methods",  # tests/sweeps, tests/analysis
        "guides/determinism",  # tests/experiment/test_runner.py, tests/system
        "guides/downlink",  # tests/federation/test_downlink_policies.py
        "guides/engines",  # tests/laws/test_engine_laws.py
        "guides/export-model",  # tests/experiment/test_matrix.py
        "guides/ledger",  # tests/analysis, tests/laws/test_ledger_laws.py
        "guides/fleet",  # tests/analysis/test_fleet.py
        "guides/notebooks",  # tests/test_notebook.py
        "guides/own-compressor",  # scenarios/plugin/tests, tests/certification, tests/testing
        "guides/participation",  # tests/sampling
        "guides/plan",  # tests/experiment/test_plan.py
        "guides/price-networks",  # tests/analysis; `price` also runs in the README
        "guides/replicate",  # tests/analysis/replication
        "guides/resume",  # tests/experiment/test_resume.py
        "guides/statistics",  # tests/analysis
        "guides/track",  # tests/trackers
        "guides/troubleshooting",  # tests/config/test_user_errors.py
        "guides/tune",  # tests/analysis/test_tuning.py
        "tutorial/1-gradient-descent",  # tests/test_teaching_scripts.py
        "tutorial/2-momentum",
        "tutorial/3-federated-averaging",
        "tutorial/4-sparsification",
        "tutorial/5-deep-gradient-compression",  # tests/compression/test_dgc.py
        "tutorial/6-bytes",
    )
}
"""Pages whose blocks run at night only, because their runs take long; the comments name tests of the code that they use."""


def name_of_page(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix()


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PageRunner]:
    """Return a runner in an empty folder with a link to the scenarios; remove the modules that its blocks import."""
    (tmp_path / "scenarios").symlink_to(ROOT / "scenarios")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("COLUMNS", "80")
    data = Path(os.environ.get("FEDSGD_DATA") or ROOT.parent / "shared" / "data")
    runner = PageRunner(tmp_path, data if (data / "mnist").is_dir() else None)
    monkeypatch.setitem(sys.modules, "__main__", runner.namespace)
    yield runner
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(f"{tmp_path}{os.sep}"):
            del sys.modules[name]


def needs_data(blocks: list[Block]) -> bool:
    return any(
        "DIR" in words for block in blocks if block.language == "sh" and not block.is_excluded for words in block.commands
    )


@pytest.mark.examples
@pytest.mark.parametrize("path", nightly_unless(lambda path: name_of_page(path) not in NIGHTLY_PAGES, PAGES), ids=name_of_page)
def test_code_of_page_runs(path: Path, runner: PageRunner) -> None:
    blocks = read_blocks(path)
    if needs_data(blocks) and runner.data is None:
        pytest.skip("no real data: set FEDSGD_DATA")
    for block in blocks:
        runner.run(block)
    runner.finish()


PAGES_OF_ERRORS = {f"fedsgd/docs/guides/{name}" for name in ("determinism", "troubleshooting")}
"""Pages whose blocks show errors, which are expected only of blocks that run."""


@pytest.mark.sampled
@pytest.mark.parametrize("name", sorted(NIGHTLY_PAGES - PAGES_OF_ERRORS))
def test_code_of_nightly_page_has_valid_syntax_and_options(name: str, runner: PageRunner) -> None:
    for block in read_blocks(ROOT / f"{name}.md"):
        runner.run(replace(block, comments=(*block.comments, "not run: at night")))
    runner.finish()


def test_languages_of_blocks_are_known() -> None:
    blocks = [block for path in PAGES for block in read_blocks(path)]
    assert [block.place for block in blocks if block.language not in LANGUAGES] == []


def test_excluded_block_states_a_reason() -> None:
    blocks = [block for path in PAGES for block in read_blocks(path)]
    reasons = [(block.place, block.find_comment(start)) for block in blocks for start in ("not run", "output not compared")]
    assert [place for place, reason in reasons if reason == ""] == []


@pytest.mark.parametrize(
    ("expected", "is_found"),
    [
        ("total 5 kB\nend", True),
        ("total 1,234 MB\n...\nend", True),
        ("end\ntotal 5 kB", False),
        ("tot...", True),
        ("t...l 5 kB", True),
        ("sum 5 kB", False),
    ],
)
def test_output_is_compared_without_numbers(expected: str, is_found: bool) -> None:
    assert (find_missing_line(expected, "  total   17.5 GB\nmore\nend\n") is None) == is_found


def test_numbers_of_an_exact_output_are_compared_but_for_times() -> None:
    output = "[4.0, 2.3]  total 5 kB after 1.5 s"
    assert find_missing_line("[4.0, 2.3] total 5 kB after 2 min 3 s", output, is_exact=True) is None
    assert find_missing_line("[4.0, 2.4] total 5 kB after 1.5 s", output, is_exact=True) is not None


def test_mask_replaces_numbers_with_units_and_digests() -> None:
    assert mask("to 0.95   2 min 56 s  583 kB  1a4b97e7d1f3f4bf") == "to #"
    assert mask("4g: 7.6 Mbit/s up") == "#g: # up"
