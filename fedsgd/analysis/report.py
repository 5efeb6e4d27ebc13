"""Report of finished runs, as a page or as figures for a paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from fedsgd.analysis.columns import collect_tuning_notes
from fedsgd.analysis.comparison import compare
from fedsgd.analysis.differences import describe_other_differences
from fedsgd.analysis.figures import draw_figures
from fedsgd.analysis.fleet import FleetConfig
from fedsgd.analysis.methods import Method, RunSpec, load_methods
from fedsgd.analysis.page.html import render
from fedsgd.analysis.page.payload import ReportOptions, build_payload, collect_coding_notes
from fedsgd.analysis.ratio_columns import collect_statistics_notes, describe_row_ratios
from fedsgd.analysis.runs import Run, choose_criterion
from fedsgd.errors import OutputError, ReportError
from fedsgd.network import PricingModel
from fedsgd.scenario.target import Target
from fedsgd.storage.run_directory import write_atomically


def write_report(
    run_specs: Sequence[RunSpec],
    out: Path,
    file_format: Literal["html", "pdf", "svg", "png"],
    *,
    target: Target | None,
    tuned: Sequence[str],
    network_name: str,
    pricing_model: PricingModel,
    price_per_gigabyte: float | None,
    title: str | None,
    measured_coding: bool = False,
    fleet: FleetConfig | None = None,
    baseline: str | None = None,
    on_notice: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Write a report to `out`, the file of a page ("html") or the folder of figures, and return the paths of the files.

    Without a target, `choose_default_target` chooses a target; without a title, the first three scenarios' names are the title.
    `tuned` has the dotted keys of tuned settings. The other options are those of `ReportOptions`. `on_notice` gets lines about
    ignored runs and other differences between methods; with figures, also about coding times, tuned values and ratios.
    """
    target = choose_default_target(load_methods(run_specs, None, tuned)) if target is None else target
    methods = load_methods(run_specs, target, tuned, on_notice)
    differences = describe_other_differences(methods)
    if differences is not None:
        on_notice(differences)
    options = ReportOptions(
        title or _build_title(methods),
        target,
        pricing_model,
        network_name,
        price_per_gigabyte,
        measured_coding,
        fleet,
        baseline,
    )
    if file_format != "html":
        for text in (*collect_coding_notes(methods, options), *_collect_figure_notes(methods, options)):
            on_notice(text)
        return draw_figures(methods, options, out, file_format)
    if not out.parent.is_dir():
        raise OutputError(f"{out}: there is no folder {out.parent}")
    page = render(build_payload(methods, options))
    write_atomically(out, page.encode())
    return [out]


def _collect_figure_notes(methods: Sequence[Method], options: ReportOptions) -> Iterator[str]:
    """Yield notes on tuned values, seeds and ratios, which a page has and figures have not."""
    comparison = compare(methods, options.target, baseline=options.baseline)
    yield from collect_tuning_notes(comparison, has_stars=False)
    yield from describe_row_ratios(comparison)
    yield from collect_statistics_notes(comparison)


def choose_default_target(methods: Sequence[Method]) -> Target:
    """Return the target of the runs' scenarios if they agree, otherwise the best round number that all methods reach.

    The number is a whole percent of accuracy or, without accuracy, a loss of two significant figures. A method reaches a value
    if its median best value over seeds does. ReportError if nothing was measured.
    """
    runs = [run for method in methods for run in method.runs]
    scenario_targets = {target for run in runs for target in _read_targets(run)}
    if len(scenario_targets) == 1:
        return scenario_targets.pop()
    criterion = choose_criterion(runs)
    summaries = [method.best_variant.summarize_best(criterion) for method in methods]
    medians = [summary.median for summary in summaries if summary is not None]
    if not medians:
        raise ReportError(f"these runs have no measured {criterion.metric}; use `fedsgd compare`, or another metric")
    if criterion.direction == "above":
        return Target(criterion.metric, above=max(0.01, math.floor(100 * min(medians) + 1e-9) / 100))
    return Target(criterion.metric, below=_round_up(max(medians)))


def _read_targets(run: Run) -> Iterator[Target]:
    """Yield the targets of a run's scenario."""
    for section in ("report", "stop"):
        table = {key: run.settings.get(f"{section}.{key}") for key in ("target.metric", "target.above", "target.below")}
        accuracy = run.settings.get(f"{section}.target_accuracy")
        if accuracy is not None:
            yield Target("accuracy", above=float(accuracy))
        elif table["target.metric"] is not None:
            yield Target(table["target.metric"], table["target.above"], table["target.below"])


def _round_up(value: float) -> float:
    """Return the smallest number of two significant figures that is not below a value.

    >>> [_round_up(value) for value in (0.2893, 2.4, 131.0, 0.0, -0.2893)]
    [0.29, 2.4, 140.0, 0.0, -0.28]
    """
    if value == 0:
        return 0.0
    digits = 1 - math.floor(math.log10(abs(value)))
    nearest = round(value, digits)
    return nearest if nearest >= value else round(nearest + 10.0**-digits, digits)


def _build_title(methods: Sequence[Method]) -> str:
    names = list(dict.fromkeys(run.name for method in methods for run in method.runs))
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
