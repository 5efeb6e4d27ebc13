"""Result of a study as Markdown, JSON and a page."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from fedsgd.analysis.page.html import read_asset, render_template
from fedsgd.analysis.replication.counting_rules import get_counting_rule
from fedsgd.analysis.replication.study import BY_DIFFERENCE, KNOWN, NOT_RUN, SMALLER_IS_BETTER, VERDICTS, Study
from fedsgd.analysis.replication.verdicts import FAILS, HOLDS, UNDECIDED, CellResult, ClaimResult, Replication
from fedsgd.config.quantities import format_bytes, format_seconds

Rows = list[list[str]]
TEXT_HEADINGS = ("cell", "verdict", "claim", "tuned")
"""Headings of columns of words; others have figures."""
MEASURE_NAMES = {
    "rounds": "rounds to the target",
    "speedup": "rounds of the baseline / rounds",
    "accuracy": "best accuracy",
    "final-accuracy": "final accuracy",
    "accuracy-difference": "final accuracy minus that of the baseline",
    "loss": "lowest loss",
    "uplink-bytes": "uplink bytes to the target",
    "ratio": "compression ratio",
    "bits": "bits a coordinate",
}


def format_value(study: Study, value: float | None) -> str:
    """Return a figure of a study as text.

    Args:
        study: study with the measure.
        value: figure; None is "", infinite is "not reached".
    """
    if value is None:
        return ""
    if math.isinf(value):
        return "not reached" if study.measure in SMALLER_IS_BETTER else "baseline not reached"
    if study.measure == "uplink-bytes":
        return format_bytes(round(value))
    if study.measure == "accuracy-difference":
        return f"{value:+.4f}"
    return f"{value:.4f}" if study.measure in BY_DIFFERENCE else f"{value:.4g}" if value < 1000 else f"{value:.0f}"


def build_tables(replication: Replication) -> Iterator[tuple[str, list[str], Rows]]:
    """Yield title, headings and rows of each table that is not empty.

    Args:
        replication: result of a study.
    """
    study = replication.study
    yield MEASURE_NAMES[study.measure], *_build_cell_table(study, replication.cells)
    if study.networks:
        rows = [
            [cell.label, *(_format_time(cell.network_seconds.get(name)) for name in study.networks)]
            for cell in replication.cells
        ]
        yield "time to the target" if replication.has_target else "time of the run", ["cell", *study.networks], rows
    if replication.claims:
        yield "claims", ["claim", "verdict", "figures"], [_build_claim_row(study, result) for result in replication.claims]


def _format_time(seconds: float | None) -> str:
    return "" if seconds is None else "not reached" if math.isinf(seconds) else format_seconds(seconds)


def _build_cell_table(study: Study, cells: Sequence[CellResult]) -> tuple[list[str], Rows]:
    """Return headings and rows of the cells; columns without an entry are left out."""
    difference = "difference" if study.measure in BY_DIFFERENCE else "fedsgd / paper"
    columns = {
        "cell": [cell.label for cell in cells],
        "paper": [format_value(study, cell.paper) for cell in cells],
        "fedsgd": [_format_measured(study, cell) for cell in cells],
        "interval": [_format_interval(study, cell) for cell in cells],
        difference: [_format_ratio(study, cell) for cell in cells],
        "verdict": [cell.verdict for cell in cells],
        "with real bytes": [format_value(study, cell.own_value) for cell in cells],
        "bytes up": [_format_size(cell.uplink_bytes) for cell in cells],
        "by the paper's rule": [_format_size(cell.rule_bytes) for cell in cells],
        "bytes down": [_format_size(cell.downlink_bytes) for cell in cells],
        "tuned": [cell.tuned for cell in cells],
    }
    used = {name: column for name, column in columns.items() if any(column)}
    return [*used], [list(row) for row in zip(*used.values(), strict=True)]


def _format_measured(study: Study, cell: CellResult) -> str:
    """Return the median, the range of the seeds, and their number, of how many if some were not run."""
    text, n = format_value(study, cell.value), len(cell.values)
    count = f"n = {n}" + f" of {cell.seeds}" * (n < cell.seeds)
    if n < 2:
        return f"{text} ({count})" if 0 < n < cell.seeds else text
    low, high = (format_value(study, value) for value in (min(cell.values), max(cell.values)))
    return f"{text} ({low} to {high}, {count})"


def _format_interval(study: Study, cell: CellResult) -> str:
    if cell.interval is None:
        return ""
    low, high = (format_value(study, value) for value in (cell.interval.low, cell.interval.high))
    return f"{low} to {high} ({100 * cell.interval.confidence:.3g} %)"


def _format_ratio(study: Study, cell: CellResult) -> str:
    if cell.ratio is None or math.isinf(cell.ratio):
        return ""
    return f"{cell.ratio:+.4f}" if study.measure in BY_DIFFERENCE else f"{cell.ratio:.2f}"


def _format_size(n_bytes: float | None) -> str:
    return "" if n_bytes is None else format_bytes(round(n_bytes))


def _build_claim_row(study: Study, result: ClaimResult) -> list[str]:
    figures = " and ".join(format_value(study, value) for value in (result.better, result.worse) if value is not None)
    return [result.claim.text, result.verdict, figures]


def count_verdicts(results: Sequence[CellResult] | Sequence[ClaimResult]) -> Counter[str]:
    """Return the number of cells or claims by verdict.

    Args:
        results: cells or claims of a study.
    """
    return Counter(result.verdict for result in results)


def list_notes(replication: Replication) -> list[str]:
    """Return lines about tolerance, causes, set-up, counting rule and origin.

    Args:
        replication: result of a study.
    """
    study = replication.study
    within = f"a difference of {study.tolerance:g}" if study.measure in BY_DIFFERENCE else f"a factor of {study.tolerance:g}"
    notes = [f"Source: {study.source}.", f"A figure counts as reproduced within {within}."]
    if any(len(cell.values) > 1 for cell in replication.cells):
        notes.append("Figures of fedsgd are medians over seeds, with the range of the seeds; intervals have their confidence.")
    if study.counting:
        rule = get_counting_rule(study.counting)
        notes.append(
            f"The paper's rule for the uplink: {rule.title}, {rule.formula}. The other bytes are those that were sent."
        )
    labels_by_cause: dict[str, list[str]] = {}
    for cell in replication.cells:
        if cell.verdict == KNOWN:
            labels_by_cause.setdefault(cell.cause, []).append(cell.label)
    notes += [f"{'; '.join(labels)}: {_end(cause)}" for cause, labels in labels_by_cause.items()]
    notes += [f"Set-up: {_end(text)}" for text in study.differences]
    if sum(replication.seconds.values()):
        tuning, final = (format_seconds(replication.seconds[phase]) for phase in ("tuning", "final"))
        notes.append(f"Time of the runs: {final}" + f", and {tuning} to select tuned values" * bool(study.tune) + ".")
    if replication.made:
        notes.append(f"Made by `fedsgd replicate {study.name}`: {replication.made}.")
    return notes


def _end(text: str) -> str:
    """Return a text with a full stop."""
    return text if text.endswith(".") else f"{text}."


def to_markdown(replication: Replication) -> str:
    """Return RESULTS.md.

    Args:
        replication: result of a study.
    """
    parts = [f"# {replication.study.title}", describe_verdicts(replication) + "."]
    for title, headings, rows in build_tables(replication):
        lines = [_join_cells(headings), "|" + " --- |" * len(headings), *map(_join_cells, rows)]
        parts += [f"## {title[0].upper()}{title[1:]}", "\n".join(lines)]
    parts += ["## Notes", "\n".join(f"- {note}" for note in list_notes(replication))]
    return "\n\n".join(parts) + "\n"


def _join_cells(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def to_json(replication: Replication) -> str:
    """Return the result as JSON; infinite figures are null, and `reached` is false where the value is.

    Args:
        replication: result of a study.
    """
    study = replication.study
    table = {
        "study": study.name,
        "title": study.title,
        "source": study.source,
        "measure": study.measure,
        "tolerance": study.tolerance,
        "verdicts": count_verdicts(replication.cells),
        "cells": [{**asdict(cell), "reached": _is_reached(cell)} for cell in replication.cells],
        "claims": [
            {"text": c.claim.text, "verdict": c.verdict, "better": c.better, "worse": c.worse} for c in replication.claims
        ],
        "changed_verdicts": list(replication.changed),
        "seconds": replication.seconds,
        "made": replication.made,
        "notes": list_notes(replication),
    }
    return json.dumps(_replace_infinite(table), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _is_reached(cell: CellResult) -> bool | None:
    return None if cell.value is None else math.isfinite(cell.value)


def _replace_infinite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _replace_infinite(item) for key, item in value.items()}
    return [_replace_infinite(item) for item in value] if isinstance(value, list | tuple) else value


def to_html(replication: Replication) -> str:
    """Return a page without scripts and external resources.

    Args:
        replication: result of a study.
    """
    tables = [(heading[0].upper() + heading[1:], headings, rows) for heading, headings, rows in build_tables(replication)]
    return render_template(
        "study.html",
        title=replication.study.title,
        tables=tables,
        text_headings=TEXT_HEADINGS,
        notes=list(list_notes(replication)),
        css=read_asset("study.css"),
    )


def describe_verdicts(replication: Replication) -> str:
    """Return the counts of the verdicts on cells, in the order of `VERDICTS`, and on claims, in one line.

    Args:
        replication: result of a study.
    """
    counts, claims = count_verdicts(replication.cells), count_verdicts(replication.claims)
    texts = [f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict in counts]
    if claims:
        order, plurals = (HOLDS, FAILS, UNDECIDED, NOT_RUN), {HOLDS: "hold", FAILS: "do not hold"}
        words = {verdict: verdict if claims[verdict] == 1 else plurals.get(verdict, verdict) for verdict in order}
        texts.append("claims: " + ", ".join(f"{claims[verdict]} {words[verdict]}" for verdict in order if verdict in claims))
    return "; ".join(texts)
