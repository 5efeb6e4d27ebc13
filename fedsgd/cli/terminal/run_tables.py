"""Tables of the results of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedsgd.cli.terminal.column_table import ColumnTable, create_console, print_lines, print_tables
from fedsgd.config.quantities import format_bytes, format_metric, format_ratio
from fedsgd.config.text_columns import TextColumn
from fedsgd.experiment.divergence import LEARNING_RATE_HINT
from fedsgd.experiment.evaluation import RESERVED_PREFIXES

if TYPE_CHECKING:
    from fedsgd.experiment.result import Result
    from fedsgd.flower.deployment import DeploymentResult


def print_result(result: Result | DeploymentResult) -> None:
    """Print the tables and lines of a run's results."""
    console = create_console()
    tables = [_build_bytes_table(result.summary)]
    if "flower" in result.summary:
        tables.append(_build_transport_table(result.summary))
    print_tables(console, tables)
    print_lines(console, _describe_result(result))
    if "profile" in result.summary:
        print_tables(console, [_build_profile_table(result.summary["profile"])])


def _make_columns(ranks: Sequence[tuple[str, int]], rows: Sequence[Sequence[str]]) -> list[TextColumn]:
    """Return columns from (heading, rank) pairs and rows; the first column has the labels."""
    return [
        TextColumn(heading, heading, cells, rank, "right" if index else "left")
        for index, ((heading, rank), cells) in enumerate(zip(ranks, zip(*rows, strict=True), strict=True))
    ]


def _build_profile_table(profile: Mapping[str, Mapping[str, float]]) -> ColumnTable:
    """Return the mean milliseconds and the share of each phase of a round."""
    headings = [("", 0)]
    for process in profile:
        headings += [(f"all {process}" if process == "workers" else process, 0), ("%", 1)]
    totals = {process: sum(seconds.values()) for process, seconds in profile.items()}
    rows = []
    for phase in profile["server"]:
        cells = [(1e3 * seconds[phase], 100 * seconds[phase] / totals[process]) for process, seconds in profile.items()]
        rows.append((phase, *(f"{figure:.1f}" for cell in cells for figure in cell)))
    rows.append(("total", *(text for total in totals.values() for text in (f"{1e3 * total:.1f}", ""))))
    last = frozenset({len(rows) - 1})
    return ColumnTable(_make_columns(headings, rows), "a round, in milliseconds", last, last)


def _build_bytes_table(summary: Mapping[str, Any]) -> ColumnTable:
    """Return the bytes of a run by part: of the uplink, of the downlink, and of both directions together."""
    up, down = summary["uplink"], summary["downlink"]

    def make_row(name: str, uplink: int, downlink: int) -> tuple[str, ...]:
        return name, *(f"{figure:,}" for figure in (uplink, downlink, uplink + downlink))

    rows = [make_row(part, up[part], down[part]) for part in ("header", "index", "value", "side")]
    n_parts = len(rows)
    rows += [make_row("total", up["n_bytes"], down["n_bytes"]), make_row("frames", up["frames"], down["frames"])]
    if up["received"] < up["n_bytes"]:
        rows.append(("received", f"{up['received']:,}", "", ""))
    rows.append(("if broadcast", "", f"{down['broadcast']:,}", f"{up['n_bytes'] + down['broadcast']:,}"))
    rows.append(make_row("as dense float32", summary["dense_uplink_bytes"], summary["dense_downlink_bytes"]))
    ratios = (summary[f"{link}_ratio"] for link in ("uplink", "downlink", "bidirectional"))
    rows.append(("compression ratio", *map(format_ratio, ratios)))
    headings = [("", 0), ("uplink", 0), ("downlink", 0), ("both ways", 1)]
    title = f"{summary['name']}: bytes on the wire"
    return ColumnTable(_make_columns(headings, rows), title, frozenset({n_parts, len(rows) - 1}), frozenset({n_parts}))


TRANSPORT_ROWS = {
    "frame_bytes": "frames, shared ones once per node",
    "message_bytes": "in Flower's messages",
    "socket_bytes": "on sockets, in rounds",
    "outside_rounds": "on sockets, before and after",
}


def _build_transport_table(summary: Mapping[str, Any]) -> ColumnTable:
    """Return the bytes of a deployment as frames, messages and on sockets. In rounds, each has its ratio to the row before.

    The transport of a resumed deployment is of its last rounds, so it is not compared with the frames of all rounds.
    """
    flower = summary["flower"]
    title = f"over Flower {flower['version']}: {flower['nodes']} node{'s' * (flower['nodes'] > 1)}{', TLS' * flower['tls']}"
    directions = [flower["transport"][direction] for direction in ("up", "down")]
    previous_figures = [summary["uplink"]["n_bytes"], summary["downlink"]["n_bytes"]]
    rows = [("frames, one for each client", f"{previous_figures[0]:,}", "", f"{previous_figures[1]:,}", "")]
    first_round = flower.get("first_round", 1)
    if first_round > 1:
        title, previous_figures, rows = f"{title}, from round {first_round} on", [0, 0], []
    for key, name in TRANSPORT_ROWS.items():
        figures = [transport[key] for transport in directions]
        if None in figures:
            continue
        pairs = zip(figures, previous_figures, strict=True)
        ratios = [f"×{n / previous:.2f}" if previous and key != "outside_rounds" else "" for n, previous in pairs]
        rows.append((name, f"{figures[0]:,}", ratios[0], f"{figures[1]:,}", ratios[1]))
        previous_figures = figures
    flower_counts = flower["counted_by_flower"]
    if flower_counts is not None:
        rows.append(("all bytes, counted by Flower", f"{flower_counts['up']:,}", "", f"{flower_counts['down']:,}", ""))
    headings = [("", 0), ("uplink", 0), ("×", 1), ("downlink", 0), ("×", 1)]
    return ColumnTable(_make_columns(headings, rows), title)


def _describe_metrics(final_metrics: Mapping[str, float | None], best_values: Mapping[str, str]) -> Iterator[str]:
    """Yield a line each for metrics on test examples, metrics over clients, training metrics and validation metrics."""
    lines: dict[str, list[str]] = {kind: [] for kind in ("", *RESERVED_PREFIXES)}
    for name, value in final_metrics.items():
        kind = next((prefix for prefix in RESERVED_PREFIXES if name.startswith(prefix)), "")
        figure = "not finite" if value is None else format_metric(value)
        if name in best_values:
            figure += f" ({best_values[name]})"
        lines[kind].append(f"{name.removeprefix(kind).replace('_', ' ') if kind else name} {figure}")
    for title, kind in zip(("test", "accuracy by client", "training", "validation"), lines, strict=True):
        if lines[kind]:
            yield f"{title}: {', '.join(lines[kind])}"


def _describe_best_values(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return the best accuracy, and the best value of the target's metric, by the name of the metric."""
    accuracy, best = summary["best_accuracy"], summary["best"]
    values = {} if accuracy is None else {"accuracy": f"best {accuracy:.4f}"}
    if summary["target"] is not None and summary["target_accuracy"] is None and best["value"] is not None:
        word = "highest" if best["direction"] == "above" else "lowest"
        values[best["metric"]] = f"{word} {format_metric(best['value'])}"
    return values


def _describe_result(result: Result | DeploymentResult) -> Iterator[str]:
    summary = result.summary
    up = summary["uplink"]
    yield (
        f"{summary['parameters']:,} parameters, {summary['clients']:,} clients, {summary['cohort']:,} a round, "
        f"{summary['rounds']:,} round{'s' * (summary['rounds'] != 1)}, {summary['seconds']:.1f} s"
    )
    if "flower" in summary and summary["flower"]["round_seconds_median"] is not None:
        yield f"median duration of a round: {summary['flower']['round_seconds_median']:.2f} s"
    if summary["peak_memory_bytes"] is not None:
        yield f"peak memory {format_bytes(summary['peak_memory_bytes'])}"
    if up["kept"]:
        total, index = (8 * up[key] / up["kept"] for key in ("n_bytes", "index"))
        yield f"uplink: {total:.1f} bits per coordinate sent, {index:.2f} of them for its position"
    if summary["hostile"] is not None:
        hostile = summary["hostile"]
        yield f"hostile clients: {hostile['clients']:,}, {hostile['kind']} with factor {hostile['factor']:g}"
    if summary["failures"]:
        yield f"client failures: {summary['failures']:,}, the first in {summary['first_failure']}"
    if summary["residuals"] is not None:
        yield from _describe_residuals(summary["residuals"])
    if summary["buffers"] is not None:
        yield from _describe_buffers(summary["buffers"], summary["set_metrics"])
    yield from _describe_metrics(summary["final_metrics"], _describe_best_values(summary))
    for name in summary["never_finite_metrics"]:
        yield f"{name} was never finite"
    yield from (f"warning: {text}" for text in summary["warnings"])
    if summary["diverged"] is not None:
        yield f"the run diverged: {summary['diverged']}; {LEARNING_RATE_HINT}"
    if summary["stopped_by"] != "rounds":
        yield f"stopped after round {summary['rounds']}, by [stop] {summary['stopped_by']}"
    if summary["target"] is not None:
        rounds = summary["rounds_to_target"]
        outcome = "not reached"
        if rounds is not None:
            n_bytes = (format_bytes(round(summary[f"{link}_bytes_to_target"])) for link in ("uplink", "downlink"))
            outcome = f"reached after {rounds:.1f} rounds, {' up and '.join(n_bytes)} down"
        yield f"target {summary['target']}: {outcome}"
    yield f"params_sha256 {summary['params_sha256']}"
    yield f"ledger_sha256 {summary['ledger_sha256']}"
    if result.out is not None:
        yield f"written to {result.out}"


def _describe_buffers(buffer_counts: Mapping[str, int], set_metrics: Sequence[str]) -> Iterator[str]:
    """Yield lines about buffers and about parameters that stay at the clients."""
    if buffer_counts["sent"]:
        yield f"buffers: {buffer_counts['sent']:,} numbers are sent as float32 and averaged"
    if buffer_counts["local"]:
        yield f"{buffer_counts['local']:,} numbers stay at each client; its local model is tested on its local data"
        if set_metrics:
            yield f"{', '.join(set_metrics)}: one figure for the examples of all clients together, not a mean over clients"


def _describe_residuals(residuals: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines about the norms of residuals, and about the rounds that clients missed."""
    norms = f"median {residuals['norm_median']:.3g}, maximum {residuals['norm_max']:.3g}"
    yield f"residual norm over {residuals['clients']:,} clients: {norms}"
    if residuals["rounds_missed_max"] is not None:
        rounds = f"median {residuals['rounds_missed_median']:g}, maximum {residuals['rounds_missed_max']}"
        yield f"rounds that a client missed between two cohorts: {rounds}"
