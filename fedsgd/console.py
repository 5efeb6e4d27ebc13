"""What a person sees of a run in a terminal: progress while it goes, tables at its end. The only door to rich."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from fedsgd.evaluation import RESERVED

if TYPE_CHECKING:
    from fedsgd.certificate import Certificate
    from fedsgd.engine import Chosen
    from fedsgd.experiment import Result, Round
    from fedsgd.scenario import Scenario
    from fedsgd.splits import Split

MOST_ROWS = 20
MOST_CLASSES = 12
"""Of a table of a split: clients and classes beyond these are summarised."""
LINE_SECONDS = 5.0
"""Where there is no terminal, a line of progress at most this often."""


class Shown(NamedTuple):
    """What to call so that a run is shown on standard error; None if nothing is to be shown."""

    on_engine: Callable[[Chosen], None] | None = None
    on_round: Callable[[Round], None] | None = None


@contextmanager
def progress(scenario: Scenario, quiet: bool) -> Iterator[Shown]:
    """Shows how far a run is."""
    console = Console(stderr=True)

    def chosen(engine: Chosen) -> None:
        console.print(f"engine: {engine}", highlight=False, soft_wrap=True, markup=False)

    if quiet:
        yield Shown()
    elif console.is_terminal:
        with _bar(console) as bar:
            task = bar.add_task("", total=scenario.rounds, state="preparing")

            def show(record: Round) -> None:
                bar.update(task, completed=record.round, state=_state(record))

            yield Shown(chosen, show)
    else:
        yield Shown(chosen, _lines(console, scenario))


def _bar(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("round"),
        MofNCompleteColumn(),
        BarColumn(bar_width=8),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
    )


def _lines(console: Console, scenario: Scenario) -> Callable[[Round], None]:
    shown, spent = time.monotonic(), 0.0

    def show(record: Round) -> None:
        nonlocal shown, spent
        spent += record.seconds
        if time.monotonic() - shown >= LINE_SECONDS:
            shown = time.monotonic()
            left = spent / record.round * (scenario.rounds - record.round)
            line = f"{scenario.name}: round {record.round}/{scenario.rounds}, {_state(record)}, about {left:.0f} s left"
            console.print(line, highlight=False, soft_wrap=True, markup=False)

    return show


def _state(record: Round) -> str:
    accuracy = "" if record.accuracy is None else f"acc {record.accuracy:.3f} · "
    ratio = record.dense_uplink_bytes / record.uplink_bytes
    return f"{accuracy}up {decimal(record.uplink_bytes)} ({ratio:.1f}×) · down {decimal(record.downlink_bytes)}"


@contextmanager
def waiting(what: str, quiet: bool) -> Iterator[None]:
    """A sign of life on standard error, in a terminal, while something takes its time."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield
    else:
        with console.status(what):
            yield


def show_split(split: Split) -> None:
    """The table of a split, on standard output: every client if they fit on a screen, else how they are spread."""
    console = Console(highlight=False)
    few = len(split.sizes) <= MOST_ROWS
    title = f"{split.name}: {split.partition}, {split.who}, {split.sizes.sum():,} training examples"
    console.print(title, style="bold", soft_wrap=True, markup=False)
    if few and split.counts is not None and len(split.class_names) <= MOST_CLASSES:
        console.print("by class: % of a client's examples; distance from the classes of all: 0 to 1")
        numbers = [str(label) for label in range(len(split.class_names))]
        if _headings(split.class_names) == numbers != list(split.class_names):
            named = (f"{number} {_short(name)}" for number, name in zip(numbers, split.class_names, strict=True))
            console.print(f"classes: {', '.join(named)}", markup=False)
    console.print(_clients_table(split) if few else _spread_table(split))
    if not few and split.counts is not None:
        console.print(_classes_table(split, split.counts))
    if split.left_out:
        console.print(f"{split.left_out:,} training examples are nobody's", markup=False)


def _clients_table(split: Split) -> Table:
    columns = [("client", [str(client) for client in range(len(split.sizes))])]
    columns.append(("examples", [f"{size:,}" for size in split.sizes]))
    if split.held_out is not None:
        columns.append(("held out", [f"{size:,}" for size in split.held_out]))
    shares = split.shares()
    if shares is not None:
        columns.append(("distance", [f"{distance:.2f}" for distance in split.measures()["distance"]]))
        if len(split.class_names) <= MOST_CLASSES:
            for heading, of_class in zip(_headings(split.class_names), shares.T, strict=True):
                columns.append((escape(heading), [f"{100 * share:.0f}" if share else "·" for share in of_class]))
        else:
            columns.append(("most frequent", [_most_frequent(split.class_names, share) for share in shares]))
    table = Table(box=SIMPLE_HEAD, padding=0)
    for heading, _ in columns:
        table.add_column(heading, justify="left" if heading == "most frequent" else "right", no_wrap=True)
    for row in zip(*(cells for _, cells in columns), strict=True):
        table.add_row(*row)
    return table


def _headings(names: Sequence[str]) -> Sequence[str]:
    """Class names that are narrow, or the classes' numbers where narrow names would be alike."""
    narrow = [_short(name, 3) for name in names]
    return narrow if len(set(narrow)) == len(names) else [str(label) for label in range(len(names))]


def _short(name: str, width: int = 12) -> str:
    """A class name, visible and narrow."""
    return (repr(name)[1:-1] if name.strip(" ") else repr(name))[:width]


def _most_frequent(names: Sequence[str], shares: NDArray[np.float64]) -> str:
    top = shares.argsort(kind="stable")[::-1][:5]
    return escape(", ".join(f"{_short(names[label])} {shares[label]:.0%}" for label in top))


def _spread_table(split: Split) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("of a client")
    for heading in ("least", "10 %", "median", "90 %", "most"):
        table.add_column(heading, justify="right")
    measures = dict(split.measures())
    if split.held_out is not None:
        measures["held out"] = split.held_out
    for name, values in measures.items():
        digits = 0 if values.dtype.kind == "i" else 2
        quantiles = np.quantile(values, (0, 0.1, 0.5, 0.9, 1), method="nearest")
        table.add_row(name, *(f"{value:,.{digits}f}" for value in quantiles))
    return table


def _classes_table(split: Split, counts: NDArray[np.int64]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for heading in ("class", "targets", "clients that have it", "most with one client"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    labels = range(counts.shape[1])
    most_frequent = sorted(labels, key=lambda label: -int(counts[:, label].sum()))
    for label in labels if len(labels) <= MOST_CLASSES else most_frequent[:MOST_CLASSES]:
        of_class = counts[:, label]
        figures = (of_class.sum(), (of_class > 0).sum(), of_class.max())
        table.add_row(escape(_short(split.class_names[label])), *(f"{f:,}" for f in figures))
    if len(labels) > MOST_CLASSES:
        table.add_row(f"{len(labels) - MOST_CLASSES} others", f"{counts[:, most_frequent[MOST_CLASSES:]].sum():,}", "", "")
    return table


def show_result(result: Result) -> None:
    """The closing tables, on standard output."""
    console = Console(highlight=False)
    console.print(_bytes_table(result.summary))
    for line in _lines_of(result):
        console.print(line, soft_wrap=True, markup=False)
    if "profile" in result.summary:
        console.print(_profile_table(result.summary["profile"]))


def _profile_table(profile: Mapping[str, Mapping[str, float]]) -> Table:
    """Milliseconds a round by phase, and the share of each."""
    table = Table(title="a round, in milliseconds", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("")
    for where in profile:
        for heading in (f"all {where}" if where == "workers" else where, "%"):
            table.add_column(heading, justify="right", no_wrap=True)
    totals = {where: sum(spent.values()) for where, spent in profile.items()}
    for phase in profile["server"]:
        cells = [(1e3 * spent[phase], 100 * spent[phase] / totals[where]) for where, spent in profile.items()]
        table.add_row(phase, *(f"{figure:.1f}" for cell in cells for figure in cell))
    table.add_section()
    table.add_row("total", *(text for total in totals.values() for text in (f"{1e3 * total:.1f}", "")), style="bold")
    return table


def _bytes_table(summary: Mapping[str, Any]) -> Table:
    table = Table(
        title=escape(f"{summary['name']}: bytes on the wire"), title_justify="left", title_style="bold", box=SIMPLE_HEAD
    )
    for heading in ("", "uplink", "downlink"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    up, down = summary["uplink"], summary["downlink"]
    for part in ("header", "index", "value", "side"):
        table.add_row(part, *(f"{traffic[part]:,}" for traffic in (up, down)))
    table.add_section()
    table.add_row("total", f"{up['n_bytes']:,}", f"{down['n_bytes']:,}", style="bold")
    table.add_row("frames", f"{up['frames']:,}", f"{down['frames']:,}")
    table.add_row("as dense float32", f"{summary['dense_uplink_bytes']:,}", "")
    table.add_row("compression ratio", f"{summary['uplink_ratio']:.1f}×", "", style="bold")
    return table


def _metrics(final: Mapping[str, float | None], best: float | None) -> Iterator[str]:
    """A line for the test examples, one for the clients and one for training, as far as they were measured."""
    lines: dict[str, list[str]] = {kind: [] for kind in ("", *RESERVED)}
    for name, value in final.items():
        kind = next((prefix for prefix in RESERVED if name.startswith(prefix)), "")
        figure = "not finite" if value is None else f"{value:.4f}"
        if name == "accuracy" and best is not None:
            figure += f" (best {best:.4f})"
        lines[kind].append(f"{name.removeprefix(kind).replace('_', ' ') if kind else name} {figure}")
    for title, kind in zip(("test", "accuracy by client", "training"), lines, strict=True):
        if lines[kind]:
            yield f"{title}: {', '.join(lines[kind])}"


def _lines_of(result: Result) -> Iterator[str]:
    summary = result.summary
    up = summary["uplink"]
    yield (
        f"{summary['parameters']:,} parameters, {summary['clients']} clients, {summary['cohort']} a round, "
        f"{summary['rounds']} rounds, {summary['seconds']:.1f} s"
    )
    if up["kept"]:
        total, index = (8 * up[key] / up["kept"] for key in ("n_bytes", "index"))
        yield f"uplink: {total:.1f} bits per kept coordinate, {index:.2f} of them for its position"
    yield from _metrics(summary["final_metrics"], summary["best_accuracy"])
    if summary["stopped_by"] != "rounds":
        yield f"stopped after round {summary['rounds']}, by [stop] target_accuracy"
    if summary["target_accuracy"] is not None:
        reached = summary["rounds_to_target"]
        yield f"target {summary['target_accuracy']:g}: " + ("not reached" if reached is None else f"reached in round {reached}")
    yield f"params_sha256 {summary['params_sha256']}"
    yield f"ledger_sha256 {summary['ledger_sha256']}"
    if result.out is not None:
        yield f"written to {result.out}"


def show_certificate(certificate: Certificate) -> None:
    """A certificate's tables, on standard output; a law has a line of its own where it was broken or not tried."""
    from fedsgd.certificate import report

    console = Console(highlight=False)
    console.print(report.title(certificate), style="bold", soft_wrap=True, markup=False)
    console.print(f"{certificate.compressor}\n{report.about(certificate)}", soft_wrap=True, markup=False)
    for heading, rows in report.sections(certificate):
        table = Table(title=escape(heading), title_justify="left", title_style="bold", box=None, show_header=False)
        table.add_column(no_wrap=True)
        for what, figure, beside in rows:
            table.add_row(escape(what), escape(figure), escape(beside))
        console.print("", table)
    console.print()
    for what, sha256 in report.digests(certificate):
        console.print(f"{what} {sha256}", soft_wrap=True, markup=False)
    console.print(f"laws that hold: {', '.join(v.law for v in certificate.laws if v.passed)}", soft_wrap=True, markup=False)
    for verdict in certificate.laws:
        if not verdict.passed:
            word = "BROKEN" if verdict.passed is False else "not tried"
            console.print(f"{word} {verdict.law}: {verdict.detail}", soft_wrap=True, markup=False)


def show_comparison(certificates: Sequence[Certificate]) -> None:
    """All compressors as one table, on standard output, with what its columns mean."""
    from fedsgd.certificate import report

    console = Console(highlight=False)
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
    for heading in report.COLUMNS:
        table.add_column(heading, justify="left" if heading in report.COLUMNS[:2] else "right")
    for row in report.comparison(certificates):
        table.add_row(*map(escape, row))
    console.print(report.described(certificates[0].vectors), style="bold", soft_wrap=True, markup=False)
    console.print(table, report.LEGEND)
