"""Page of the files of a run: columns of the tables, and keys of summary.json."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fedsgd.experiment import evaluation, ledger, summary
from fedsgd.federation.round_record import RoundRecord
from fedsgd.flower.deployment import transport_table
from fedsgd.scenario.docstrings import find_meaning
from fedsgd.storage import run_directory
from tests.docs.markdown import code, escape, make_page, paragraph, table

TYPE_NAMES = {int: "int", float: "float", str: "str"}


def read_rows(module_doc: str | None) -> dict[str, tuple[str, str]]:
    """Return (type, meaning) by column from the tables of a module's docstring.

    Args:
        module_doc: docstring with rows `| column | type | meaning |`.
    """
    rows = re.findall(r"^\| ([\w., ]+) \| ([\w, ]+) \| (.+) \|$", module_doc or "", re.MULTILINE)
    return {name: (kind, meaning) for name, kind, meaning in rows if name not in ("column", "key", "file")}


def describe_columns(
    columns: Mapping[str, type], module_doc: str | None, record: type | None = None
) -> dict[str, tuple[str, str]]:
    """Return (type, meaning) of each column; KeyError for a column without a meaning.

    Args:
        columns: types by column.
        module_doc: docstring of the module that defines the columns, with a table of them.
        record: dataclass whose attributes describe the other columns.
    """
    documented = read_rows(module_doc)
    described = {}
    for name, kind in columns.items():
        meaning = documented[name][1] if name in documented else find_meaning(record or object, name).rstrip(".")
        meaning = meaning.replace("; unset ", "; null ")
        if not meaning or (name in documented and documented[name][0] != TYPE_NAMES[kind]):
            raise KeyError(f"{name}: the docstring states no meaning, or another type than {kind.__name__}")
        described[name] = (TYPE_NAMES[kind], meaning)
    return described


def list_summary_keys() -> dict[str, tuple[str, str]]:
    """Return (type, meaning) of the keys of summary.json; a key of a table follows the table's key and a dot."""
    keys = {}
    for names, (kind, meaning) in read_rows(summary.__doc__).items():
        for name in names.split(", "):
            keys[name] = (kind, meaning)
    return keys


def build_column_pages() -> dict[str, str]:
    """Return the pages columns.md and summary.md by path."""
    return {"columns.md": _build_columns(), "summary.md": _build_summary()}


def _build_columns() -> str:
    doc = run_directory.__doc__ or ""
    files = re.findall(r"^\| (\w+\.\w+) \| (.+) \|$", doc, re.MULTILINE)
    rounds = describe_columns(run_directory.ROUND_COLUMNS, doc, RoundRecord)
    return make_page(
        "# Files and columns of a run",
        paragraph(
            "A run writes its files into one folder. pandas, polars and DuckDB read the Parquet files, also while the run "
            "goes on: a table is then a folder of segments, `ledger.parquet/*.parquet`. [summary.json](summary.md) has a page "
            "of its own, and [The ledger](../guides/ledger.md) shows queries.",
            is_markdown=True,
        ),
        table(("file", "content"), [(code(name), escape(text)) for name, text in files]),
        paragraph(
            "scenario.toml is written first. rounds.parquet and ledger.parquet grow during the run. All other files are "
            "written after the last round; clients.parquet with `evaluation.clients`, transport.parquet by `fedsgd flower`."
        ),
        "## ledger.parquet",
        paragraph("One row for each frame that was sent, in either direction."),
        _format_table(describe_columns(ledger.COLUMNS, ledger.__doc__)),
        paragraph(f"The digest `ledger_sha256` covers the columns up to {[*ledger.DIGEST_COLUMNS][-1]}."),
        "## rounds.parquet",
        paragraph("One row for each round. Byte counts are sums over all rounds so far. Metrics are the last columns."),
        _format_table({**rounds, **read_rows(evaluation.__doc__)}),
        "## clients.parquet",
        paragraph("One row for each client, with `evaluation.clients`."),
        _format_table(describe_columns(run_directory.CLIENT_COLUMNS, doc)),
        "## transport.parquet",
        paragraph("Written by `fedsgd flower`: one row for each round, node and direction."),
        _format_table(describe_columns(transport_table.COLUMNS, transport_table.__doc__)),
    )


def _build_summary() -> str:
    rows = [
        (", ".join(code(name) for name in names.split(", ")), kind, escape(meaning))
        for names, (kind, meaning) in read_rows(summary.__doc__).items()
    ]
    return make_page(
        "# Keys of summary.json",
        paragraph(
            "`summary.json` has the figures of a finished run. A dot separates the key of a table from its parent. null also "
            "stands for a number that is not finite. `fedsgd run --json` prints the same keys, and `fedsgd.Result.summary` has "
            "them in Python."
        ),
        table(("key", "type", "meaning"), rows),
    )


def _format_table(columns: Mapping[str, tuple[str, str]]) -> str:
    return table(("column", "type", "meaning"), [(code(name), kind, escape(text)) for name, (kind, text) in columns.items()])
