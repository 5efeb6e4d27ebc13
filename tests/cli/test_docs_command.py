"""`fedsgd docs`: pages are listed, found by their names, searched, and formatted at a terminal."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from fedsgd.cli import main
from fedsgd.cli.doc_pages import FOLDER, DocPage, find_pages, find_section, list_pages, search_pages
from fedsgd.cli.terminal.markdown import format_markdown
from fedsgd.errors import ScenarioError

PAGES = [
    DocPage("index", "# Home\n\n[a](guides/first-run.md)\n"),
    DocPage("tutorial/2-momentum", "# Momentum\n\nVelocity.\n"),
    DocPage("guides/first-run", "# The `first` run\n\nInstall.\n"),
    DocPage("reference/cli/index", "# Commands\n"),
    DocPage("results/codec", "# Codec\n\nSpeed of `velocity`.\n"),
    DocPage("reference/codec", "# Codec\n"),
]


def invoke(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "80"}).invoke(main, ["docs", *arguments])


def test_all_pages_are_listed_once_within_the_width() -> None:
    result = invoke()
    assert result.exit_code == 0
    lines = result.output.splitlines()
    for page in list_pages():
        assert sum(line.strip().startswith(f"{page.name}:") for line in lines) == 1
    assert max(map(len, lines)) <= 80


def test_list_has_every_file_once_and_the_home_page_first() -> None:
    names = [page.name for page in list_pages()]
    assert sorted(names) == sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.md"))
    assert names[0] == "index"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("guides/first-run", "guides/first-run"),
        ("guides/first-run.md", "guides/first-run"),
        ("first-run", "guides/first-run"),
        ("2-momentum", "tutorial/2-momentum"),
        ("momentum", "tutorial/2-momentum"),
        ("reference/cli", "reference/cli/index"),
        ("cli", "reference/cli/index"),
        ("index", "index"),
        ("First-Run", "guides/first-run"),
        ("../guides/first-run.md#install", "guides/first-run"),
        ("/guides/first-run", "guides/first-run"),
        ("mom", "tutorial/2-momentum"),
    ],
)
def test_page_is_found_by_its_name_or_the_last_part(name: str, expected: str) -> None:
    assert [page.name for page in find_pages(name, PAGES)] == [expected]


def test_unknown_page_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ScenarioError, match='no page "first-rum", did you mean "first-run"'):
        find_pages("first-rum", PAGES)


@pytest.mark.parametrize("name", ["", "..", "zzyzx"])
def test_page_without_a_near_name_is_refused_in_a_short_line(name: str) -> None:
    result = invoke(name)
    assert result.exit_code == 2
    assert result.output == f'fedsgd: docs: no page "{name}"; `fedsgd docs` lists all pages\n'


@pytest.mark.parametrize(
    ("name", "expected"), [("guides", ["guides/first-run"]), ("cli", ["reference/cli/index"]), ("zzyzx", [])]
)
def test_section_has_the_pages_of_its_folder(name: str, expected: list[str]) -> None:
    assert [page.name for page in find_section(name, PAGES)] == expected


def test_name_of_a_section_lists_its_pages() -> None:
    names = [line.split(":")[0].strip() for line in invoke("tutorial").output.splitlines()]
    assert names == ["tutorial", *(page.name for page in list_pages() if page.section == "tutorial")]


def test_first_of_several_pages_is_shown_and_the_others_are_named() -> None:
    assert [page.name for page in find_pages("codec", PAGES)] == ["results/codec", "reference/codec"]
    result = invoke("participation")
    assert result.stdout.startswith("# Participation")
    assert result.stderr == "fedsgd: guides/participation; also: reference/keys/participation, results/participation\n"


def test_page_is_printed_as_markdown_without_a_terminal() -> None:
    assert invoke("index").output.rstrip() == (FOLDER / "index.md").read_text().rstrip()


def test_search_yields_lines_of_any_case() -> None:
    matches = [(page.name, number) for page, number, _ in search_pages("VELOCITY", PAGES)]
    assert matches == [("tutorial/2-momentum", 3), ("results/codec", 3)]


def test_search_without_a_match_is_refused() -> None:
    result = invoke("--search", "zzyzx")
    assert (result.exit_code, result.output) == (2, 'fedsgd: docs: no page contains "zzyzx"\n')


def test_json_has_names_titles_and_the_text_of_a_page() -> None:
    entries = json.loads(invoke("--json").output)
    assert {"name": "index", "title": "fedsgd's documentation"} in entries
    assert json.loads(invoke("index", "--json").output)["text"].startswith("# fedsgd")


def test_comments_for_tests_are_not_shown() -> None:
    assert "<!--" in (FOLDER / "guides" / "first-run.md").read_text()
    assert "<!--" not in invoke("first-run").output


def test_links_of_a_formatted_page_are_names_of_pages() -> None:
    page = DocPage("guides/fleet", "[a](downlink.md#x) [b](../reference/keys/uplink.md) [c](https://x.org/y.md)")
    assert page.text_with_names == "[a](guides/downlink) [b](reference/keys/uplink) [c](https://x.org/y.md)"


def test_lines_of_code_are_not_wrapped() -> None:
    line = "fedsgd " + "--set uplink.compressor.density=0.1 " * 5
    assert line.strip() in format_markdown(f"Text.\n\n```sh\n{line}\n```\n\nMore.\n", 60)


def test_markdown_is_formatted_to_the_width() -> None:
    text = format_markdown("# Title\n\n" + "word " * 40 + "\n\n| a | b |\n|---|---|\n| 1 | 2 |\n", 60)
    assert "\x1b[" in text
    assert "# Title" not in text
