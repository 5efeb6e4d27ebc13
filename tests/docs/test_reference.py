"""The generated reference is up to date, and has an entry for everything that a user can name."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import click
import pytest

import fedsgd
from fedsgd.cli import main
from fedsgd.compression import COMPRESSORS
from fedsgd.config.registry import refuse_plugins
from fedsgd.experiment import evaluation, ledger
from fedsgd.flower.deployment import transport_table
from fedsgd.network.profiles import NETWORKS, load_devices
from fedsgd.scenario.key_reference import describe_component, describe_section, list_sections
from fedsgd.scenario.key_search import find_keys
from fedsgd.storage import run_directory
from fedsgd.trackers import TRACKERS
from tests.docs.api_groups import GROUPS
from tests.docs.cli_pages import list_options
from tests.docs.column_pages import describe_columns, list_summary_keys, read_rows
from tests.docs.component_pages import find_page, format_certificate_row
from tests.docs.compressor_facts import find_advice, find_kind, read_certificates
from tests.docs.docstring import parse_docstring
from tests.docs.generate import REFERENCE, build_pages, list_generated_files
from tests.docs.key_pages import FAMILIES, list_dotted_keys
from tests.docs.markdown import MAX_LINES, escape
from tests.docs.python_pages import list_registry_constants

pytestmark = pytest.mark.slow

COMMAND = "python -m tests.docs.generate"
HAND_WRITTEN = {"wire-format.md", "wire-format-values.md", "glossary.md"}


def read(*stems: str) -> str:
    """Return the text of a page and of its continuation pages."""
    pages = build_pages()
    return "\n".join(pages[path] for path in pages if re.sub(r"(-\d+)?\.md$", "", path) in stems)


def read_section(text: str, heading: str) -> str:
    """Return the lines from a heading to the next one of its level."""
    parts = re.split(r"^##+ ", text, flags=re.MULTILINE)
    return next((part for part in parts if part.startswith(f"{heading}\n")), "")


# ------------------------------------------------------------------------------------------------------------ up to date


def test_pages_are_up_to_date() -> None:
    pages = {REFERENCE / path: text for path, text in build_pages().items()}
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    assert [path.relative_to(REFERENCE).as_posix() for path in stale] == [], f"out of date; run {COMMAND}"
    assert [path for path in list_generated_files() if path not in pages] == [], f"no longer generated; run {COMMAND}"


def test_other_pages_are_written_by_hand() -> None:
    generated = {REFERENCE / path for path in build_pages()}
    assert {path.relative_to(REFERENCE).as_posix() for path in REFERENCE.rglob("*.md")} - {
        path.relative_to(REFERENCE).as_posix() for path in generated
    } == HAND_WRITTEN


def test_pages_keep_the_limits_of_lines() -> None:
    for path, text in build_pages().items():
        lines = text.splitlines()
        assert len(lines) <= MAX_LINES, path
        assert [line for line in lines if len(line) > 128 and "|" not in line and "](" not in line] == [], path
        assert len([line for line in lines if line.startswith("# ")]) == 1, path


def test_links_within_the_reference_lead_to_a_heading() -> None:
    texts = {path.resolve(): path.read_text(encoding="utf-8") for path in REFERENCE.rglob("*.md")}
    texts |= {(REFERENCE / path).resolve(): text for path, text in build_pages().items()}
    broken = [
        f"{path.relative_to(REFERENCE)}: {target}"
        for path, text in texts.items()
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
        if not leads_to_a_heading(path, target, texts)
    ]
    assert broken == []


def leads_to_a_heading(path: Path, target: str, texts: dict[Path, str]) -> bool:
    file, _, anchor = target.partition("#")
    destination = (path.parent / file).resolve() if file else path
    if not destination.is_relative_to(REFERENCE):
        return True  # a link to a guide or to results, which the tests of all pages check
    if destination not in texts:
        return False
    headings = re.findall(r"^#+ (.*)$", texts[destination], re.MULTILINE)
    return not anchor or anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


# --------------------------------------------------------------------------------------------------------------- entries


@pytest.mark.parametrize("section", list_sections())
def test_key_of_a_section_has_an_entry(section: str) -> None:
    text = read(f"keys/{section}")
    for key in describe_section(section).keys:
        entry = read_section(text, f"`{key.key}`")
        assert "- Type: " in entry, key.key
        assert "- Default: " in entry, key.key
        assert "- Example: " in entry, key.key
        assert key.meaning, key.key


@pytest.mark.parametrize("key", list_dotted_keys())
def test_dotted_key_has_an_entry(key: str) -> None:
    """Keys of components have one at their component, and `name` one at the key of its table."""
    section, name = key.split(".")[0], key.rpartition(".")[2]
    if f"`{key}`" in read(f"keys/{section}"):
        return
    with refuse_plugins():
        descriptions = find_keys(key)
    if key.endswith(".name"):  # of a component within a component
        assert any(f"**`{key.split('.')[-2]}`**" in text for text in build_pages().values())
        return
    assert descriptions
    for description in descriptions:
        assert description.components, key
        for component, class_name in description.components.items():
            entries = read_component(component, class_name)
            assert f"**`{name}`**" in entries, f"{key} of {component}"


def read_component(name: str, class_name: str) -> str:
    """Return the entry of a component, and the keys that all members of its family have."""
    family = next(plural for plural, registry in FAMILIES.items() if name in registry and registry[name].__name__ == class_name)
    text = build_pages()[find_page(family, name)]
    shared = read_section(read(f"components/{family}"), f"Keys of all {family}")
    return text if family == "compressors" else read_section(text, name) + shared


@pytest.mark.parametrize(("family", "name"), [(family, name) for family in FAMILIES for name in FAMILIES[family]])
def test_component_has_an_entry(family: str, name: str) -> None:
    component = describe_component(FAMILIES[family], name)
    entry = read_component(name, component.class_name)
    section = read(f"keys/{component.places[0].partition('.')[0]}")
    for key in component.keys:
        assert f"**`{key.key.rpartition('.')[2]}`**" in entry or read_section(section, f"`{key.key}`"), key.key
    assert component.class_name in entry
    assert component.summary[:40].replace("*", "\\*") in entry


@pytest.mark.parametrize("name", [*COMPRESSORS])
def test_compressor_has_advice_a_row_and_a_certificate(name: str) -> None:
    component = describe_component(FAMILIES["compressors"], name)
    page, catalogue = read(f"compressors/{name}"), read("compressors/index")
    for word, heading in (("Use", "When to use it"), ("Avoid", "When not to use it")):
        assert len(find_advice(component, word)) > 20
        assert len(read_section(page, heading).splitlines()) > 2
    assert len(re.findall(rf"^\| \[{name}(?:\([\w-]+\))?\]\({name}\.md\)", catalogue, re.MULTILINE)) == 2
    assert all(law["passed"] for law in read_certificates()[name]["laws"])


def test_page_of_certificates_has_the_figures_of_the_certificates() -> None:
    """Times are in another measurement, and are not compared."""
    text = (REFERENCE.parent / "results" / "certificates.md").read_text(encoding="utf-8")
    rows = [tuple(line.strip("| ").split(" | ")[:6]) for line in text.splitlines() if re.search(r"\| \d+ of \d+ \|", line)]
    order = sorted(
        read_certificates().values(), key=lambda certificate: float(certificate["traffic"]["frame_bits_per_parameter"])
    )
    expected = []
    for certificate in order:
        name, *figures = format_certificate_row(certificate)
        expected.append((name, find_kind(certificate["compressor"]["name"]), *(figure.rstrip("×") for figure in figures)))
    assert rows == expected


@pytest.mark.parametrize("name", [*main.commands])
def test_option_of_a_command_has_an_entry(name: str) -> None:
    command = main.commands[name]
    text = read(f"cli/{name}")
    for option in list_options(command):
        assert re.search(rf"^- `[^`]*{re.escape(option.opts[-1])}\b[^`]*`: \S", text, re.MULTILINE), option.opts
    for parameter in command.params:
        assert not isinstance(parameter, click.Argument) or parameter.make_metavar(click.Context(command)).strip("[].") in text
    assert f"]({name}.md)" in read("cli/index")


def test_column_has_an_entry() -> None:
    text = read("columns")
    tables = [ledger.COLUMNS, run_directory.ROUND_COLUMNS, run_directory.CLIENT_COLUMNS, transport_table.COLUMNS]
    names = [name for columns in tables for name in columns] + [*evaluation.CLIENT_METRICS, "loss", "accuracy"]
    assert [name for name in names if f"`{name}`" not in text] == []
    assert [name for name in (*run_directory.RUN_FILES, *run_directory.OPTIONAL_FILES) if f"`{name}`" not in text] == []


def test_column_without_a_meaning_is_refused() -> None:
    with pytest.raises(KeyError, match="new_column"):
        describe_columns({"new_column": int}, ledger.__doc__)
    assert read_rows("| column | type | meaning |\n|---|---|---|\n| a, b | int | sum |") == {"a, b": ("int", "sum")}


def test_keys_of_summary_have_an_entry() -> None:
    summary = fedsgd.run(fedsgd.Scenario(name="digits", rounds=1)).summary
    documented = list_summary_keys()
    tables = {name.partition(".")[0] for name in documented if "." in name}
    nested = {f"{table}.{key}" for table in tables for key in summary[table] or ()}
    assert {*nested, *summary} - {*tables} - {*documented} == set()
    optional = {"profile", "flower", "user_code", "ranks", "machines"}
    assert {*documented} - {*nested, *summary} == {*optional, *(n for n in documented if n.startswith("residuals."))}


def test_network_and_device_have_an_entry() -> None:
    text = read("networks")
    for name in NETWORKS:
        assert NETWORKS[name].title in read_section(text, name)
        assert "- Source: " in read_section(text, name)
    for name, device in load_devices().items():
        assert device.title in read_section(text, name)
    assert all(f"`{name}`" in read("components/trackers") for name in TRACKERS)


def list_public_names() -> list[str]:
    """Return the dotted names that fedsgd, its namespaces and `fedsgd.flower` export."""
    names = [f"fedsgd.{name}" for name in fedsgd.__all__ if name not in fedsgd._NAMESPACES]
    for namespace in fedsgd._NAMESPACES:
        constants = list_registry_constants(namespace)
        names += [f"fedsgd.{namespace}.{name}" for name in getattr(fedsgd, namespace).__all__ if name not in constants]
    return [*names, *(f"fedsgd.flower.{name}" for name in importlib.import_module("fedsgd.flower").__all__)]


@pytest.mark.parametrize("name", list_public_names())
def test_public_name_has_an_entry(name: str) -> None:
    texts = [text for path, text in build_pages().items() if path.startswith("python/")]
    assert any(read_section(text, name) or f"| `{name}` |" in text for text in texts), name


def test_groups_of_the_python_api_name_each_object_once() -> None:
    names = [name for group in GROUPS for name in group.names]
    assert sorted({*names}) == sorted(names)


# ----------------------------------------------------------------------------------------------------------------- parts


def test_docstring_is_split_into_its_parts() -> None:
    text = """Send x.

    Each part is one block:

    * first,
      on two lines
    * second

        y ← x

    Args:
        x, y: [P] float32,
            values.

    Raises:
        ValueError: x is empty.

    >>> 1 + 1
    2
    """
    parsed = parse_docstring(text)
    assert parsed.summary == "Send x."
    assert parsed.blocks == ("Each part is one block:", "* first, on two lines", "* second", "    y ← x")
    assert parsed.sections == {"Args": [("x, y", "[P] float32, values.")], "Raises": [("ValueError", "x is empty.")]}
    assert parsed.example == ">>> 1 + 1\n2"


def test_markup_is_escaped_outside_code() -> None:
    assert (
        escape("a*b __init__ `__init__` <tag> x < y [a](b_c.md)") == "a\\*b \\__init\\__ `__init__` \\<tag> x < y [a](b_c.md)"
    )
