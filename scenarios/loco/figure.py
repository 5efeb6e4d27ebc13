"""Loss of char-gpt against bytes and against characters, for the cells of study.toml, from its results.json.

    python scenarios/loco/figure.py [--phase tuning] [--results results.json] [--out loco.svg]

A curve is the lowest loss so far on the test characters: the median of the seeds, in a band from the lowest to the highest.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedsgd.analysis.figures.style import (
    BYTES,
    NUMBER,
    RULE_COLOUR,
    TWO_COLUMNS,
    add_legend,
    find_finite_range,
    method_styles,
    paper_style,
    scale_axis,
)

# isort: split
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedsgd.analysis.replication.plan import ReplicationConfig, StudyPlan
from fedsgd.analysis.replication.records import Results, RunRecord
from fedsgd.analysis.replication.replicate import open_study
from fedsgd.data.datasets import Text
from fedsgd.errors import FedsgdError
from fedsgd.numerics.arrays import F64
from fedsgd.storage.run_directory import write_atomically

HERE = Path(__file__).parent


def count_characters(plan: StudyPlan, label: str) -> float:
    """Return the characters, in millions, on which all workers of a cell train in one round."""
    scenario = plan.get_scenario(label)
    source, client, cohort = scenario.data.source, scenario.client, scenario.server.cohort
    assert isinstance(source, Text)
    return (cohort or 0) * (client.steps or 0) * (client.batch_size or 0) * source.context / 1e6


def interpolate(records: Sequence[RunRecord]) -> tuple[F64, F64]:
    """Return the rounds at which a seed improved, [X], and the lowest loss of each seed until then, [S, X]."""
    curves = [np.array(record.curve) for record in records]
    first = max(curve[0, 0] for curve in curves)
    rounds = np.unique(np.concatenate([*(curve[:, 0] for curve in curves), [records[0].rounds]]))
    rounds = rounds[rounds >= first]
    rows = [curve[np.searchsorted(curve[:, 0], rounds, side="right") - 1, 1] for curve in curves]
    return rounds, np.array(rows)


def draw(plan: StudyPlan, phase: str) -> Figure:
    """Draw the loss against the bytes in both directions, and against characters."""
    runs = [record for record in plan.results.runs.values() if record.phase == phase and record.error is None]
    records = {label: [run for run in runs if run.cell == label] for label in plan.study.cells}
    labels = [label for label, found in records.items() if found]
    figure = Figure(figsize=(TWO_COLUMNS, 2.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    x_values: list[list[float]] = [[], []]
    losses: list[float] = []
    entries = []
    for style in method_styles(labels):
        label = labels[style.index]
        rounds, rows = interpolate(records[label])
        first = records[label][0]
        per_round = (first.uplink_bytes + first.downlink_bytes) / first.rounds, count_characters(plan, label)
        for ax, values, factor in zip(axes, x_values, per_round, strict=True):
            ax.plot(factor * rounds, np.median(rows, axis=0), **style.get_line_properties())
            ax.fill_between(factor * rounds, rows.min(axis=0), rows.max(axis=0), color=style.colour, alpha=0.16, linewidth=0)
            values += (factor * rounds).tolist()
        losses += rows.ravel().tolist()
        entries.append((Line2D([], [], **{**style.get_marker_properties(), "linestyle": style.dashes}), style.label))
    target = plan.target
    assert target is not None
    for ax, values, unit, label, is_log in zip(
        axes,
        x_values,
        (BYTES, NUMBER),
        ("bytes in both directions, all workers together", "million characters, all workers together"),
        (True, False),
        strict=True,
    ):
        ax.axhline(target.threshold, color=RULE_COLOUR, linewidth=0.7, zorder=2.5)
        scale_axis(ax.xaxis, unit, *find_finite_range(values), log=is_log)
        ax.set_xlabel(label)
    scale_axis(axes[0].yaxis, NUMBER, *find_finite_range([*losses, target.threshold]), log=False)
    axes[0].set_ylabel("lowest loss so far")
    add_legend(figure, [*entries, (Line2D([], [], color=RULE_COLOUR, linewidth=0.7), f"target {target}")])
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--phase", choices=("tuning", "final"), default="final", help="runs to draw; bands of tuning are over rates"
    )
    parser.add_argument("--results", type=Path, default=HERE / "results.json", help="records of the study")
    parser.add_argument("--out", type=Path, default=Path("loco.svg"), help="SVG or PNG file to write")
    options = parser.parse_args(argv)
    if options.out.suffix not in (".svg", ".png"):
        parser.error(f"--out: got {options.out}, expected a file .svg or .png")
    if not options.results.is_file():
        parser.error(f"--results: {options.results}: no such file")
    plan, _ = open_study(HERE, ReplicationConfig(), None)
    plan = StudyPlan(plan.study, plan.config, Results.load(options.results, plan.study.name))
    image = io.BytesIO()
    with paper_style():
        figure = draw(plan, options.phase)
        figure.savefig(image, format=options.out.suffix[1:], metadata={"Date": None} if options.out.suffix == ".svg" else {})
    write_atomically(options.out, image.getvalue())


if __name__ == "__main__":
    try:
        main()
    except FedsgdError as error:
        sys.exit(f"figure.py: {error}")
